"""A cache of other tokens is refused with the word for what differs: the tokenizer, the packing or the text."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pipeline.datasets import Tokens
from pipeline.errors import CacheMismatchError
from pipeline.sources import match
from tests.datasets.token_texts import tokenized, write_texts

pytest.importorskip("tokenizers")


@dataclass(frozen=True)
class Held:
    """What ``match`` asks of a cache, as a cache of ``dataset`` would answer."""

    dataset: Tokens
    class_names: tuple[str, ...]
    preprocessing: str | None
    address: str = "caches/tokens"
    manifest: Any = field(default_factory=lambda: SimpleNamespace(knows_content=True))

    @classmethod
    def of(cls, dataset: Tokens) -> Held:
        return cls(dataset, dataset.classes, dataset.preprocessing)

    @property
    def classes(self) -> int:
        return len(self.class_names)

    @property
    def identity(self) -> dict[str, Any]:
        views = {"transform": "none", "seed": 0}
        return {"preprocessing": self.preprocessing, "views": views, "data": {"digest": self.dataset.digest()}}

    def splits(self) -> tuple[str, ...]:
        return ("train", "validation", "test")

    def examples(self, split: str) -> int:
        return len(self.dataset.rows(split))

    def lengths(self, split: str) -> Any:
        return self.dataset.lengths[self.dataset.rows(split)]

    def lengths_of(self, split: str, entries: Any, view: int = 0) -> Any:
        return self.lengths(split)[entries]

    def ids(self, split: str) -> list[str]:
        return [self.dataset.ids[row] for row in self.dataset.rows(split)]

    def input_digests(self, split: str) -> list[str]:
        return [self.dataset.content_digest(int(row)) for row in self.dataset.rows(split)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("matching")
    write_texts(folder / "texts")
    write_texts(folder / "other" / "texts", seed=1)
    return folder


@pytest.fixture(scope="module")
def dataset(folder: Path) -> Tokens:
    return tokenized(folder / "out", folder / "texts")


def refusal(cache: Held, dataset: Tokens) -> str:
    with pytest.raises(CacheMismatchError) as caught:
        match(cache, dataset, "train")  # type: ignore[arg-type]
    return str(caught.value)


def test_the_same_tokens_match(folder: Path, dataset: Tokens) -> None:
    again = tokenized(folder / "again", folder / "texts")
    found = match(Held.of(dataset), again, "train")  # type: ignore[arg-type]
    assert np.array_equal(found.entry_of[found.rows], np.arange(len(found.rows))) and not found.missing


def test_another_vocabulary(folder: Path, dataset: Tokens) -> None:
    smaller = tokenized(folder / "smaller", folder / "texts", vocabulary=280)
    said = refusal(Held.of(dataset), smaller)
    assert "made with another tokenizer" in said and "300 tokens there, 280 here" in said and "bpe-280" in said
    other = tokenized(folder / "swapped", folder / "other" / "texts")
    assert "another tokenizer" in refusal(Held.of(dataset), other)
    names = (dataset.classes[1], dataset.classes[0], *dataset.classes[2:])
    assert "token 0 is '!' there, '<|end|>' here" in refusal(replace(Held.of(dataset), class_names=names), dataset)


def test_the_same_vocabulary_with_other_rules(dataset: Tokens) -> None:
    words = dataset.preprocessing.replace(dataset.contract.record["tokenizer"]["digest"][:12], "0" * 12)
    said = refusal(replace(Held.of(dataset), preprocessing=words), dataset)
    assert "another tokenizer" in said and "the same vocabulary, and other rules" in said and "000000000000" in said


@pytest.mark.parametrize("options", [{"length": 8}, {"score_boundaries": True}, {"packing": "documents"}])
def test_another_packing(folder: Path, dataset: Tokens, options: dict[str, Any]) -> None:
    name = "-".join(map(str, options.values()))
    other = tokenized(folder / name, folder / "texts", **options)
    said = refusal(Held.of(dataset), other)
    assert "another packing" in said and "'packed to 16, boundaries not scored' there" in said
    assert other.contract.packing.words in said and "of the same tokenizer" in said


def test_other_text(folder: Path, dataset: Tokens) -> None:
    other = tokenized(folder / "text", folder / "other" / "texts", tokenizer=str(folder / "out"))
    assert other.classes == dataset.classes and other.preprocessing == dataset.preprocessing
    said = refusal(Held.of(dataset), other)
    assert "made from other text" in said and "train/0000000" in said


def test_labels_of_no_tokens_at_all(dataset: Tokens) -> None:
    said = refusal(replace(Held.of(dataset), preprocessing="values as they are"), dataset)
    assert "prepared as 'values as they are'" in said and "holds tokens" in said


def test_a_cache_that_does_not_say_how_it_was_made(dataset: Tokens) -> None:
    unknown = replace(Held.of(dataset), preprocessing=None)
    assert "how inputs were prepared" in match(unknown, dataset, "train").unchecked  # type: ignore[arg-type]
    assert "unnamed there" in refusal(replace(unknown, class_names=dataset.classes[:-1]), dataset)


def test_some_of_the_tokens_are_no_specialist(dataset: Tokens) -> None:
    some = replace(Held.of(dataset), class_names=dataset.classes[:-1])
    with pytest.raises(CacheMismatchError, match="another tokenizer"):
        match(some, dataset, "train", partly=True)  # type: ignore[arg-type]
