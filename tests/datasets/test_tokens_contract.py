"""A packing contract from anywhere: damaged, truncated, forged. Each is a DataError that names the file."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline import identity
from pipeline.datasets import load_dataset
from pipeline.datasets.tokens import layout
from pipeline.errors import DataError
from tests.datasets.token_texts import tokenized, write_texts

pytest.importorskip("tokenizers")


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("contract")
    write_texts(folder / "texts", 16, longest=40)
    tokenized(folder / "out", folder / "texts")
    return folder / "out"


@pytest.fixture
def copy(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "out"))


def reseal(folder: Path, change: Callable[[dict[str, Any]], object] = lambda record: None) -> None:
    """A contract.json that agrees with the files as they are: what a forger would write."""
    record = json.loads((folder / layout.CONTRACT).read_text())
    record.pop("digest")
    change(record)
    for name, file in record.get("files", {}).items() if isinstance(record.get("files"), dict) else ():
        if isinstance(file, dict) and (folder / name).is_file():
            data = (folder / name).read_bytes()
            file |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (folder / layout.CONTRACT).write_text(json.dumps({**record, "digest": identity.digest(record)}))


def refused(folder: Path, name: str, message: str | None = None) -> None:
    with pytest.raises(DataError, match=message) as caught:
        load_dataset(f"tokens:{folder}")
    assert name in str(caught.value), caught.value


def test_resealing_alone_changes_nothing(copy: Path, sound: Path) -> None:
    reseal(copy)
    assert load_dataset(f"tokens:{copy}").digest() == load_dataset(f"tokens:{sound}").digest()


def test_no_contract(tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", "contract.json", "should be a folder that `softlabels tokenize` wrote")
    refused(tmp_path, "contract.json")


@pytest.mark.parametrize("name", [layout.CONTRACT, *layout.FILES])
@pytest.mark.parametrize("damage", ["gone", "short", "long", "flipped", "folder", "empty", "pipe"])
def test_every_damaged_file_is_named(copy: Path, name: str, damage: str) -> None:
    path = copy / name
    data = path.read_bytes()
    path.unlink()
    if damage == "folder":
        path.mkdir()
    elif damage == "pipe":
        os.mkfifo(path)
    elif damage != "gone":
        place = len(data) * 2 // 3
        changed = {
            "short": data[:-2],
            "long": data + b"\0",
            "flipped": data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :],
            "empty": b"",
        }
        path.write_bytes(changed[damage])
    refused(copy, name)


def test_random_flips_in_any_file_are_refused(sound: Path, tmp_path: Path) -> None:
    draw = random.Random(0)
    folder = Path(shutil.copytree(sound, tmp_path / "out"))
    for _ in range(60):
        path = folder / draw.choice([layout.CONTRACT, *layout.FILES])
        data = path.read_bytes()
        place = draw.randrange(len(data))
        path.write_bytes(data[:place] + bytes([data[place] ^ (1 << draw.randrange(8))]) + data[place + 1 :])
        refused(folder, path.name)
        path.write_bytes(data)
    load_dataset(f"tokens:{folder}")


FORGED: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "another format": (lambda r: r.update(format="zip"), "its format is softlabels-tokens"),
    "a later version": (lambda r: r.update(version=2), "has version 2, this release reads 1"),
    "no tokenizer": (lambda r: r.pop("tokenizer"), "an object 'tokenizer'"),
    "a vocabulary of text": (lambda r: r["tokenizer"].update(vocabulary="many"), "whole number 'vocabulary'"),
    "a huge vocabulary": (lambda r: r["tokenizer"].update(vocabulary=1 << 40), "whole number 'vocabulary'"),
    "another vocabulary": (lambda r: r["tokenizer"].update(vocabulary=7), "vocabulary.json.*should hold 7 texts"),
    "an end beyond": (lambda r: r["tokenizer"].update(end=r["tokenizer"]["vocabulary"]), "an end token below"),
    "another tokenizer": (lambda r: r["tokenizer"].update(digest="0" * 64), "tokenizer.json.*another tokenizer"),
    "a kind of lines": (lambda r: r["tokenizer"].update(kind="a\nb"), "should have a kind"),
    "a huge length": (lambda r: r["packing"].update(length=1 << 60), "whole number 'length'"),
    "a length of true": (lambda r: r["packing"].update(length=True), "whole number 'length'"),
    "a shorter length": (lambda r: r["packing"].update(length=5), "sequences.npy.*1 to 5 inputs"),
    "an odd packing": (lambda r: r["packing"].update(kind="loose"), "a packing that this release knows"),
    "one more option": (lambda r: r["packing"].update(more=1), "a packing that this release knows"),
    "maybe scored": (lambda r: r["packing"].update(score_boundaries="maybe"), "yes or no"),
    "other kind": (lambda r: r["packing"].update(kind="documents"), "sequences.npy.*reach into the next document"),
    "huge tokens": (lambda r: r.update(tokens=1 << 40), "tokens"),
    "no tokens": (lambda r: r.update(tokens=0), "whole number 'tokens'"),
    "fewer documents": (lambda r: r["documents"].update(train=1), "documents.npy"),
    "negative documents": (lambda r: r["documents"].update(train=-1), "documents of train"),
    "huge sequences": (lambda r: r["sequences"].update(test=1 << 40), "documents and sequences"),
    "sequences moved": (
        lambda r: r["sequences"].update(train=r["sequences"]["train"] - 1, test=r["sequences"]["test"] + 1),
        "outside the",
    ),
    "no files": (lambda r: r.update(files={}), "the size and sha256 of tokens.npy"),
    "no sequences": (lambda r: r["sequences"].update(train=0, validation=0, test=0), "documents and sequences"),
}


@pytest.mark.parametrize("how", FORGED)
def test_a_forged_record_is_refused(copy: Path, how: str) -> None:
    change, message = FORGED[how]
    reseal(copy, change)
    with pytest.raises(DataError, match=f"(?s){message}"):
        load_dataset(f"tokens:{copy}")


@pytest.mark.parametrize(
    "text", ["", "[]", "null", "{", '{"format": NaN}', "[" * 200_000, '{"format": "softlabels-tokens"}']
)
def test_a_record_that_is_none(copy: Path, text: str) -> None:
    (copy / layout.CONTRACT).write_text(text)
    refused(copy, layout.CONTRACT)


def test_numbers_that_are_none(copy: Path) -> None:
    text = (copy / layout.CONTRACT).read_text()
    for value in ("NaN", "1e999", "-1", "1.5", '"1"', "null", "{}", "[]", "9" * 5000):
        (copy / layout.CONTRACT).write_text(text.replace('"version": 1', f'"version": {value}'))
        refused(copy, layout.CONTRACT)


def edit(folder: Path, name: str, change: Callable[[np.ndarray], object]) -> None:
    """Change an array in its file, header and size as they were, and reseal."""
    array = np.load(folder / name)
    change(array)
    np.save(folder / name, array)
    shape, dtype = array.shape, array.dtype
    (folder / name).write_bytes(layout.header(dtype, shape) + array.tobytes())
    reseal(folder)


ARRAYS: dict[str, tuple[str, Callable[[np.ndarray], object]]] = {
    "a token beyond the vocabulary": (layout.TOKENS, lambda a: a.__setitem__(5, 65535)),
    "bits that are not counted": (layout.SCORED, lambda a: a.__setitem__(slice(None), 0)),
    "documents that go back": (layout.DOCUMENTS, lambda a: a.__setitem__(1, 0)),
    "documents from elsewhere": (layout.DOCUMENTS, lambda a: a.__setitem__(0, -1)),
    "documents beyond the end": (layout.DOCUMENTS, lambda a: a.__setitem__(-1, 1 << 40)),
    "a start before": (layout.SEQUENCES, lambda a: a.__setitem__((0, 0), -5)),
    "a stop beyond": (layout.SEQUENCES, lambda a: a.__setitem__((-1, 1), 1 << 62)),
    "the same sequence twice": (layout.SEQUENCES, lambda a: a.__setitem__(1, a[0])),
    "more scored than it has": (layout.SEQUENCES, lambda a: a.__setitem__((0, 2), 999)),
    "none scored": (layout.SEQUENCES, lambda a: a.__setitem__((0, 2), 0)),
    "another count": (layout.SEQUENCES, lambda a: a.__setitem__((0, 2), a[0, 2] - 1)),
    "bytes below zero": (layout.SEQUENCES, lambda a: a.__setitem__((0, 3), -1)),
    "the smallest number": (layout.SEQUENCES, lambda a: a.__setitem__((0, 1), -(2**63))),
}


@pytest.mark.parametrize("how", ARRAYS)
def test_forged_arrays_are_refused(copy: Path, how: str) -> None:
    name, change = ARRAYS[how]
    edit(copy, name, change)
    with pytest.raises(DataError, match=rf"{name}|{layout.SCORED}"):
        load_dataset(f"tokens:{copy}")


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        (layout.TOKENS, b"\x93NUMPY\x01\x00v\x00{'descr': 'O'}", "should be .* bytes, an array of"),
        (layout.DOCUMENTS, b"", "should be .* bytes"),
        (layout.NAMES, b"\xff\n", "should be UTF-8"),
        (layout.NAMES, b"a\na\n", "lines"),
        (layout.VOCABULARY, b'["a", "a"]', "should hold"),
        (layout.VOCABULARY, b"[" * 200_000, "should be JSON"),
        (layout.VOCABULARY, b'{"a": 1}', "should hold"),
        (layout.TOKENIZER, b"{", "should be JSON"),
        (layout.TOKENIZER, b"{}", "another tokenizer"),
    ],
)
def test_forged_files_are_refused(copy: Path, name: str, data: bytes, message: str) -> None:
    (copy / name).write_bytes(data)
    reseal(copy)
    refused(copy, name, message)


def test_names_that_occur_twice_or_cannot_be_written(copy: Path) -> None:
    lines = (copy / layout.NAMES).read_text().splitlines()
    for other in ([lines[1], *lines[1:]], ["", *lines[1:]], ["a\r", *lines[1:]]):
        (copy / layout.NAMES).write_bytes("".join(f"{line}\n" for line in other).encode())
        reseal(copy)
        refused(copy, layout.NAMES)


def test_half_a_surrogate_is_no_token(copy: Path) -> None:
    tokens = json.loads((copy / layout.VOCABULARY).read_text())
    (copy / layout.VOCABULARY).write_text(json.dumps(["\ud800", *tokens[1:]]))
    reseal(copy)
    refused(copy, layout.VOCABULARY, "no UTF-8 can spell")
    (copy / layout.VOCABULARY).write_text(json.dumps([tokens[1], *tokens[1:]]))
    reseal(copy)
    refused(copy, layout.VOCABULARY, "name each token once")


def test_a_record_that_is_too_large_is_not_read(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(layout_limits(), layout.VOCABULARY, 10)
    refused(copy, layout.VOCABULARY, "is larger than")


def layout_limits() -> dict[str, int]:
    from pipeline.datasets.tokens.contract import LARGEST

    return LARGEST


def test_arrays_are_what_numpy_reads(sound: Path) -> None:
    record = json.loads((sound / layout.CONTRACT).read_text())
    assert np.load(sound / layout.TOKENS, allow_pickle=False).shape == (record["tokens"],)
    assert np.load(sound / layout.SEQUENCES, mmap_mode="r").shape[1] == layout.COLUMNS
    assert int(np.load(sound / layout.SEQUENCES)[:, 2].sum()) == record["scored"]
