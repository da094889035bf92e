"""A packing contract of sequences whose tokens are known already: a sequence is a document, and is not cut."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import identity
from pipeline.datasets.base import check_ids
from pipeline.datasets.tokens import layout
from pipeline.datasets.tokens.layout import ArrayWriter, BitWriter
from pipeline.datasets.tokens.packing import DOCUMENTS, MAX_LENGTH, Ints, Packing
from pipeline.datasets.tokens.tokenizer import Tokenizer
from pipeline.datasets.tokens.writing import finish
from pipeline.errors import DataError
from pipeline.identity import SPLITS


@dataclass(frozen=True)
class Record:
    """A sequence: its ``id``, T ``tokens`` (T,), and ``positions`` (P,), 0 to T - 2, whose next token is scored."""

    id: str
    tokens: Ints
    positions: Ints


def write_records(
    folder: Path, records: Iterable[Record], tokenizer: Tokenizer, split: str, source: str, run: str
) -> dict[str, Any]:
    """Write the contract of ``records``, all of one ``split``, into ``folder``; the content of ``contract.json``.

    ``source``: what to call where they came from; ``run``: the identity of what was asked for. Raises DataError for
    tokens outside the vocabulary, a sequence without a scored position, ids that stand twice.
    """
    names: list[str] = []
    starts: list[int] = []
    rows: list[tuple[int, int, int, int]] = []
    contents: list[str] = []
    vocabulary = len(tokenizer.tokens)
    with (
        ArrayWriter(folder / layout.TOKENS, layout.token_type(vocabulary)) as tokens,
        BitWriter(folder / layout.SCORED) as scored,
    ):
        for record in records:
            length = len(record.tokens)
            if not 0 < len(record.positions) < length <= MAX_LENGTH + 1:
                raise DataError(
                    f"{record.id} should have 2 to {MAX_LENGTH + 1:,} tokens and a scored position; found {length:,} "
                    f"and {len(record.positions)}"
                )
            if int(record.tokens.min()) < 0 or int(record.tokens.max()) >= vocabulary:
                raise DataError(
                    f"{record.id} has tokens {record.tokens.min()} to {record.tokens.max():,}, and the tokenizer "
                    f"{vocabulary:,}. Is it this teacher's? Where a model has more outputs than tokens, give --classes"
                )
            mask = np.zeros(length, bool)
            mask[record.positions + 1] = True
            names.append(record.id)
            starts.append(tokens.length)
            sizes = int(tokenizer.sizes(record.tokens)[mask].sum())
            rows.append((tokens.length, tokens.length + length, len(record.positions), sizes))
            contents.append(identity.digest_bytes(record.tokens.astype("<u4").tobytes() + mask.tobytes()))
            tokens.append(record.tokens)
            scored.append(mask)
    if not names:
        raise DataError(f"{source} holds no sequence")
    check_ids(source, names)
    table = np.array(rows, np.int64)
    counts = {name: len(names) if name == split else 0 for name in SPLITS}
    text = {
        "sources": [source],
        "digest": identity.digest([[name, split, content] for name, content in zip(names, contents, strict=True)]),
        "bytes": int(table[:, 3].sum()),
    }
    packing = Packing(DOCUMENTS, int((table[:, 1] - table[:, 0]).max()) - 1)
    sequences = {**counts, "left_out": 0}
    return finish(folder, names, starts, table, tokens.length, counts, sequences, text, tokenizer, packing, run)
