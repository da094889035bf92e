"""A corpus: the documents of some sources, how far they are taken, and which split each belongs to.

Documents are read again for every pass instead of being held in memory; a digest of each notices when one changed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from pipeline import identity
from pipeline.datasets.base import check_ids, split_of
from pipeline.datasets.tokens.documents import STDLIB, Document, LeftOut, read_paths, read_stdlib
from pipeline.datasets.tokens.tables import Columns, read_hub, readers
from pipeline.errors import DataError
from pipeline.identity import SPLITS
from pipeline.progress import Progress

HUB = "hf:"


@dataclass(frozen=True)
class Corpus:
    """Which documents, in which order.

    ``sources``: "stdlib", "hf:NAME", or files, folders and globs, one after the other. ``max_documents`` and
    ``max_bytes`` (UTF-8, whole documents, at least one): how many are taken from the beginning, 0 for all.
    ``held_out``: the share of the documents that is validation and test, half each, where a source has no splits.
    """

    sources: tuple[str, ...] = (STDLIB,)
    columns: Columns = field(default_factory=Columns)
    hub_configuration: str | None = None
    hub_splits: tuple[str, ...] = ()
    max_documents: int = 0
    max_bytes: int = 0
    held_out: float = 0.1

    def documents(self, left_out: LeftOut) -> Iterator[Document]:
        """The documents in order. Raises ConfigError for a source that is not there, DataError for one that is bad."""
        count = total = 0
        for document in self._all(left_out):
            size = document_bytes(document)
            if count and (count == self.max_documents or (self.max_bytes and total + size > self.max_bytes)):
                return
            count, total = count + 1, total + size
            yield document

    def _all(self, left_out: LeftOut) -> Iterator[Document]:
        for source in self.sources:
            if source == STDLIB:
                yield from read_stdlib(left_out)
            elif source.startswith(HUB):
                path = source.removeprefix(HUB)
                yield from read_hub(path, self.hub_configuration, self.hub_splits, self.columns, left_out)
            else:
                yield from read_paths(source, readers(self.columns), left_out)


@dataclass(frozen=True)
class Survey:
    """What a corpus holds: ``ids`` and ``digests`` of D documents in order, ``splits`` (D,) int8, and UTF-8 ``bytes``.

    ``digest`` covers ids, splits and texts: it names the text.
    """

    ids: tuple[str, ...]
    digests: tuple[bytes, ...]
    splits: npt.NDArray[np.int8]
    bytes: int
    digest: str
    left_out: LeftOut

    def count(self, split: int) -> int:
        """How many documents a split has."""
        return int((self.splits == split).sum())


def survey(corpus: Corpus, progress: Progress) -> Survey:
    """Read every document once. Raises DataError when there is none, or two have one id."""
    left_out, ids, digests, own, total = LeftOut(), [], [], [], 0
    for document in corpus.documents(left_out):
        ids.append(document.id)
        digests.append(document_digest(document))
        own.append(document.split)
        total += document_bytes(document)
        if len(ids) % 100_000 == 0:
            progress.log(f"{len(ids):,} documents read")
    name = ", ".join(corpus.sources)
    if not ids:
        reasons = f"{left_out.not_utf8} are no UTF-8 and {left_out.empty} empty"
        raise DataError(f"--text {name} holds no document to learn from: {reasons}")
    check_ids(f"--text {name}", ids)
    splits = assign_splits(ids, own, corpus.held_out)
    rows = zip(ids, splits.tolist(), digests, strict=True)
    digest = identity.digest_dataset((i, SPLITS[split], content.hex()) for i, split, content in rows)
    return Survey(tuple(ids), tuple(digests), splits, total, digest, left_out)


def assign_splits(ids: Sequence[str], own: Sequence[str | None], held_out: float) -> npt.NDArray[np.int8]:
    """The split (D,) of each document: its source's, else by its id (``split_of``).

    Where sources have splits and no validation, train gives half of ``held_out`` as validation. Of few documents
    without splits of their own, validation and test get one each, if chance gave them none and train keeps one.
    """
    fractions = (1 - held_out, held_out / 2, held_out / 2)
    splits = np.array([split_of(i, fractions) if s is None else SPLITS.index(s) for i, s in zip(ids, own, strict=True)])
    if "train" in own and "validation" not in own:
        cut = (1 - held_out / 2, held_out / 2)
        of_train = [n for n, s in enumerate(own) if s == "train"]
        splits[of_train] = [split_of(ids[n], cut) for n in of_train]
    elif held_out and not any(own):
        for split in (1, 2):
            of_train = np.flatnonzero(splits == 0).tolist()
            if not (splits == split).any() and len(of_train) > 1:
                first = {identity.digest_bytes(f"{SPLITS[split]}\0{ids[n]}".encode()): n for n in of_train}
                splits[first[min(first)]] = split
    return splits.astype(np.int8)


def documents_of(corpus: Corpus, found: Survey, split: int) -> Iterator[tuple[int, Document]]:
    """The documents of one split with their numbers. Raises DataError when the corpus changed since the survey."""
    number = -1
    for number, document in enumerate(corpus.documents(LeftOut())):
        if number >= len(found.ids) or document.id != found.ids[number]:
            break
        if found.splits[number] == split:
            if document_digest(document) != found.digests[number]:
                raise DataError(f"{document.id} changed while it was being tokenized. Run the same command again")
            yield number, document
    else:
        if number + 1 == len(found.ids):
            return
    raise DataError(f"--text {', '.join(corpus.sources)} changed while it was being tokenized. Run the command again")


def document_digest(document: Document) -> bytes:
    """sha256 of prompt and text, each for itself."""
    return bytes.fromhex(identity.digest([document.prompt, document.text]))


def document_bytes(document: Document) -> int:
    """UTF-8 bytes of prompt and text."""
    return len(document.prompt.encode()) + len(document.text.encode())
