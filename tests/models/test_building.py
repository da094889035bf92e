from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pipeline.errors import ConfigError, MissingDependencyError, ModelError
from pipeline.models import FeatureTap, build_model, check_model, frozen, logits_of, parse_features


def built(reference: str, shape: tuple[int, ...] = (1, 8, 8), **arguments: Any) -> nn.Module:
    return build_model(reference, arguments, classes=10, input_shape=shape)


@pytest.mark.parametrize(
    ("reference", "shape"),
    [("cnn-4", (1, 8, 8)), ("cnn-3", (3, 17, 30)), ("cnn-1", (1, 4, 4)), ("mlp-6", (1, 8, 8)), ("mlp-1", (20,))],
)
def test_built_in_models_fit_their_inputs(reference: str, shape: tuple[int, ...]) -> None:
    model = built(reference, shape)
    check_model(model, classes=10, example_input=torch.rand(2, *shape))
    assert frozen(model)(torch.rand(5, *shape)).shape == (5, 10)


def test_width_is_the_number_after_the_dash() -> None:
    assert built("mlp-7").hidden.out_features == 7  # type: ignore[union-attr]
    assert built("cnn-8", dropout=0.5).stage2[0].out_channels == 16  # type: ignore[index, union-attr]


@pytest.mark.parametrize("reference", ["cnn-", "cnn-x", "cnn-0", "mlp--3", "mlp-1.5"])
def test_widths_that_are_no_numbers(reference: str) -> None:
    with pytest.raises(ConfigError, match="whole number of 1 or more"):
        built(reference)


@pytest.mark.parametrize("reference", ["cnn", "resnet18", "", "module:", "vit-3"])
def test_unknown_references_list_the_choices(reference: str) -> None:
    with pytest.raises(
        ConfigError, match="cnn-WIDTH, resnet-WIDTH, mlp-WIDTH, gpt-WIDTH, timm:NAME, hf:PATH or module:factory"
    ):
        built(reference)


def test_a_cnn_refuses_what_is_no_image() -> None:
    with pytest.raises(ModelError, match=r"have shape \(20,\)\. mlp-4 takes any shape"):
        built("cnn-4", (20,))
    with pytest.raises(ConfigError, match="'depth'; it takes width, classes, input_shape, dropout"):
        built("cnn-4", depth=3)


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_models.py").write_text(
        "import torch\n"
        "def plain(hidden=3): return torch.nn.Linear(64, hidden)\n"
        "def asking(classes, input_shape): return torch.nn.Linear(input_shape[0], classes)\n"
        "class Net(torch.nn.Linear):\n    def __init__(self, num_classes): super().__init__(4, num_classes)\n"
        "ready = torch.nn.Linear(4, 2)\nnothing = lambda: None\n"
    )
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    monkeypatch.delitem(sys.modules, "own_models", raising=False)


@pytest.mark.usefixtures("own")
def test_models_of_ones_own() -> None:
    assert built("own_models:plain", hidden=5).out_features == 5
    asking = built("own_models:asking", (6,))
    assert (asking.in_features, asking.out_features) == (6, 10)
    assert built("own_models:Net").out_features == 10
    assert built("own_models:ready").out_features == 2
    with pytest.raises(ModelError, match=r"should make a torch\.nn\.Module; found NoneType"):
        built("own_models:nothing")
    with pytest.raises(ConfigError, match="'width'; it takes hidden"):
        built("own_models:plain", width=5)


def test_timm_is_named_when_it_is_missing() -> None:
    if "timm" in sys.modules:
        pytest.skip("timm is installed")
    with pytest.raises(MissingDependencyError, match=r"timm:resnet18 needs timm.*softlabels\[vision\]"):
        built("timm:resnet18")


def test_timm_itself() -> None:
    pytest.importorskip("timm")
    model = built("timm:resnet18", (1, 32, 32))
    check_model(model, classes=10, example_input=torch.rand(2, 1, 32, 32))
    with pytest.raises(ConfigError, match="has no model"):
        built("timm:resnot18", (1, 32, 32))


class Outputs(nn.Module):
    """Returns whatever a test wraps around one linear layer."""

    def __init__(self, wrap: Any = lambda x: x, classes: int = 3) -> None:
        super().__init__()
        self.head = nn.Linear(4, classes)
        self.wrap = wrap

    def forward(self, x: torch.Tensor) -> Any:
        return self.wrap(self.head(x))


class Answer:
    def __init__(self, logits: torch.Tensor) -> None:
        self.logits = logits


@pytest.mark.parametrize("wrap", [lambda x: x, Answer, lambda x: {"logits": x}, lambda x: (x, None)])
def test_logits_are_found_in_every_usual_output(wrap: Any) -> None:
    model = Outputs(wrap)
    x = torch.rand(2, 4)
    assert torch.equal(logits_of(model(x)), model.head(x))
    check_model(model, classes=3, example_input=x)


def test_an_output_without_logits() -> None:
    with pytest.raises(ModelError, match="found str"):
        check_model(Outputs(lambda x: "text"), classes=3, example_input=torch.rand(2, 4))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Outputs(classes=4), r"logits of shape \(2, 3\), one per class of the dataset; found \(2, 4\)"),
        (Outputs(lambda x: x[:, None]), r"found \(2, 1, 3\)"),
        (Outputs(lambda x: x[:1]), r"found \(1, 3\)"),
        (Outputs(lambda x: x / 0), "NaN or infinite logits for 2 of 2 examples"),
        (Outputs(torch.sigmoid), "ends in a sigmoid: it is multi-label"),
        (nn.Sequential(nn.Linear(4, 3), nn.Sigmoid()), "ends in a sigmoid: it is multi-label"),
        (nn.Sequential(nn.Linear(4, 3), nn.Softmax(1)), "gives probabilities .*before its softmax"),
        (Outputs(lambda x: x.detach().softmax(1)), "gives probabilities"),
        (Outputs(lambda x: x.softmax(1) * 1.0), "gives probabilities"),
        (Outputs(lambda x: nn.functional.dropout(x, 0.5)), "different logits for the same inputs"),
        (nn.Linear(5, 3), r"cannot take inputs of shape \(2, 4\) \(batch first\): mat1 and mat2"),
        (nn.Conv2d(1, 3, 3), r"cannot take inputs of shape \(2, 4\)"),
    ],
)
@pytest.mark.parametrize("gradients", [True, False])
def test_models_that_do_not_fit_are_refused(model: nn.Module, message: str, gradients: bool) -> None:
    torch.manual_seed(0)
    with pytest.raises(ModelError, match=message):
        check_model(model.requires_grad_(gradients), classes=3, example_input=torch.rand(2, 4))


@pytest.mark.parametrize("last", [nn.LogSoftmax(1), nn.ReLU(), nn.Tanh(), nn.Identity()])
def test_logprobs_and_other_logits_are_accepted(last: nn.Module) -> None:
    torch.manual_seed(0)
    check_model(nn.Sequential(nn.Linear(4, 3), last), classes=3, example_input=torch.rand(4, 4))


def test_a_sigmoid_in_the_middle_is_no_multi_label_head() -> None:
    check_model(
        nn.Sequential(nn.Linear(4, 4), nn.Sigmoid(), nn.Linear(4, 3)), classes=3, example_input=torch.rand(2, 4)
    )


def test_the_check_runs_in_evaluation_mode_and_leaves_the_mode_and_state_as_they_were() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Dropout(0.5))
    model[1].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        check_model(model, classes=3, example_input=torch.rand(1, 4))
    assert [m.training for m in model] == [True, False, True]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_frozen_puts_batch_norm_and_dropout_to_rest() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Dropout(0.5))
    x = torch.rand(3, 4)
    assert frozen(model) is model
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    assert torch.equal(model(x), model(x))
    # Batch statistics would tell one row from the other; rounding may differ with the size of a batch.
    torch.testing.assert_close(model(x[:1]), model(x)[:1])


class Named(nn.Linear):
    """A model that knows its classes, as those of transformers do."""

    def __init__(self, names: list[str]) -> None:
        super().__init__(4, len(names))
        self.config = type("Config", (), {"id2label": dict(enumerate(names))})()


def test_class_names_in_another_order() -> None:
    x = torch.rand(2, 4)
    check_model(Named(["cat", "dog", "emu"]), classes=3, example_input=x, class_names=("cat", "dog", "emu"))
    check_model(Named(["tabby", "hound", "emu"]), classes=3, example_input=x, class_names=("cat", "dog", "emu"))
    with pytest.raises(ModelError, match="another order: class 0 is 'dog' for it and 'cat' in the dataset"):
        check_model(Named(["dog", "cat", "emu"]), classes=3, example_input=x, class_names=("cat", "dog", "emu"))


def test_taps_leave_the_outputs_of_named_modules() -> None:
    model = built("cnn-4").eval()
    with FeatureTap(model, {"hint": "stage2", "early": "stage1.0"}) as tap:
        model(torch.rand(3, 1, 8, 8))
        assert {n: tuple(v.shape) for n, v in tap.values.items()} == {"hint": (3, 8, 2, 2), "early": (3, 4, 8, 8)}
        assert tap.values["hint"].requires_grad
        model(torch.rand(2, 1, 8, 8))
        assert len(tap.values["hint"]) == 2
    model(torch.rand(5, 1, 8, 8))
    assert len(tap.values["hint"]) == 2  # the hooks are gone


def test_taps_name_the_modules_there_are() -> None:
    with pytest.raises(ConfigError) as caught:
        FeatureTap(built("mlp-4"), {"a": "stage2", "b": "hiden"})
    assert len(caught.value.problems) == 2
    assert "did you mean hidden?); it has flatten, hidden, activation, head" in str(caught.value)


def test_a_tapped_module_that_does_not_run_or_gives_no_tensor() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.idle, self.used = nn.Linear(2, 2), Outputs(lambda x: "text")

        def forward(self, x: torch.Tensor) -> Any:
            return x if x.shape[0] == 1 else self.used(x)

    model = Odd()
    with FeatureTap(model, {"hint": "idle"}), pytest.raises(ModelError, match="hint: the module was not called"):
        model(torch.rand(1, 4))
    with FeatureTap(model, {"hint": "used"}), pytest.raises(ModelError, match="gives str, which holds no tensor"):
        model(torch.rand(2, 4))


@pytest.mark.parametrize("text", ["=stage2", "a b=stage2", "../up=stage2", "hint=", ""])
def test_feature_names_become_folder_names(text: str) -> None:
    with pytest.raises(ConfigError, match="should be name=module"):
        parse_features([text])
    with pytest.raises(ConfigError, match="names 'hint' twice"):
        parse_features(["hint=a", "hint=b"])
