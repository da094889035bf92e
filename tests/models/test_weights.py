from __future__ import annotations

import json
import os
import pickle
import struct
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

from pipeline.errors import ModelError
from pipeline.models import build_model, load_weights, read_metadata, save_weights, state_digest


def small(seed: int = 0, reference: str = "cnn-2") -> nn.Module:
    torch.manual_seed(seed)
    return build_model(reference, classes=3, input_shape=(1, 8, 8))


def same(one: nn.Module, two: nn.Module) -> bool:
    a, b = one.state_dict(), two.state_dict()
    return list(a) == list(b) and all(torch.equal(a[n], b[n]) for n in a)


def test_weights_and_metadata_come_back(tmp_path: Path) -> None:
    metadata = {"reference": "cnn-2", "class_names": ["a", "b"], "accuracy": 0.5, "nested": {"x": None}}
    save_weights(tmp_path / "deep" / "m.safetensors", small(), metadata)
    other = small(1)
    assert not same(other, small())
    assert load_weights(other, tmp_path / "deep" / "m.safetensors") == metadata
    assert same(other, small()) and state_digest(other) == state_digest(small())
    assert read_metadata(tmp_path / "deep" / "m.safetensors") == metadata
    assert os.listdir(tmp_path / "deep") == ["m.safetensors"]


def test_safetensors_are_known_without_their_suffix(tmp_path: Path) -> None:
    save_weights(tmp_path / "weights", small(), {"a": 1})
    assert load_weights(small(1), tmp_path / "weights") == {"a": 1}


def test_equal_weights_are_equal_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_weights(tmp_path / name, small(), {"one": 1, "two": [2.5]})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_files_of_others_have_no_metadata(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    safetensors.torch.save_file(small().state_dict(), path, {"format": "pt"})
    assert read_metadata(path) == {}
    other = small(1)
    assert load_weights(other, path) == {} and same(other, small())


class Tied(nn.Module):
    def __init__(self, tie: bool = True) -> None:
        super().__init__()
        self.encode, self.decode = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
        if tie:
            self.decode.weight = self.encode.weight


@pytest.mark.parametrize("tie", [True, False])
def test_tied_weights_are_stored_once_and_fill_every_name(tmp_path: Path, tie: bool) -> None:
    path, model = tmp_path / "m.safetensors", Tied()
    save_weights(path, model)
    assert len(safetensors.torch.load_file(path)) == 1
    other = Tied(tie)
    load_weights(other, path)
    assert same(other, model)


def test_a_file_that_leaves_tied_names_out_still_fits_a_tied_model(tmp_path: Path) -> None:
    path, model = tmp_path / "m.safetensors", Tied()
    safetensors.torch.save_model(model, str(path))
    other = Tied()
    load_weights(other, path)
    assert same(other, model)
    with pytest.raises(ModelError, match="1 missing"):
        load_weights(Tied(tie=False), path)


def test_strided_and_overlapping_tensors(tmp_path: Path) -> None:
    class Views(nn.Module):
        def __init__(self, base: torch.Tensor) -> None:
            super().__init__()
            self.register_buffer("turned", base.T)
            self.register_buffer("part", base[1:])
            self.register_buffer("empty", base[:0])

    model, other = Views(torch.arange(6.0).reshape(2, 3)), Views(torch.zeros(2, 3))
    save_weights(tmp_path / "m.safetensors", model)
    load_weights(other, tmp_path / "m.safetensors")
    assert torch.equal(other.turned, model.turned) and torch.equal(other.part, model.part)
    assert other.turned[0, 0] == 0 and other.part[0, 0] == 3


def test_state_that_is_no_tensor(tmp_path: Path) -> None:
    class Extra(nn.Linear):
        def get_extra_state(self) -> Any:
            return {"a": 1}

        def set_extra_state(self, state: Any) -> None:
            raise AssertionError(state)

    for act in (lambda m: save_weights(tmp_path / "m", m), state_digest):
        with pytest.raises(ModelError, match="tensors only"):
            act(Extra(2, 2))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {"state_dict": s, "epoch": 3},
        lambda s: {"model": s, "optimizer": {"lr": 0.1}},
        lambda s: {"model_state_dict": s},
        lambda s: {f"module.{k}": v for k, v in s.items()},
        lambda s: {"state_dict": {f"_orig_mod.{k}": v for k, v in s.items()}},
    ],
)
def test_checkpoints_of_torch(tmp_path: Path, wrap: Any) -> None:
    torch.save(wrap(small().state_dict()), tmp_path / "m.pt")
    other = small(1)
    assert load_weights(other, tmp_path / "m.pt") == {}
    assert same(other, small())


class Malicious:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.mark),))


@pytest.mark.parametrize("name", ["m.pt", "m.bin", "m.safetensors", "m.pkl", "m"])
@pytest.mark.parametrize("kind", ["pickle", "torch", "torch legacy"])
def test_nothing_in_a_file_is_ever_executed(tmp_path: Path, name: str, kind: str) -> None:
    path, mark = tmp_path / name, tmp_path / "executed"
    content = {"state_dict": small().state_dict(), "more": Malicious(mark)}
    if kind == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == "torch")
    with pytest.raises(ModelError, match=r"weights alone|should be a safetensors file"):
        load_weights(small(), path)
    assert not mark.exists()


def test_a_whole_pickled_model_is_refused(tmp_path: Path) -> None:
    torch.save(small(), tmp_path / "m.pt")
    with pytest.raises(ModelError, match=r"nothing in it could run .* with torch\.save\(model\.state_dict\(\)"):
        load_weights(small(), tmp_path / "m.pt")


@pytest.mark.parametrize("content", [3, [torch.zeros(1)], {}, {"epoch": 3}, {"model": {"a": 1}}])
def test_checkpoints_without_a_state_dict(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "m.pt")
    with pytest.raises(ModelError, match="should hold a state dict"):
        load_weights(small(), tmp_path / "m.pt")


HUGE = struct.pack("<Q", 1 << 40) + b"{}"
DEEP = b"[" * 50_000


@pytest.mark.parametrize(
    "content",
    [b"", b"short", HUGE, struct.pack("<Q", 2) + b"[]", struct.pack("<Q", len(DEEP)) + DEEP, b"\0" * 100],
    ids=["empty", "short", "huge", "list", "deep", "zeros"],
)
def test_files_that_are_no_safetensors(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(content)
    for act in (lambda: read_metadata(path), lambda: load_weights(small(), path)):
        with pytest.raises(ModelError, match=r"m\.safetensors should be a safetensors file"):
            act()


def test_damaged_and_absent_files(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_weights(path, small())
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ModelError, match="cannot be read"):
        load_weights(small(), path)
    torch.save(small().state_dict(), tmp_path / "m.pt")
    (tmp_path / "m.pt").write_bytes((tmp_path / "m.pt").read_bytes()[:300])
    with pytest.raises(ModelError, match="was not loaded"):
        load_weights(small(), tmp_path / "m.pt")
    for act in (lambda: load_weights(small(), tmp_path / "x.pt"), lambda: read_metadata(tmp_path / "x.pt")):
        with pytest.raises(ModelError, match="there are no weights at"):
            act()


def test_a_folder_is_no_file_and_bytes_at_random_are_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"is a folder \(it holds no"):
        load_weights(small(), tmp_path)
    save_weights(tmp_path / "m.safetensors", small())
    with pytest.raises(ModelError, match=r"is a folder \(it holds m\.safetensors\)"):
        load_weights(small(), tmp_path)
    (tmp_path / "notes.pt").write_text("s: [a, b]\n")
    with pytest.raises(ModelError, match="was not loaded"):
        load_weights(small(), tmp_path / "notes.pt")


def test_the_advice_of_torch_to_load_without_its_guard_is_not_passed_on(tmp_path: Path) -> None:
    torch.save(small(), tmp_path / "m.pt")
    with pytest.raises(ModelError) as raised:
        load_weights(small(), tmp_path / "m.pt")
    assert "it names pipeline.models" in str(raised.value) and "weights_only" not in str(raised.value)


def test_metadata_that_lies_is_no_metadata(tmp_path: Path) -> None:
    tensors = small().state_dict()
    for text in ('"text"', '{"metadata": 3, "aliases": [1]}', '{"aliases": {"head.bias": "nowhere", "x": "y"}}'):
        safetensors.torch.save_file(tensors, tmp_path / "m.safetensors", {"softlabels": text})
        assert load_weights(small(1), tmp_path / "m.safetensors") == {}


def test_what_does_not_fit_is_reported_together(tmp_path: Path) -> None:
    save_weights(tmp_path / "m.safetensors", small())
    with pytest.raises(ModelError) as caught:
        load_weights(build_model("cnn-3", classes=3, input_shape=(1, 8, 8)), tmp_path / "m.safetensors")
    assert "of another shape (stage1.0.weight (2, 1, 3, 3) for (3, 1, 3, 3)," in str(caught.value)
    mlp = small(reference="mlp-4")
    before = state_digest(mlp)
    with pytest.raises(ModelError) as caught:
        load_weights(mlp, tmp_path / "m.safetensors")
    assert "2 missing (hidden.weight, hidden.bias)" in str(caught.value) and "unexpected (" in str(caught.value)
    assert state_digest(mlp) == before


def test_the_digest_follows_values_names_and_types_but_no_layout() -> None:
    linear = nn.Linear(3, 3)
    base = state_digest(linear)
    turned = nn.Linear(3, 3)
    turned.load_state_dict(linear.state_dict())
    turned.weight.data = turned.weight.data.T.contiguous().T
    assert state_digest(turned) == base
    assert (
        len({base, state_digest(linear.bfloat16()), state_digest(nn.Sequential(linear)), state_digest(nn.Linear(3, 3))})
        == 4
    )


def test_the_metadata_is_json_under_one_key(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_weights(path, small(), {"b": 1, "a": "é"})
    with safetensors.safe_open(path, "pt") as file:
        held = file.metadata()
    assert list(held) == ["softlabels"] and json.loads(held["softlabels"])["metadata"] == {"a": "é", "b": 1}
