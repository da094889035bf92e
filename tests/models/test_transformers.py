"""``hf:path``, on tiny classifiers made here and kept on disk."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from pipeline.errors import ModelError
from pipeline.models import FeatureTap, build_model, check_model, logits_of

library = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("default")  # of that library: they are not this project's to fix


@pytest.fixture(autouse=True)
def _quiet() -> None:
    library.logging.set_verbosity(logging.CRITICAL)
    library.logging.disable_progress_bar()


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    config = library.ViTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=8, patch_size=4,
        num_channels=1, id2label={0: "cat", 1: "dog", 2: "emu"}, label2id={"cat": 0, "dog": 1, "emu": 2},
    )  # fmt: skip
    library.ViTForImageClassification(config).save_pretrained(tmp_path / "vit")
    return tmp_path / "vit"


def built(path: Path | str, classes: int = 3, **arguments: Any) -> torch.nn.Module:
    return build_model(f"hf:{path}", arguments, classes=classes, input_shape=(1, 8, 8))


def edit(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def test_a_classifier_from_a_folder(saved: Path) -> None:
    model = built(saved).eval()
    x = torch.rand(2, 1, 8, 8)
    check_model(model, classes=3, example_input=x, class_names=("cat", "dog", "emu"))
    again = library.AutoModelForImageClassification.from_pretrained(saved)
    assert torch.equal(logits_of(model(x)), again(x).logits)
    with FeatureTap(model, {"hint": "vit.embeddings"}) as tap:
        model(x)
    assert tap.values["hint"].shape == (2, 5, 8)


def test_random_weights_from_its_config(saved: Path) -> None:
    model = built(saved, pretrained=False)
    assert not torch.equal(model.classifier.weight, built(saved).classifier.weight)  # type: ignore[union-attr]


def test_class_names_in_another_order(saved: Path) -> None:
    with pytest.raises(ModelError, match="class 0 is 'cat' for it and 'dog' in the dataset"):
        check_model(built(saved), classes=3, example_input=torch.rand(1, 1, 8, 8), class_names=("dog", "cat", "emu"))


def test_a_multi_label_classifier_is_refused_by_name(saved: Path) -> None:
    edit(saved, problem_type="multi_label_classification")
    with pytest.raises(ModelError, match=r"hf:.*vit is a multi-label \(sigmoid\) classifier.* not supported yet"):
        built(saved)


def test_another_number_of_classes(saved: Path) -> None:
    with pytest.raises(ModelError, match="has 3 classes; the dataset has 10"):
        built(saved, classes=10)


def test_a_checkpoint_without_its_head(saved: Path) -> None:
    weights = safetensors.torch.load_file(saved / "model.safetensors")
    kept = {name: value for name, value in weights.items() if not name.startswith("classifier")}
    safetensors.torch.save_file(kept, saved / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks 2 weights, among them classifier\.bias, classifier\.weight"):
        built(saved)


def test_pickled_weights_and_code_of_the_folder_are_left_alone(saved: Path) -> None:
    weights = safetensors.torch.load_file(saved / "model.safetensors")
    (saved / "model.safetensors").unlink()
    torch.save(weights, saved / "pytorch_model.bin")
    with pytest.raises(ModelError, match="cannot be loaded"):
        built(saved)
    edit(saved, model_type="own_kind", auto_map={"AutoConfig": "evil.Config"})
    (saved / "evil.py").write_text("raise SystemExit('executed')")
    with pytest.raises(ModelError, match="cannot be loaded"):
        built(saved)


def test_what_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match="there is no folder"):
        built(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"hf:.*empty cannot be loaded: "):
        built(tmp_path / "empty")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelError, match=r"the hub was asked, but HF_HUB_OFFLINE is set"):
        built("nobody/has-this-one")
