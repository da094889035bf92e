"""A model with its weights, held against the dataset it is to work on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.datasets import Dataset, load_dataset
from pipeline.errors import ModelError
from pipeline.models import build_model, check_model, load_model, save_weights


def saved(path: Path, **metadata: Any) -> Path:
    save_weights(path, build_model("mlp-2", {}, classes=10, input_shape=(1, 8, 8)), metadata)
    return path


def test_weights_that_fit_are_loaded(tmp_path: Path) -> None:
    digits = load_dataset("digits")
    told = {"class_names": list(digits.classes), "preprocessing": digits.preprocessing}
    for metadata in ({}, told, {"class_names": 3}):
        model = load_model("mlp-2", {}, saved(tmp_path / "m.safetensors", **metadata), digits, whose="it")
        again = load_model("mlp-2", {}, tmp_path / "m.safetensors", digits, whose="it")
        assert torch.equal(model.head.weight, again.head.weight)  # type: ignore[union-attr, arg-type]
    assert load_model("mlp-2", {}, None, digits, whose="it")


def test_weights_of_something_else_are_refused_by_name(tmp_path: Path) -> None:
    digits = load_dataset("digits")
    path = tmp_path / "m.safetensors"
    with pytest.raises(
        ModelError, match=r"the teacher \(.*m\.safetensors\) has the dataset's classes in another order"
    ):
        load_model("mlp-2", {}, saved(path, class_names=[*"1023456789"]), digits, whose="the teacher")
    with pytest.raises(ModelError, match="prepared as 'divided by 255'; digits prepares them as 'values 0 to 16"):
        load_model("mlp-2", {}, saved(path, preprocessing="divided by 255"), digits, whose="the teacher")


class Sequences(Dataset):
    """Token sequences of up to 6 tokens, of a vocabulary of 5."""

    discrete = True

    def __init__(self, classes: str = "abcde") -> None:
        super().__init__(name="sequences", classes=classes, ids=["0", "1"], input_shape=(6,))

    def load(self, row: int) -> torch.Tensor:
        return torch.arange(6) % 5


def test_models_of_token_sequences(tmp_path: Path) -> None:
    data, path = Sequences(), tmp_path / "m.safetensors"
    model = load_model("gpt-8", {"layers": 1}, None, data, whose="it")
    save_weights(path, model, {"class_names": list(data.classes), "preprocessing": data.preprocessing})
    again = load_model("gpt-8", {"layers": 1}, path, data, whose="it")
    assert torch.equal(again(data.load(0)[None]), model(data.load(0)[None]))
    check_model(again, classes=5, example_input=data.load(0)[None], class_names=data.classes)
    with pytest.raises(ModelError, match=r"the teacher .* another vocabulary .* token 3 is 'd' for it and 'x' in the"):
        load_model("gpt-8", {"layers": 1}, path, Sequences("abcxe"), whose="the teacher")
    with pytest.raises(ModelError, match="cnn-4 takes no token numbers"):
        load_model("cnn-4", {}, None, data, whose="it")
