"""Where the entries of a new cache lie in old ones, and the parts that they come to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.caches.building import Contents
from pipeline.encodings import Arrays, Encoding
from pipeline.errors import CacheCorruptError
from pipeline.fidelity import Fidelity, possible
from pipeline.metrics import predicted
from pipeline.softlabels import SoftLabels
from pipeline.store import Cache, IndexRows, Layout, Part
from pipeline.store.spans import bounds_of, expand, placed
from pipeline.store.verify import check_values

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Origins:
    """Each entry of a new cache, found in one of ``caches``.

    - ``entry_of``: split -> (J, N): the entry number, within each view of that split, of each of the N examples in each
      of the J caches; -1 where a cache does not have it;
    - ``views``: split -> for each view of the new cache (cache, view there); None for the cache is the first that has
      the example.
    """

    caches: Sequence[Cache]
    entry_of: Mapping[str, Ints]
    views: Mapping[str, Sequence[tuple[int | None, int]]]

    def pieces(self, part: Part) -> list[Piece]:
        """Where all entries of a part are. Each is in one piece."""
        entries = self.entry_of[part.split][:, part.first : part.first + part.entries]
        owner, view = self.views[part.split][part.view]
        owners = (entries >= 0).argmax(axis=0) if owner is None else np.full(part.entries, owner)
        found = []
        for number in np.unique(owners).tolist():
            places = np.flatnonzero(owners == number)
            found.append(Piece(self.caches[number], view, places, entries[number, places]))
        return found

    def lengths(self, split: str) -> Ints:
        """The positions (N,) of each example of a split. Raises as ``Cache.index`` does."""
        entries = self.entry_of[split]
        found = np.zeros(entries.shape[1], dtype=np.int64)
        for cache, there in zip(self.caches, entries, strict=True):
            new = (there >= 0) & (found == 0)
            if new.any():
                found[new] = cache.lengths(split)[there[new]]
        return found

    def layout(self, part_size: int) -> Layout:
        """The layout of the new cache."""
        return Layout.ragged({s: (self.lengths(s), len(views)) for s, views in self.views.items()}, part_size)


@dataclass(frozen=True)
class Piece:
    """Some entries of a part, at ``places`` (n,) in it, are ``entries`` (n,) of one view of ``cache``."""

    cache: Cache
    view: int
    places: Ints
    entries: Ints


def everything(cache: Cache) -> Origins:
    """All of one cache, as it is."""
    splits = cache.splits()
    return Origins(
        caches=[cache],
        entry_of={s: np.arange(cache.examples(s))[None] for s in splits},
        views={s: [(None, view) for view in cache.views(s)] for s in splits},
    )


def gather(
    origins: Origins, part: Part, features: Sequence[str]
) -> tuple[dict[str, npt.NDArray[Any]], dict[str, npt.NDArray[Any]]]:
    """Stored arrays and features of a part, or of some entries of one, out of the caches where they lie.

    Raises CacheCorruptError for what ``verify`` would name: a new cache is not made of it.
    """
    pieces, lengths = origins.pieces(part), entry_lengths(origins, part)
    begin = bounds_of(lengths)
    labels: list[tuple[Ints, Arrays]] = []
    others: list[tuple[Ints, Arrays]] = []
    for piece in pieces:
        cache, view, entries = piece.cache, piece.view, piece.entries
        positions = expand(begin[piece.places], lengths[piece.places])
        stored = cache.read_rows(part.split, view, entries)
        check_values(cache, cache.decode(stored), f"view {view} of {part.split}")
        labels.append((positions, stored))
        found = {name: cache.read_feature_rows(name, part.split, view, entries) for name in features}
        for name, rows in found.items():
            if not np.isfinite(rows).all():
                raise CacheCorruptError(f"{cache.address}: feature {name} is not finite. Fetch the cache again")
        others.append((positions, found))
    uneven = pieces[0].cache.stored_labels().kept
    total = int(begin[-1])
    return placed(labels, total, labels[0][1], uneven), placed(others, total, others[0][1], ())


def entry_lengths(origins: Origins, part: Part) -> Ints:
    """The positions (E,) of each entry of a part, or of some entries of one. Raises as ``Cache.index`` does."""
    found = np.zeros(part.entries, dtype=np.int64)
    for piece in origins.pieces(part):
        found[piece.places] = piece.cache.lengths_of(part.split, piece.entries, piece.view)
    return found


def gather_index(origins: Origins, part: Part) -> IndexRows:
    """The index of a part out of the caches where its entries lie. Raises as ``gather`` does."""
    ids: list[str] = [""] * part.entries
    digests: list[str] | None = [""] * part.entries if part.view == 0 else None
    seeds, labels = np.zeros(part.entries, np.int64), np.full(part.entries, -1, np.int64)
    for piece in origins.pieces(part):
        index = index_of(piece.cache, part.split, piece.view, piece.entries)
        seeds[piece.places], labels[piece.places] = index.seeds, index.labels
        if index.input_digests is None:
            digests = None
        for number, place in enumerate(piece.places.tolist()):
            ids[place] = index.example_ids[number]
            if digests is not None and index.input_digests is not None:
                digests[place] = index.input_digests[number]
    return IndexRows(ids, part.view, part.split, seeds, labels, digests, length=entry_lengths(origins, part))


def check_ids(cache: Cache) -> None:
    """Raise CacheCorruptError when an example stands in a split of the cache twice."""
    for split in cache.splits():
        ids = cache.ids(split)
        if len(set(ids)) != len(ids):
            raise CacheCorruptError(f"{cache.address} has the same example of {split} twice. Fetch it again")


def index_of(cache: Cache, split: str, view: int, entries: Ints) -> IndexRows:
    """The index of some entries of one view, in their order.

    Raises CacheCorruptError when they are other examples than those of the plain view, or longer or shorter ones.
    """
    found = _index_of(cache, split, view, entries)
    plain = _index_of(cache, split, 0, entries) if view else found
    alike = np.array_equal(cache.lengths_of(split, entries, view), cache.lengths_of(split, entries)) if view else True
    if found.example_ids != plain.example_ids or not alike:
        raise CacheCorruptError(
            f"{cache.address}: view {view} of {split} is of other examples than the plain view. Fetch it again"
        )
    return found


def _index_of(cache: Cache, split: str, view: int, entries: Ints) -> IndexRows:
    records = cache.parts_of(split, view)
    blocks, within = np.divmod(entries, cache.part_size)
    ids: list[str] = [""] * len(entries)
    digests: list[str] = [""] * len(entries)
    seeds, labels = np.zeros(len(entries), np.int64), np.zeros(len(entries), np.int64)
    known = view == 0 and cache.manifest.knows_content
    for block in np.unique(blocks).tolist():
        rows = cache.index(records[block])
        here = np.flatnonzero(blocks == block)
        seeds[here], labels[here] = rows.seeds[within[here]], rows.labels[within[here]]
        for place, inner in zip(here.tolist(), within[here].tolist(), strict=True):
            ids[place] = rows.example_ids[inner]
            if known and rows.input_digests is not None:
                digests[place] = rows.input_digests[inner]
    return IndexRows(ids, view, split, seeds, labels, digests if known else None)


def contents_of(origins: Origins, part: Part, encoding: Encoding, classes: int, *, features: Sequence[str]) -> Contents:
    """A part as its entries lie in the old caches, with the largest bound of those it comes from.

    Nobody asks the teacher again, so how faithful the labels are cannot be measured here: the statistics of a source's
    part are taken over where the very same entries make up the new one.
    """
    arrays, kept = gather(origins, part, features)
    index = gather_index(origins, part)
    pieces = origins.pieces(part)
    statistics: dict[str, float] = dict(_same_part(pieces, part))
    if not statistics:
        statistics = accuracy(encoding.decode(arrays, classes), index.labels, encoding)
    statistics["bound"] = max(piece.cache.manifest.bound for piece in pieces)
    return Contents(arrays, index, kept, statistics)


def _same_part(pieces: Sequence[Piece], part: Part) -> Mapping[str, float]:
    """The statistics of the part that ``pieces`` are the whole of, in order; {} when they are not."""
    if len(pieces) != 1:
        return {}
    (piece,) = pieces
    block, rest = divmod(int(piece.entries[0]), piece.cache.part_size)
    record = piece.cache.parts_of(part.split, piece.view)[block]
    whole = not rest and record.entries == part.entries and bool((np.diff(piece.entries) == 1).all())
    return record.statistics if whole and possible(record.statistics, record.positions) else {}


def accuracy(soft: SoftLabels, labels_N: Ints, encoding: Encoding) -> dict[str, float]:
    """How often the largest soft label is the hard one, as the sums of a part; only for one position an entry."""
    counted = Fidelity(encoding, soft.classes)
    if len(soft) == len(labels_N):
        counted.count(top_class(soft), labels_N)
    return {name: value for name, value in counted.totals().items() if name in ("labelled", "correct")}


def top_class(soft: SoftLabels) -> Ints:
    """The class (N,) of the largest soft label of each row, of numpy soft labels."""
    return predicted(soft)
