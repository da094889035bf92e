"""``tokens:FOLDER``: what is loaded, predicted and counted, against the documents tokenized here one by one."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline import identity
from pipeline.datasets import Tokens, load_dataset
from pipeline.datasets.base import check_dataset
from pipeline.datasets.knowing import knowing
from pipeline.datasets.tokens.tokenizer import open_tokenizer
from pipeline.errors import ConfigError, DataError
from pipeline.identity import SPLITS
from tests.datasets.token_texts import tokenized, write_texts

pytest.importorskip("tokenizers")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokens")
    write_texts(folder / "texts")
    return folder


@pytest.fixture(scope="module")
def packed(folder: Path) -> Tokens:
    return tokenized(folder / "packed", folder / "texts")


def documents(dataset: Tokens, folder: Path) -> dict[str, list[list[int]]]:
    """Token ids of each split's documents with the end, tokenized one by one."""
    contract = dataset.contract
    tokenizer = open_tokenizer(str(contract.folder / "tokenizer.json"))
    found: dict[str, list[list[int]]] = {}
    names = iter(contract.names)
    for split in SPLITS:
        texts = [(folder / next(names)).read_bytes().decode() for _ in range(contract.record["documents"][split])]
        found[split] = [[*tokenizer.encode([text])[0].ids.tolist(), dataset.end] for text in texts]
    return found


def expected_packed(runs: list[list[int]], length: int, boundaries: bool) -> list[tuple[list[int], list[int]]]:
    flat = [(token, place > 0 or boundaries) for run in runs for place, token in enumerate(run)]
    found = []
    for start in range(0, len(flat) - 1, length):
        window = flat[start : start + length + 1]
        targets = [token if scored else -1 for token, scored in window[1:]]
        if any(target >= 0 for target in targets):
            found.append(([token for token, _ in window[:-1]], targets))
    return found


def padded(values: list[int], length: int, filling: int) -> list[int]:
    return values + [filling] * (length - len(values))


@pytest.mark.parametrize("boundaries", [False, True])
def test_packed_sequences_are_the_joined_documents(folder: Path, boundaries: bool) -> None:
    dataset = tokenized(folder / f"b{boundaries}", folder / "texts", score_boundaries=boundaries)
    assert dataset.input_shape == (16,) and dataset.discrete and set(dataset.labels.tolist()) == {-1}
    for split, runs in documents(dataset, folder).items():
        rows = dataset.rows(split)
        expected = expected_packed(runs, 16, boundaries)
        assert len(rows) == len(expected) and len(runs) > 1
        targets = dataset.targets(rows)
        assert targets.dtype == np.int64
        for row, (inputs, wanted), found in zip(rows.tolist(), expected, targets, strict=True):
            x = dataset.load(row)
            assert x.dtype == torch.int64 and x.tolist() == padded(inputs, 16, 0)
            assert found.tolist() == padded(wanted, 16, -1)
    everything = np.arange(len(dataset))
    assert (
        np.array_equal(dataset.lengths, (dataset.targets(everything) >= 0).sum(axis=1)) and dataset.lengths.min() >= 1
    )


def test_ids_splits_and_words(packed: Tokens) -> None:
    assert packed.ids[:2] == ["train/00000000", "train/00000001"]
    assert [packed.ids[int(packed.rows(split)[0])] for split in SPLITS] == [f"{split}/00000000" for split in SPLITS]
    kind, size = packed.contract.record["tokenizer"]["kind"], len(packed.classes)
    digest = packed.contract.record["tokenizer"]["digest"][:12]
    assert packed.preprocessing == f"tokens of {kind}-{size} ({digest}), packed to 16, boundaries not scored"
    check_dataset(packed)


def test_the_text_of_what_is_predicted_is_as_long_as_it_says(packed: Tokens) -> None:
    table = {token: number for number, token in enumerate(packed.classes)}
    tokenizer = open_tokenizer(str(packed.contract.folder / "tokenizer.json"))
    assert table["<|end|>"] == packed.end
    for row in range(len(packed)):
        targets = packed.targets(np.array([row]))[0]
        sizes = [len(packed.classes[t]) for t in targets.tolist() if t >= 0 and t != packed.end]
        assert packed.bytes_of(np.array([row])).tolist() == [sum(sizes)]
    record = packed.contract.record
    assert packed.bytes_of(np.arange(len(packed))).sum() == record["scored_bytes"] and tokenizer.end == packed.end


def test_text_comes_back(packed: Tokens, folder: Path) -> None:
    text = packed.text_of(np.array(packed.contract.tokens()[: packed.contract.documents[1]]))
    assert text.removesuffix("<|end|>").encode() == (folder / packed.contract.names[0]).read_bytes()
    assert packed.text_of([]) == ""
    with pytest.raises(DataError, match=f"token ids should be 0 to {len(packed.classes) - 1}"):
        packed.text_of([len(packed.classes)])


def test_a_sequence_per_document_in_pieces_or_cut_off(folder: Path) -> None:
    pieces = tokenized(folder / "pieces", folder / "texts", packing="documents", length=32)
    cut = tokenized(folder / "cut", folder / "texts", packing="documents", length=32, truncate=True)
    by_id = {name: pieces.load(row) for row, name in enumerate(pieces.ids)}
    runs = documents(pieces, folder)
    expected: dict[str, list[int]] = {}
    names = iter(pieces.contract.names)
    for split in SPLITS:
        for run in runs[split]:
            name = next(names)
            for piece, start in enumerate(range(0, len(run) - 1, 32)):
                expected[name + (f"#{piece}" if piece else "")] = run[start : start + 33]
    assert list(by_id) == list(expected) and any("#2" in name for name in by_id)
    for row, run in enumerate(expected.values()):
        assert by_id[pieces.ids[row]].tolist() == padded(run[:-1], 32, 0)
        assert pieces.targets(np.array([row]))[0].tolist() == padded(run[1:], 32, -1)
    assert cut.ids == [name for name in expected if "#" not in name]
    assert torch.equal(cut.load(3), by_id[cut.ids[3]])
    assert pieces.contract.record["scored"] == pieces.contract.record["tokens"] - len(pieces.contract.names)


def test_only_completions_are_scored_and_what_has_none_is_left_out(tmp_path: Path) -> None:
    rows = [{"q": "2 + 2 = ", "a": "4"}, {"q": "what is this? " * 20, "a": "long"}, {"q": "", "a": "alone"}]
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = {"packing": "documents", "length": 12, "prompt": "q", "completion": "a", "held_out": 0.0}
    dataset = tokenized(tmp_path / "out", path, **options)
    said: dict[str, str] = {}
    for row, name in enumerate(dataset.ids):
        targets = dataset.targets(np.array([row]))[0]
        document = name.partition("#")[0]
        said[document] = said.get(document, "") + dataset.text_of(targets[targets >= 0])
    # The first token of a document has nothing before it that could predict it.
    first = dataset.text_of(dataset.load(dataset.ids.index("data.jsonl/3"))[:1].numpy())
    assert said == {
        "data.jsonl/1": "4<|end|>",
        "data.jsonl/2": "long<|end|>",
        "data.jsonl/3": "alone<|end|>"[len(first) :],
    }
    x = dataset.load(dataset.ids.index("data.jsonl/1"))
    assert dataset.text_of(x[: int((x != 0).sum())].numpy()) == "2 + 2 = 4"
    assert "data.jsonl/2" not in dataset.ids and dataset.contract.record["sequences"]["left_out"] > 3


def test_equal_runs_give_equal_bytes_and_the_digest_follows_tokens_and_mask(folder: Path, packed: Tokens) -> None:
    again = tokenized(folder / "again", folder / "texts")
    for path in sorted((folder / "again").iterdir()):
        assert path.read_bytes() == (folder / "packed" / path.name).read_bytes(), path.name
    assert (
        again.digest()
        == packed.digest()
        == identity.digest_dataset(
            (packed.ids[row], SPLITS[packed.splits[row]], packed.content_digest(row)) for row in range(len(packed))
        )
    )
    assert again.known_digest(7) == packed.content_digest(7)
    boundaries = tokenized(folder / "other", folder / "texts", score_boundaries=True)
    changed = [row for row in range(len(packed)) if packed.content_digest(row) != boundaries.content_digest(row)]
    at = np.arange(len(packed))
    masks = (packed.targets(at) != boundaries.targets(at)).any(axis=1)
    assert changed == np.flatnonzero(masks).tolist() and 0 < len(changed) < len(packed)


def test_it_travels_to_a_worker(packed: Tokens) -> None:
    packed.load(0)
    sent = pickle.dumps(packed)
    other = pickle.loads(sent)
    assert torch.equal(other.load(5), packed.load(5)) and other.digest() == packed.digest()
    assert np.array_equal(other.targets(np.array([5])), packed.targets(np.array([5])))


def test_a_vocabulary_beyond_two_bytes_and_a_named_tokenizer(folder: Path, packed: Tokens) -> None:
    path = str(packed.contract.folder)
    wide = tokenized(folder / "wide", folder / "texts", tokenizer=path, pad_vocabulary=70_000)
    assert wide.contract.tokens().dtype == np.dtype("<u4") and len(wide.classes) == 70_000
    assert torch.equal(wide.load(4), packed.load(4)) and wide.content_digest(4) == packed.content_digest(4)
    assert wide.text_of(wide.load(0)[:5].numpy()) == packed.text_of(packed.load(0)[:5].numpy())


def test_what_needs_examples_of_another_kind_refuses_tokens(packed: Tokens) -> None:
    with pytest.raises(ConfigError, match="--classes is for examples of one label each"):
        knowing(packed, packed.classes[:2])
    with pytest.raises(DataError, match="needs examples made of values"):
        load_dataset(f"munge:tokens:{packed.contract.folder}")


def test_other_datasets_have_one_position_each() -> None:
    digits = load_dataset("digits")
    rows = np.array([3, 5])
    assert not digits.discrete and (digits.lengths == 1).all() and len(digits.lengths) == len(digits)
    assert digits.targets(rows).tolist() == digits.labels[rows][:, None].tolist()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"load": lambda row: torch.full((16,), 999)}, "should hold token ids from 0 to 29"),
        ({"load": lambda row: torch.full((16,), -1)}, "should hold token ids"),
        ({"load": lambda row: torch.zeros(16)}, r"prepared as int64 of shape \(16,\); found float32"),
        ({"load": lambda row: torch.zeros(4, dtype=torch.int64)}, r"found int64 of shape \(4,\)"),
    ],
)
def test_token_ids_are_checked(packed: Tokens, change: dict[str, Any], message: str) -> None:
    other = pickle.loads(pickle.dumps(packed))
    vars(other).update(change)
    with pytest.raises(DataError, match=message):
        check_dataset(other)
