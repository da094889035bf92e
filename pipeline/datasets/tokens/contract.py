"""Opening a packing contract: everything in it is checked before anything of it is used.

A contract may come from anywhere. Sizes and digests are held against ``contract.json``, that against its own digest,
ranges against each other, token ids against the vocabulary. It costs one pass over the files.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline import identity
from pipeline.datasets.base import check_ids
from pipeline.datasets.tokens import layout
from pipeline.datasets.tokens.packing import KINDS, MAX_LENGTH, PACKED, Ints, Packing, sequence_ids, sums_over
from pipeline.datasets.tokens.tokenizer import MAX_VOCABULARY
from pipeline.errors import DataError, first_line
from pipeline.identity import SPLITS

LARGEST = {layout.CONTRACT: 1 << 20, layout.VOCABULARY: 1 << 28, layout.TOKENIZER: 1 << 28, layout.NAMES: 1 << 34}
"""Bytes of what is read into memory whole; a larger file is refused before it is."""

CHUNK = 1 << 22
_HEX, _WORD = re.compile(r"[0-9a-f]{64}"), re.compile(r"[a-z0-9_-]{1,32}")


@dataclass(frozen=True)
class Contract:
    """A checked packing contract.

    - ``record``: the content of contract.json; ``packing``, ``tokenizer_name`` ("bpe-4096 (1a2b3c4d5e6f)") from it;
    - ``vocabulary``: V texts; ``end``: the id of the end token;
    - ``sequences`` (N, 4) int64: start, stop, scored positions, bytes; ``counts``: N of each split;
    - ``ids``: N of them; ``documents`` (D,) int64: where each of the D documents ``names`` begins.
    """

    folder: Path
    record: Mapping[str, Any]
    packing: Packing
    tokenizer_name: str
    vocabulary: tuple[str, ...]
    end: int
    sequences: Ints
    counts: tuple[int, ...]
    ids: list[str]
    documents: Ints
    names: list[str]

    def tokens(self) -> npt.NDArray[Any]:
        """A memory map of all token ids (tokens,), uint16 or uint32."""
        return layout.open_array(
            self.folder / layout.TOKENS, layout.token_type(len(self.vocabulary)), (self.record["tokens"],)
        )

    def scored(self) -> npt.NDArray[Any]:
        """A memory map of the scored mask, eight tokens to a byte; see ``layout.bits``."""
        return layout.open_array(self.folder / layout.SCORED, np.dtype("u1"), ((self.record["tokens"] + 7) // 8,))


def open_contract(folder: Path) -> Contract:
    """The packing contract in ``folder``. Raises DataError naming the file that is missing, damaged or not sound."""
    record = _read_record(folder)
    vocabulary = _read_vocabulary(folder, record)
    if _read_json(folder, layout.TOKENIZER, digest=True) != record["tokenizer"]["digest"]:
        raise _damaged(folder, layout.TOKENIZER, "is another tokenizer than contract.json says")
    kind = f"{record['tokenizer']['kind']}-{len(vocabulary)} ({identity.short(record['tokenizer']['digest'])})"
    packing = Packing(**record["packing"])
    total, documents_of = record["tokens"], [record["documents"][split] for split in SPLITS]
    counts = tuple(record["sequences"][split] for split in SPLITS)
    raw: Any = layout.open_array(folder / layout.DOCUMENTS, np.dtype("<i8"), (sum(documents_of),))
    documents: Ints = np.array(raw, np.int64)
    if documents[0] != 0 or (np.diff(documents) <= 0).any() or documents[-1] >= total:
        raise _damaged(folder, layout.DOCUMENTS, f"should hold ascending places among the {total} tokens, from 0 on")
    names = _read_names(folder, len(documents))
    raw = layout.open_array(folder / layout.SEQUENCES, np.dtype("<i8"), (sum(counts), layout.COLUMNS))
    sequences: Ints = np.array(raw, np.int64)
    ids = _check_sequences(folder, sequences, packing, counts, documents_of, documents, names, total)
    found = Contract(
        folder, record, packing, kind, vocabulary, record["tokenizer"]["end"], sequences, counts, ids, documents, names
    )
    _check_tokens(found)
    return found


def _damaged(folder: Path, name: str, what: str) -> DataError:
    return DataError(f"{folder / name} {what}. It is damaged, or no packing contract: tokenize again")


def _read_whole(folder: Path, name: str) -> bytes:
    if layout.file_size(folder / name) > LARGEST[name]:
        raise _damaged(folder, name, f"is larger than {LARGEST[name] >> 20} MiB")
    with layout.open_file(folder / name) as file:
        return file.read()


def _read_json(folder: Path, name: str, *, digest: bool = False) -> Any:
    """The JSON value of a file, or the digest of its canonical spelling."""
    data = _read_whole(folder, name)
    try:
        value = json.loads(data)
        return identity.digest(value) if digest else value
    except (ValueError, RecursionError) as error:
        raise _damaged(folder, name, f"should be JSON: {first_line(error)}") from None


def _read_record(folder: Path) -> dict[str, Any]:
    """contract.json, every field of it of the right type, and the size and digest of every file as it says."""
    if not folder.is_dir() or not (folder / layout.CONTRACT).exists():
        raise DataError(
            f"tokens:{folder} should be a folder that `softlabels tokenize` wrote; it holds no {layout.CONTRACT}"
        )
    record = _read_json(folder, layout.CONTRACT)
    if not isinstance(record, dict) or record.get("format") != layout.FORMAT:
        raise _damaged(folder, layout.CONTRACT, f"should say that its format is {layout.FORMAT}")
    if record.get("version") != layout.VERSION:
        raise DataError(
            f"{folder / layout.CONTRACT} has version {record.get('version')!r:.20}, this release reads "
            f"{layout.VERSION}. Use the release that wrote it, or tokenize again"
        )
    problem = _first_problem(record)
    if problem is None:
        try:
            told = identity.digest({name: value for name, value in record.items() if name != "digest"})
        except (ValueError, RecursionError):
            told = ""
        problem = None if told == record["digest"] else "does not have the digest that it says"
    if problem is not None:
        raise _damaged(folder, layout.CONTRACT, problem)
    for name in layout.FILES:
        size, sha256 = layout.file_size(folder / name), record["files"][name]["sha256"]
        if size != record["files"][name]["bytes"]:
            raise _damaged(folder, name, f"should have {record['files'][name]['bytes']:,} bytes, and has {size:,}")
        if layout.file_digest(folder / name)[1] != sha256:
            raise _damaged(folder, name, f"has another content than {layout.CONTRACT} says (sha256)")
    return record


def _first_problem(record: Mapping[str, Any]) -> str | None:
    """What is wrong with the fields of contract.json."""
    objects = ("tokenizer", "text", "packing", "documents", "sequences", "files")
    for name in objects:
        if not isinstance(record.get(name), dict):
            return f"should have an object {name!r}"
    tokenizer, packing, text = record["tokenizer"], record["packing"], record["text"]
    whole = [
        ("vocabulary", tokenizer.get("vocabulary"), 1, MAX_VOCABULARY),
        ("end", tokenizer.get("end"), 0, MAX_VOCABULARY),
        ("length", packing.get("length"), 1, MAX_LENGTH),
        ("tokens", record.get("tokens"), 1, 1 << 48),
        ("left_out", record["sequences"].get("left_out"), 0, 1 << 48),
        *((f"documents of {split}", record["documents"].get(split), 0, 1 << 40) for split in SPLITS),
        *((f"sequences of {split}", record["sequences"].get(split), 0, 1 << 48) for split in SPLITS),
    ]
    for name, value, low, high in whole:
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            return f"should have a whole number {name!r} from {low} to {high}; found {value!r:.40}"
    if tokenizer["end"] >= tokenizer["vocabulary"]:
        return f"should have an end token below {tokenizer['vocabulary']}; found {tokenizer['end']}"
    if set(packing) != set(Packing().as_dict()) or packing["kind"] not in KINDS:
        return "should have a packing that this release knows"
    if not all(isinstance(packing[name], bool) for name in ("score_boundaries", "truncate")):
        return "should say yes or no of each option of its packing"
    for name, value, pattern in (
        ("kind", tokenizer.get("kind"), _WORD),
        ("tokenizer's digest", tokenizer.get("digest"), _HEX),
        ("text's digest", text.get("digest"), _HEX),
        ("digest", record.get("digest"), _HEX),
        ("identity", record.get("identity"), _HEX),
    ):
        if not isinstance(value, str) or not pattern.fullmatch(value):
            return f"should have a {name}; found {value!r:.40}"
    for name in layout.FILES:
        file = record["files"].get(name)
        if not isinstance(file, dict) or not isinstance(file.get("bytes"), int) or "sha256" not in file:
            return f"should have the size and sha256 of {name}"
    documents, sequences = (sum(record[k][split] for split in SPLITS) for k in ("documents", "sequences"))
    if not 1 <= documents <= record["tokens"] or not 1 <= sequences <= record["tokens"]:
        return f"should have 1 to {record['tokens']} documents and sequences; found {documents} and {sequences}"
    return None


def _read_vocabulary(folder: Path, record: Mapping[str, Any]) -> tuple[str, ...]:
    found, size = _read_json(folder, layout.VOCABULARY), record["tokenizer"]["vocabulary"]
    if not isinstance(found, list) or len(found) != size or not all(isinstance(token, str) for token in found):
        raise _damaged(folder, layout.VOCABULARY, f"should hold {size} texts")
    if len(set(found)) != size:
        raise _damaged(folder, layout.VOCABULARY, "should name each token once")
    try:
        "".join(found).encode()
    except UnicodeEncodeError:
        raise _damaged(folder, layout.VOCABULARY, "holds what no UTF-8 can spell") from None
    return tuple(found)


def _read_names(folder: Path, count: int) -> list[str]:
    data = _read_whole(folder, layout.NAMES)
    try:
        names = data.decode().split("\n")
    except UnicodeDecodeError:
        raise _damaged(folder, layout.NAMES, "should be UTF-8") from None
    if len(names) != count + 1 or names[-1]:
        raise _damaged(folder, layout.NAMES, f"should have {count} lines")
    check_ids(str(folder / layout.NAMES), names[:-1])
    return names[:-1]


def _check_sequences(
    folder: Path, rows: Ints, packing: Packing, counts: tuple[int, ...], documents_of: list[int], documents: Ints,
    names: list[str], total: int,
) -> list[str]:  # fmt: skip
    """The ids. Raises DataError for a sequence that reaches out of its split, or cannot be as long as it says."""
    start, stop, positions, sizes = rows.T
    inputs = stop - start - 1
    plausible = (start >= 0) & (inputs >= 1) & (inputs <= packing.length) & (stop <= total)
    plausible &= (positions >= 1) & (positions <= inputs) & (sizes >= 0)
    if not plausible.all() or (np.diff(start) < 1).any() or (stop[:-1] > start[1:] + 1).any():
        raise _damaged(
            folder,
            layout.SEQUENCES,
            f"should hold ascending sequences of 1 to {packing.length} inputs each, within the {total} tokens, that "
            "overlap by one token at most",
        )
    ids: list[str] = []
    row = document = 0
    for split, own, held in zip(SPLITS, counts, documents_of, strict=True):
        starts = documents[document : document + held]
        end = int(documents[document + held]) if document + held < len(documents) else total
        if own and (not held or start[row] < starts[0] or stop[row + own - 1] > end):
            raise _damaged(folder, layout.SEQUENCES, f"has {split} sequences outside the {split} documents")
        here = names[document : document + held]
        ids += sequence_ids(packing.kind, split, start[row : row + own], starts, here, packing.length)
        row, document = row + own, document + held
    if packing.kind != PACKED:
        of = np.searchsorted(documents, start, side="right") - 1
        if (stop > np.append(documents[1:], total)[of]).any():
            raise _damaged(folder, layout.SEQUENCES, "has sequences that reach into the next document")
    return ids


def _check_tokens(contract: Contract) -> None:
    tokens, packed, size = contract.tokens(), contract.scored(), len(contract.vocabulary)
    for first in range(0, len(tokens), CHUNK):
        if int(tokens[first : first + CHUNK].max()) >= size:
            raise _damaged(contract.folder, layout.TOKENS, f"should hold token ids below {size}")
    if (
        sums_over(contract.sequences, lambda low, high: layout.bits(packed, low, high)) != contract.sequences[:, 2]
    ).any():
        raise _damaged(contract.folder, layout.SCORED, f"scores other positions than {layout.SEQUENCES} counts")
