"""``gpt-WIDTH``, against a second forward pass written out here in float64, and on its way into files."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from pipeline.artefacts.onnx_file import export_onnx, quiet
from pipeline.artefacts.pt2_file import exported
from pipeline.errors import ConfigError, ModelError
from pipeline.models import (
    FeatureTap,
    build_model,
    check_model,
    load_weights,
    save_weights,
    split_head,
    state_digest,
)
from pipeline.models.gpt import Gpt, turned, turns
from pipeline.models.macs import count_macs

V = 50


def built(reference: str = "gpt-16", seed: int = 0, **arguments: Any) -> Gpt:
    torch.manual_seed(seed)
    given = {"layers": 2, "heads": 2} | arguments
    model = build_model(reference, given, classes=V, input_shape=(12,), discrete=True)
    assert isinstance(model, Gpt)
    return model


def some_ids(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(V, shape, generator=torch.Generator().manual_seed(seed))


def by_hand(model: Gpt, ids_T: Tensor) -> Tensor:
    """Logits (T, V) of one sequence, head by head and position by position, in float64."""
    state = {name: value.double() for name, value in model.state_dict().items()}
    heads, width = model.body.blocks[0].attention.heads, model.head.in_features
    size = width // heads

    def norm(x: Tensor, name: str) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * state[f"{name}.weight"]

    def turn(x_K: Tensor, position: int) -> Tensor:
        found = x_K.clone()
        for n in range(size // 2):
            pair = complex(x_K[n], x_K[n + size // 2])
            angle = position * 10_000 ** (-2 * n / size)
            turned = pair * complex(math.cos(angle), math.sin(angle))
            found[n], found[n + size // 2] = turned.real, turned.imag
        return found

    x_TD = state["body.embedding.weight"][ids_T]
    for layer in range(len(model.body.blocks)):
        at = f"body.blocks.{layer}"
        q_TD, k_TD, v_TD = (norm(x_TD, f"{at}.norm1") @ state[f"{at}.attention.qkv.weight"].T).split(width, dim=-1)
        mixed_TD = torch.zeros_like(x_TD)
        for head in range(heads):
            own = slice(head * size, (head + 1) * size)
            for t in range(len(ids_T)):
                query = turn(q_TD[t, own], t)
                scores = [float(query @ turn(k_TD[s, own], s)) / math.sqrt(size) for s in range(t + 1)]
                mixed_TD[t, own] = torch.tensor(scores, dtype=torch.float64).softmax(0) @ v_TD[: t + 1, own]
        x_TD = x_TD + mixed_TD @ state[f"{at}.attention.proj.weight"].T
        gate, value = (norm(x_TD, f"{at}.norm2") @ state[f"{at}.mlp.up.weight"].T).chunk(2, dim=-1)
        x_TD = x_TD + (gate * gate.sigmoid() * value) @ state[f"{at}.mlp.down.weight"].T
    return norm(x_TD, "body.norm") @ state["head.weight"].T


@pytest.mark.parametrize("tied", [True, False])
def test_logits_are_those_computed_by_hand(tied: bool) -> None:
    model, ids = built(tied=tied).double(), some_ids(2, 7)
    with torch.no_grad():  # weights large enough for attention to choose, scales of norms that are not 1
        for parameter in model.parameters():
            parameter.mul_(2).add_(0.1 * torch.randn_like(parameter))
        for row in range(2):
            torch.testing.assert_close(model(ids)[row], by_hand(model, ids[row]), rtol=0, atol=1e-10)


@pytest.mark.parametrize("length", [1, 2, 12, 40])
def test_any_length_will_do(length: int) -> None:
    check_model(built(), classes=V, example_input=some_ids(2, length))


def test_a_later_token_and_padding_change_nothing_before_them() -> None:
    model, ids = built().eval(), some_ids(2, 12)
    for cut in range(1, 12):
        other = torch.cat([ids[:, :cut], some_ids(2, 12 - cut, seed=cut)], dim=1)
        padded = torch.cat([ids[:, :cut], torch.zeros(2, 5, dtype=torch.int64)], dim=1)
        with torch.no_grad():
            torch.testing.assert_close(model(other)[:, :cut], model(ids)[:, :cut], rtol=0, atol=1e-6)
            torch.testing.assert_close(model(padded)[:, :cut], model(ids[:, :cut]), rtol=0, atol=1e-6)


def test_attention_depends_on_distances_alone() -> None:
    """Rotary positions: the same tokens further to the right, behind copies of one of them, attend alike."""
    model = built(layers=1).double().eval()
    attention, x = model.body.blocks[0].attention, torch.randn(1, 6, 16).double()
    q, k = (part.unflatten(-1, (2, 8)).transpose(1, 2) for part in attention.qkv(x).chunk(3, dim=-1)[:2])
    angles = turns(20, 8, x)
    scores = [
        turned(q, *(a[start : start + 6] for a in angles)) @ turned(k, *(a[start : start + 6] for a in angles)).mT
        for start in (0, 14)
    ]
    torch.testing.assert_close(scores[0], scores[1], rtol=0, atol=1e-12)


def test_the_first_logits_are_of_size_one_and_the_head_is_the_embedding() -> None:
    model = built("gpt-128")
    assert model.head.weight is model.body.embedding.weight
    with torch.no_grad():
        logits = model(some_ids(4, 12))
    assert float(-logits.log_softmax(-1).mean()) == pytest.approx(math.log(V), abs=0.8)
    untied = built(tied=False)
    assert untied.head.weight is not untied.body.embedding.weight
    parameters = sum(p.numel() for p in untied.parameters()) - sum(p.numel() for p in built().parameters())
    assert parameters == V * 16


@pytest.mark.parametrize("tied", [True, False])
def test_weights_come_back_and_stay_tied(tmp_path: Path, tied: bool) -> None:
    model, other = built(tied=tied), built(seed=1, tied=tied)
    save_weights(tmp_path / "m.safetensors", model, {"reference": "gpt-16"})
    stored = safetensors.torch.load_file(tmp_path / "m.safetensors")
    assert ("head.weight" in stored) is not tied
    assert load_weights(other, tmp_path / "m.safetensors") == {"reference": "gpt-16"}
    assert state_digest(other) == state_digest(model)
    assert (other.head.weight is other.body.embedding.weight) is tied
    with torch.no_grad():
        assert torch.equal(other(some_ids(1, 5)), model(some_ids(1, 5)))
    if not tied:
        save_weights(tmp_path / "tied.safetensors", built())
        alone = safetensors.torch.load_file(tmp_path / "tied.safetensors")
        safetensors.torch.save_file(alone, tmp_path / "plain.safetensors")  # which does not say what was tied
        with pytest.raises(ModelError, match=r"1 missing \(head\.weight\)"):
            load_weights(other, tmp_path / "plain.safetensors")


def test_features_have_names() -> None:
    model, ids = built().eval(), some_ids(2, 5)
    with FeatureTap(model, {"last": "body.blocks.1", "body": "body", "mixed": "body.blocks.0.attention"}) as tap:
        logits = model(ids)
        assert {name: tuple(value.shape) for name, value in tap.values.items()} == dict.fromkeys(
            ("last", "body", "mixed"), (2, 5, 16)
        )
        assert torch.equal(model.head(tap.values["body"]), logits)


def test_dropout_acts_in_training_only() -> None:
    model, ids = built(dropout=0.5), some_ids(2, 12)
    assert not torch.equal(model(ids), model(ids))
    model.eval()
    assert torch.equal(model(ids), model(ids))
    assert torch.equal(model(ids), built(dropout=0.0).eval()(ids))


@pytest.mark.parametrize("arrangement", ["autocast", "weights"])
def test_bfloat16_stays_near_float32(arrangement: str) -> None:
    model, ids = built("gpt-64", heads=1), some_ids(2, 40)
    with torch.no_grad():
        expected = model(ids)
    if arrangement == "weights":
        model.bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=arrangement == "autocast"):
        check_model(model, classes=V, example_input=ids)
        logits = model(ids)
        assert logits.dtype == torch.bfloat16
        nn.functional.cross_entropy(logits.flatten(0, 1).float(), ids.flatten()).backward()
    assert float((logits.detach().float() - expected).abs().max()) < 0.03 * float(expected.abs().max())
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)
    assert all(p.grad is not None for p in model.parameters())


def test_it_learns_to_repeat() -> None:
    """The next token is the one of two places ago: no bigram knows it, attention with positions does."""
    torch.manual_seed(0)
    model = build_model("gpt-32", {"layers": 2, "heads": 2}, classes=8, input_shape=(16,), discrete=True)
    optimiser = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(100):
        ids = torch.randint(8, (32, 2)).repeat(1, 8)
        loss = nn.functional.cross_entropy(model(ids[:, :-1])[:, 2:].flatten(0, 1), ids[:, 3:].flatten())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss.item() < 0.3


@pytest.mark.parametrize("length", [1, 12])
def test_macs_are_those_by_hand(length: int) -> None:
    model = built("gpt-16", mlp=2)  # 32 units
    layer = length * (16 * 48 + 16 * 16 + 16 * 64 + 32 * 16) + 2 * length * length * 16
    for batch in (1, 3):
        assert count_macs(model, some_ids(batch, length)) == 2 * layer + length * 16 * V


def test_programs_and_onnx_files_take_any_batch_and_length(tmp_path: Path) -> None:
    model = built(layers=1).eval()
    sizes = [(1, 1), (3, 5), (2, 12), (5, 40)]
    program = exported(model, (12,), discrete=True).module()
    for size in sizes:
        with torch.no_grad():
            torch.testing.assert_close(program(some_ids(*size)), model(some_ids(*size)), rtol=0, atol=1e-6)
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    export_onnx(model, (12,), tmp_path / "m.onnx", opset=20, metadata={}, discrete=True)
    session = runtime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    assert [(i.type, i.shape) for i in session.get_inputs()] == [("tensor(int64)", ["batch", "length"])]
    for size in sizes:
        (found,) = session.run(None, {"input": some_ids(*size).numpy()})
        with torch.no_grad():
            torch.testing.assert_close(torch.from_numpy(found), model(some_ids(*size)), rtol=0, atol=1e-5)


def test_compiled_parts_are_one_graph_for_every_length() -> None:
    """Traced without a compiler, which may be missing: what breaks or multiplies graphs would show here too."""
    traced: list[torch.fx.GraphModule] = []

    def count(graph: torch.fx.GraphModule, _: list[Tensor]) -> Any:
        traced.append(graph)
        return graph.forward

    model = built().eval()
    with quiet(), torch.no_grad():
        torch.compiler.reset()
        compiled = torch.compile(model, dynamic=True, fullgraph=True, backend=count)
        for size in ((3, 5), (2, 12), (5, 40)):
            torch.testing.assert_close(compiled(some_ids(*size)), model(some_ids(*size)), rtol=0, atol=1e-6)
    assert len(traced) == 1


@pytest.mark.parametrize(
    ("reference", "arguments", "message"),
    [
        ("gpt-12", {"heads": 5}, r"12 / 5 heads is 2\.4: heads=1 or 2 or 3 or 6 would do"),
        ("gpt-12", {"heads": 4}, r"12 / 4 heads is 3: heads=1 or 2 or 3 or 6 would do"),
        ("gpt-15", {"heads": 1}, "use an even width"),
        ("gpt-16", {"layers": 0}, "layers and heads of 1 or more"),
        ("gpt-16", {"heads": 0}, "layers and heads of 1 or more"),
        ("gpt-16", {"dropout": 1.0}, "dropout of 0 to below 1"),
    ],
)
def test_numbers_that_do_not_fit_together(reference: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        built(reference, **arguments)


def test_heads_are_64_wide_unless_told() -> None:
    for width, heads in ((32, 1), (64, 1), (128, 2), (320, 5)):
        model = build_model(f"gpt-{width}", {"layers": 1}, classes=V, input_shape=(9,), discrete=True)
        assert model.body.blocks[0].attention.heads == heads  # type: ignore[union-attr, index]


def test_data_that_do_not_fit_the_model() -> None:
    with pytest.raises(ModelError, match=r"gpt-16 takes sequences of token numbers.* tokens:FOLDER.* \(1, 8, 8\)"):
        build_model("gpt-16", {}, classes=3, input_shape=(1, 8, 8))
    with pytest.raises(ModelError, match="takes token numbers"):
        check_model(build_model("gpt-16", {}, classes=3, input_shape=(8,)), classes=3, example_input=torch.rand(2, 8))
    for reference in ("cnn-4", "resnet-4", "mlp-4", "timm:resnet18", "hydra:gpt-16"):
        with pytest.raises(ModelError, match="Use gpt-WIDTH, hf:PATH or a causal language model of your own"):
            build_model(reference, {"heads": 2}, classes=V, input_shape=(12,), discrete=True)
    with pytest.raises(ConfigError, match="'depth'; it takes width, classes, input_shape, layers, heads, mlp"):
        built(depth=3)
    assert split_head(built()) is not None
