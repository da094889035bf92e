"""Does this cache belong to this dataset, and where are the labels of each row? Checked before the first step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.datasets import Dataset
from pipeline.errors import CacheMismatchError, ConfigError, some
from pipeline.identity import short
from pipeline.sampler import Rows
from pipeline.store import Cache

NONE = -1
MISSING = ("error", "skip", "hard")
TOKENS_OF = "tokens of "
"""How the preprocessing of a token dataset begins; the tokenizer follows, a comma, and the packing."""


@dataclass(frozen=True)
class Matching:
    """Where the soft labels of dataset rows are.

    - ``split``: of the dataset and of the cache;
    - ``rows`` (n,): the dataset rows of the split that stay, in dataset order;
    - ``entry_of`` (N,): for every dataset row its entry number within each view of the split, -1 where there is none;
    - ``missing``: ids of the split that the cache has no labels for (skipped, or kept for their hard labels);
    - ``unchecked``: what could not be held against the dataset, because the cache does not know it (an imported one);
    - ``lengths`` (N,): the positions of every dataset row, those without labels included; None where nobody said, and
      each has as many as the cache says of all;
    - ``knows``: of a cache that knows some of the classes, the dataset's number of each, in the cache's order; None of
      one that knows all, in the dataset's order.
    """

    split: str
    rows: Rows
    entry_of: npt.NDArray[np.int64]
    missing: tuple[str, ...] = ()
    unchecked: tuple[str, ...] = ()
    knows: tuple[int, ...] | None = None
    lengths: npt.NDArray[np.int64] | None = None

    def lengths_of(self, rows: Rows, otherwise: int = 1) -> Rows:
        """The positions (n,) of dataset rows; ``otherwise`` each where nobody said."""
        if self.lengths is None:
            return np.full(len(rows), max(1, otherwise), dtype=np.int64)
        return self.lengths[rows]

    def entries(self, rows: Rows) -> Rows:
        """Entry numbers (B,) of dataset rows that have labels. Raises CacheMismatchError when one has none."""
        found = self.entry_of[rows]
        if (found < 0).any():
            raise CacheMismatchError(
                f"the cache has no {self.split} labels for {int((found < 0).sum())} of these {len(found)} rows, "
                f"among them row {int(rows[found < 0][0])}"
            )
        return found


def match(
    cache: Cache, dataset: Dataset, split: str = "train", missing: str = "error", *, partly: bool = False
) -> Matching:
    """Find the labels of every example of ``split``, or refuse.

    Equal data digests address rows directly. Otherwise (reordered, a subset, grown) rows are joined by example id and
    the stored bytes of each joined example are compared by digest. What the cache does not know (an imported one: its
    class names, preprocessing, the content of its examples, its views) is named in ``unchecked``. ``missing`` says what
    becomes of examples without labels: ``error``, ``skip`` (they leave the training set) or ``hard`` (they stay for
    their hard labels). ``partly`` lets caches pass whose classes are some of the dataset's, in any order: ``knows``.

    Raises CacheMismatchError: other class names or order, other preprocessing, a split that the cache lacks, the same
    id with other content or another number of positions, examples without labels under ``error``, or no example with
    labels at all. Of tokens it says what differs first: the tokenizer, the packing, or the text.
    """
    if missing not in MISSING:
        raise ConfigError(f"--missing should be one of {', '.join(MISSING)}; found {missing!r}")
    knows = known_classes(cache, dataset) if partly and not dataset.discrete else None
    unchecked = _check_declarations(cache, dataset, partly=knows is not None)
    rows = np.asarray(dataset.rows(split), dtype=np.int64)
    if split not in cache.splits():
        held = ", ".join(cache.splits())
        raise CacheMismatchError(f"{cache.address} holds no {split} labels (it holds {held}). Dump that split too")
    entry_of = np.full(len(dataset), NONE, dtype=np.int64)
    same = cache.manifest.knows_content and cache.identity["data"]["digest"] == dataset.digest()
    if same and cache.examples(split) == len(rows):
        entry_of[rows] = np.arange(len(rows))
        lengths = checked_lengths(cache, dataset, split, rows, entry_of)
        return Matching(split, rows, entry_of, (), unchecked, knows, lengths)
    _join(cache, dataset, split, rows, entry_of)
    absent = rows[entry_of[rows] < 0]
    names = tuple(str(dataset.ids[int(row)]) for row in absent)
    if len(absent) == len(rows):
        raise CacheMismatchError(
            f"{cache.address} has labels for none of the {len(rows)} {split} examples of {dataset.name} "
            f"(asked for {some(names)}; it holds {some(cache.ids(split))}). It belongs to another "
            f"{'text' if dataset.discrete else 'dataset'}"
        )
    if names and missing == "error":
        raise CacheMismatchError(_missing_message(cache, dataset, split, names, len(rows)))
    kept = rows[entry_of[rows] >= 0] if missing == "skip" else rows
    lengths = checked_lengths(cache, dataset, split, rows, entry_of)
    return Matching(split, kept, entry_of, names, unchecked, knows, lengths)


def checked_lengths(
    cache: Cache, dataset: Dataset, split: str, rows: Rows, entry_of: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """The positions (N,) of each example of the dataset, found to be as many as those of its labels.

    Raises CacheMismatchError naming examples that have more or fewer.
    """
    ours = np.asarray(dataset.lengths, dtype=np.int64)
    known = rows[entry_of[rows] >= 0]
    theirs = cache.lengths(split)[entry_of[known]]
    differing = np.flatnonzero(ours[known] != theirs)
    if len(differing):
        named = differing[:4]
        there_and_here = zip(known[named], theirs[named], ours[known[named]], strict=True)
        found = [f"{dataset.ids[int(row)]} ({there:,} there, {here:,} here)" for row, there, here in there_and_here]
        raise CacheMismatchError(
            f"{cache.address} was made for other positions: {len(differing):,} of {len(known):,} {split} examples of "
            f"{dataset.name} have another number of them, among them {some(found)}. Where a distribution is scored "
            "follows from how the data was packed: name that packing, or dump again"
        )
    return ours


def known_classes(cache: Cache, dataset: Dataset) -> tuple[int, ...] | None:
    """The dataset's number of each class of a cache that knows some of them, and no other; None for any other cache."""
    numbers = {name: number for number, name in enumerate(dataset.classes)}
    names = tuple(cache.class_names)
    if not names or len(set(names)) != len(names) or not set(names) < set(numbers):
        return None
    return tuple(numbers[name] for name in names)


def _check_declarations(cache: Cache, dataset: Dataset, *, partly: bool) -> tuple[str, ...]:
    """Refuse other classes or preprocessing; what the cache does not know of these and of others, in words."""
    if dataset.discrete and dataset.preprocessing.startswith(TOKENS_OF):
        _check_tokens(cache, dataset)
    views = cache.identity["views"]
    unknown = {
        "the names and order of the classes": not cache.class_names and cache.classes == len(dataset.classes),
        "how inputs were prepared": cache.identity["preprocessing"] is None,
        "the content of the examples (joined by id alone)": not cache.manifest.knows_content,
        "which views of the images the labels are of (the student sees plain ones)": views["transform"] is None
        or views["seed"] is None,
    }
    theirs, ours = tuple(cache.class_names), tuple(dataset.classes)
    if not partly and theirs != ours and (theirs or cache.classes != len(ours)):
        if len(theirs) != len(ours):
            how = f"{len(theirs)} classes there, {len(ours)} here"
        elif set(theirs) == set(ours):
            at = next(i for i, (a, b) in enumerate(zip(theirs, ours, strict=True)) if a != b)
            how = f"the same names in another order: class {at} is {theirs[at]!r} there, {ours[at]!r} here"
        else:
            at = next(i for i, (a, b) in enumerate(zip(theirs, ours, strict=True)) if a != b)
            how = f"class {at} is {theirs[at]!r} there, {ours[at]!r} here"
        then = "Name the dataset it was made from, or dump again"
        if known_classes(cache, dataset) is not None:
            then = (
                f"It knows some of them alone ({some(theirs, 4)}), which `softlabels train` can learn from and nothing "
                "else can: name a cache that knows all, or --cache none where that is an option"
            )
        raise CacheMismatchError(
            f"{cache.address} was made for other classes than those of {dataset.name}: {how}. {then}"
        )
    declared = cache.identity["preprocessing"]
    if declared is not None and declared != dataset.preprocessing:
        raise CacheMismatchError(
            f"{cache.address} holds labels of inputs prepared as {declared!r}; {dataset.name} prepares them as "
            f"{dataset.preprocessing!r}. Prepare them alike, or dump again"
        )
    return tuple(what for what, is_unknown in unknown.items() if is_unknown)


def _check_tokens(cache: Cache, dataset: Dataset) -> None:
    """Refuse another tokenizer, then another packing, of what both declare: "tokens of TOKENIZER, PACKING"."""
    theirs, ours = tuple(cache.class_names), tuple(dataset.classes)
    declared: str | None = cache.identity["preprocessing"]
    if declared is not None and not declared.startswith(TOKENS_OF):
        raise CacheMismatchError(
            f"{cache.address} holds labels of inputs prepared as {declared!r}; {dataset.name} holds tokens. It belongs "
            "to other data"
        )
    there, their_packing = _declared(declared)
    here, our_packing = _declared(dataset.preprocessing)
    how = None
    if cache.classes != len(ours):
        how = f"{cache.classes} tokens there, {len(ours)} here"
    elif theirs and theirs != ours:
        at = next(i for i, (a, b) in enumerate(zip(theirs, ours, strict=True)) if a != b)
        how = f"token {at} is {theirs[at]!r} there, {ours[at]!r} here"
    elif declared is not None and there != here:
        how = "the same vocabulary, and other rules that cut text into it"
    if how is not None:
        raise CacheMismatchError(
            f"{cache.address} was made with another tokenizer than {dataset.name}: {there or 'unnamed'} "
            f"there, {here} here ({how}). Tokenize the text with the cache's (tokenize --tokenizer), or dump again"
        )
    if declared is not None and their_packing != our_packing:
        raise CacheMismatchError(
            f"{cache.address} holds labels of tokens in another packing than {dataset.name}: {their_packing!r} there, "
            f"{our_packing!r} here, of the same tokenizer. Pack the text alike, or dump again"
        )


def _declared(words: str | None) -> tuple[str, str]:
    """Tokenizer and packing of a token dataset's preprocessing."""
    tokenizer, _, packing = (words or "").removeprefix(TOKENS_OF).partition(", ")
    return tokenizer, packing


def _join(cache: Cache, dataset: Dataset, split: str, rows: Rows, entry_of: npt.NDArray[np.int64]) -> None:
    """Fill ``entry_of`` by example id. Raises CacheMismatchError where an id has other content than it had."""
    entries = {example_id: entry for entry, example_id in enumerate(cache.ids(split))}
    digests = cache.input_digests(split)
    changed: list[str] = []
    for row in rows.tolist():
        entry = entries.get(str(dataset.ids[row]), NONE)
        if entry == NONE:
            continue
        if digests and digests[entry] != dataset.known_digest(row):
            changed.append(str(dataset.ids[row]))
        entry_of[row] = entry
    if changed:
        what = "text" if dataset.discrete else "data"
        raise CacheMismatchError(
            f"{cache.address} was made from other {what}: {len(changed)} of {len(rows)} {split} examples of "
            f"{dataset.name} have the id of a cached example and other content, among them {some(changed)}. Dump "
            f"again (cache data {short(cache.identity['data']['digest'])}, this data {short(dataset.digest())})"
        )


def _missing_message(cache: Cache, dataset: Dataset, split: str, names: Sequence[str], total: int) -> str:
    elsewhere = [other for other in cache.splits() if other != split and not set(names).isdisjoint(cache.ids(other))]
    hint = (
        f" Some of them are in its {', '.join(elsewhere)} split: the data was split in another way."
        if elsewhere
        else ""
    )
    return (
        f"{cache.address} has no {split} labels for {len(names)} of {total} examples of {dataset.name}, among them "
        f"{some(names)}.{hint} Dump again, or pass --missing skip (leave them out) or --missing hard (use their hard "
        "labels)"
    )
