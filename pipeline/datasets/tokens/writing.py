"""Writing a packing contract: the corpus split by split, tokenized in batches, never whole in memory."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import identity
from pipeline.datasets.base import check_ids
from pipeline.datasets.tokens import layout
from pipeline.datasets.tokens.corpus import Corpus, Survey, documents_of
from pipeline.datasets.tokens.documents import STDLIB, Document
from pipeline.datasets.tokens.layout import ArrayWriter, BitWriter
from pipeline.datasets.tokens.packing import DOCUMENTS, Packing, ranges, scored_tokens, sequence_ids, sums_over
from pipeline.datasets.tokens.tokenizer import Encoded, Tokenizer
from pipeline.errors import DataError
from pipeline.identity import SPLITS
from pipeline.outputs import json_bytes
from pipeline.progress import Bar, Progress
from pipeline.workspace import write_atomic

BATCH = 4 << 20
"""Characters that are tokenized at a time, or one document if it is longer."""

_SPOOL = "bytes.npy"


def write_contract(
    folder: Path, corpus: Corpus, found: Survey, tokenizer: Tokenizer, packing: Packing, run: str, progress: Progress
) -> dict[str, Any]:
    """Write every file of the contract into ``folder``, ``contract.json`` last; its content.

    ``run``: the identity of what was asked for. Raises DataError when nothing would be scored, or two sequences have
    one id.
    """
    starts: list[int] = []
    with (
        progress.bar("tokenizing", len(found.ids), "document") as bar,
        ArrayWriter(folder / layout.TOKENS, layout.token_type(len(tokenizer.tokens))) as tokens,
        BitWriter(folder / layout.SCORED) as scored,
        ArrayWriter(folder / _SPOOL, np.dtype("<u4")) as spool,
    ):
        for split in range(len(SPLITS)):
            for encoded, prompt in _encoded(corpus, found, split, tokenizer, bar):
                starts.append(tokens.length)
                tokens.append(encoded.ids)
                scored.append(scored_tokens(prompt, len(encoded.ids), packing=packing))
                spool.append(encoded.bytes)
    order = np.argsort(found.splits, kind="stable")
    names = [found.ids[number] for number in order.tolist()]
    rows, counts, ids = _sequences(folder, np.array(starts, np.int64), tokens.length, names, found, packing)
    (folder / _SPOOL).unlink()
    if not ids:
        raise DataError(
            f"--text {', '.join(corpus.sources)} has no token to predict: its documents are too short, or all prompt"
        )
    if packing.kind == DOCUMENTS:
        check_ids(f"--text {', '.join(corpus.sources)}", ids)
    text = {
        "sources": [Path(s).name if Path(s).is_absolute() else s for s in corpus.sources],
        "digest": found.digest,
        "bytes": found.bytes,
        "left_out": dict(vars(found.left_out)),
        **({"python": platform.python_version()} if STDLIB in corpus.sources else {}),
    }
    documents = {name: found.count(split) for split, name in enumerate(SPLITS)}
    return finish(folder, names, starts, rows, tokens.length, documents, counts, text, tokenizer, packing, run)


def finish(
    folder: Path, names: list[str], starts: Sequence[int], rows: np.ndarray[Any, Any], total: int,
    documents: Mapping[str, int], sequences: Mapping[str, int], text: Mapping[str, Any], tokenizer: Tokenizer,
    packing: Packing, run: str,
) -> dict[str, Any]:  # fmt: skip
    """Write all files but the tokens and what is scored of them, which are there; the content of ``contract.json``.

    ``names``, ``starts``: D documents; ``rows`` (N, 4) of ``sequences.npy``; ``total`` tokens; ``documents``,
    ``sequences``: how many each split has; ``text``: where they came from.
    """
    _write_array(folder / layout.DOCUMENTS, np.array(starts, np.dtype("<i8")))
    write_atomic(folder / layout.NAMES, "".join(f"{name}\n" for name in names).encode())
    _write_array(folder / layout.SEQUENCES, rows)
    write_atomic(folder / layout.VOCABULARY, json_bytes(list(tokenizer.tokens), indent=0))
    write_atomic(folder / layout.TOKENIZER, tokenizer.json.encode())
    files = {}
    for name in layout.FILES:
        size, digest = layout.file_digest(folder / name)
        files[name] = {"bytes": size, "sha256": digest}
    contract = {
        "format": layout.FORMAT,
        "version": layout.VERSION,
        "identity": run,
        "tokenizer": {
            "kind": tokenizer.kind, "digest": tokenizer.digest, "vocabulary": len(tokenizer.tokens),
            "end": tokenizer.end,
        },
        "text": dict(text),
        "packing": packing.as_dict(),
        "documents": dict(documents),
        "sequences": dict(sequences),
        "tokens": total,
        "scored": int(rows[:, 2].sum()),
        "scored_bytes": int(rows[:, 3].sum()),
        "files": files,
    }  # fmt: skip
    contract["digest"] = identity.digest(contract)
    write_atomic(folder / layout.CONTRACT, json_bytes(contract))
    return contract


def _encoded(
    corpus: Corpus, found: Survey, split: int, tokenizer: Tokenizer, bar: Bar
) -> Iterator[tuple[Encoded, int]]:
    """The documents of a split with the end token, and how many tokens of each are its prompt."""
    batch: list[Document] = []
    size = 0
    for _, document in documents_of(corpus, found, split):
        batch.append(document)
        size += len(document.prompt) + len(document.text)
        if size >= BATCH:
            yield from _encoded_batch(batch, tokenizer)
            bar.update(len(batch))
            batch, size = [], 0
    yield from _encoded_batch(batch, tokenizer)
    bar.update(len(batch))


def _encoded_batch(batch: list[Document], tokenizer: Tokenizer) -> Iterator[tuple[Encoded, int]]:
    texts = tokenizer.encode([document.text for document in batch])
    prompted = [number for number, document in enumerate(batch) if document.prompt]
    prompts = dict(zip(prompted, tokenizer.encode([batch[n].prompt for n in prompted]), strict=True))
    end = Encoded(np.array([tokenizer.end], np.int64), np.zeros(1, np.int64))  # it stands for no text
    for number, text in enumerate(texts):
        prompt = prompts.get(number)
        parts = [text, end] if prompt is None else [prompt, text, end]
        ids = np.concatenate([part.ids for part in parts])
        yield Encoded(ids, np.concatenate([part.bytes for part in parts])), 0 if prompt is None else len(prompt.ids)


def _sequences(
    folder: Path, starts: np.ndarray[Any, Any], total: int, names: list[str], found: Survey, packing: Packing
) -> tuple[np.ndarray[Any, Any], dict[str, Any], list[str]]:
    """Rows (N, 4) of ``sequences.npy``, how many each split has, with those left out, and all ids."""
    packed = layout.open_array(folder / layout.SCORED, np.dtype("u1"), ((total + 7) // 8,))
    spool: Any = layout.open_array(folder / _SPOOL, np.dtype("<u4"), (total,))
    rows, ids, counts, left_out, first = [], [], {}, 0, 0
    for split, name in enumerate(SPLITS):
        end = first + found.count(split)
        own, stop = starts[first:end], int(starts[end]) if end < len(starts) else total
        pairs = ranges(own, stop, packing)
        positions = sums_over(pairs, lambda low, high: layout.bits(packed, low, high))
        sizes = sums_over(pairs, lambda low, high: spool[low:high] * layout.bits(packed, low, high))
        kept = positions > 0
        rows.append(np.concatenate([pairs, positions[:, None], sizes[:, None]], axis=1)[kept])
        ids += sequence_ids(packing.kind, name, pairs[kept, 0], own, names[first:end], packing.length)
        counts[name] = int(kept.sum())
        left_out += int((~kept).sum())
        first = end
    return np.concatenate(rows), {**counts, "left_out": left_out}, ids


def _write_array(path: Path, array: np.ndarray[Any, Any]) -> None:
    array = np.ascontiguousarray(array, "<i8")
    write_atomic(path, layout.header(array.dtype, array.shape) + array.tobytes())
