"""Seeded views: the same transformation of an example whenever and wherever it is asked for.

Any callable from tensor to tensor that draws from torch, from NumPy's global generator or from ``random`` is a view
transform. All three are seeded from (dump seed, example id, view number) before each call and put back afterwards, so
that a view depends neither on the order, the process or the batch, nor on what else draws random numbers.
"""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline import identity
from pipeline.configuration import parse_arguments
from pipeline.datasets.base import Dataset
from pipeline.errors import ConfigError
from pipeline.mixing import Mixed, members_of
from pipeline.references import call, resolve
from pipeline.transforms import BUILT_IN, Chain, Mixing, Transform, make_step

PLAIN = "none"
"""The description of no transform at all."""

Entry = tuple[int, int]
"""(dataset row, view number)"""

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Views:
    """``count`` views of every example, the plain one (view 0) included.

    - ``transform``: None, or a callable from a loaded example to another, or one that mixes it with a second
      (``mixing.Mixed``); ``description``: its canonical text, part of a cache's identity;
    - ``seed``: of the dump; the seed of one view follows from it, the example's id and the view's number;
    - ``merged``: (seed, count) of each dump whose random views these are, when there were several: views 1 to the first
      count are those of the first dump, and so on.
    """

    transform: Callable[[Tensor], Tensor] | None = None
    description: str = PLAIN
    count: int = 1
    seed: int = 0
    merged: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        if self.count < 1 or (self.count > 1 and self.transform is None):
            raise ConfigError(
                f"views should number 1 (the plain one) or more, and more than 1 need a transform; found "
                f"{self.count} of {self.description!r}"
            )

    def seed_of(self, example_id: str, view: int) -> int:
        """In [0, 2**63). A pure function of the dump's seed and the two arguments."""
        number = view
        for seed, count in self.merged:
            if view and number <= count:
                return identity.view_seed(seed, example_id, number)
            number -= count
        return identity.view_seed(self.seed, example_id, view)

    def apply(self, x: Tensor, example_id: str, view: int, dataset: Dataset | None = None) -> Tensor:
        """View number ``view`` of a loaded example; view 0 is ``x`` itself. ``x`` is left as it is.

        ``dataset``: the one that the example is from, where the transform mixes it with another.

        Raises ConfigError for a view that does not exist, a transform that gives no tensor, or one that mixes examples
        without a dataset.
        """
        if view == 0:
            return x
        transform = self.transform
        if transform is None or not 0 < view < self.count:
            raise ConfigError(f"there is no view {view}: {self.description} has views 0 to {self.count - 1}")
        torch_only = getattr(transform, "torch_only", False)
        seed = self.seed_of(example_id, view)
        if dataset is not None and isinstance(transform, Mixed):
            transform = transform.within(dataset, example_id, seed)
        # On one thread: how a loop is cut into threads may decide how its last elements are rounded.
        threads = torch.get_num_threads()
        state = torch.get_rng_state()
        try:
            torch.set_num_threads(1)
            torch.default_generator.manual_seed(seed)  # a hundred times faster than torch.manual_seed
            seen = transform(x) if torch_only else _with_all_seeded(transform, x, seed)
        finally:
            torch.set_rng_state(state)
            torch.set_num_threads(threads)
        if not isinstance(seen, Tensor):
            raise ConfigError(f"the view {self.description} should give a tensor, found {type(seen).__name__}")
        return seen

    @property
    def mixed(self) -> bool:
        """Whether the random views mix each example with another."""
        return isinstance(self.transform, Mixed)

    def mixing(self, dataset: Dataset, rows: Ints, view: int) -> tuple[Ints, npt.NDArray[np.float32]]:
        """Partner rows (B,) int64 and shares (B,) float32 of the dataset rows (B,) in a view that is ``mixed``.

        The share is that of the row's own example: what is seen is that much of it, and the rest of its partner. So
        are its hard labels, ``share * CE(label of the row) + (1 - share) * CE(label of the partner)``. It costs about
        13 microseconds a row. A view that is not mixed has each row as its own partner, with share 1.
        """
        if view == 0 or not isinstance(self.transform, Mixed):
            return rows.astype(np.int64), np.ones(len(rows), np.float32)
        ids = [dataset.ids[row] for row in rows.tolist()]
        draws = [self.transform.draw(dataset, example_id, self.seed_of(example_id, view)) for example_id in ids]
        shares = [self.transform.share(dataset, draw) for draw in draws]
        return np.array([draw.row for draw in draws], np.int64), np.array(shares, np.float32)


def _with_all_seeded(transform: Callable[[Tensor], Tensor], x: Tensor, seed: int) -> Tensor:
    numpy_state, python_state = np.random.get_state(), random.getstate()
    try:
        np.random.seed([seed & 0xFFFFFFFF, seed >> 32])
        random.seed(seed)
        with torch.no_grad():
            return transform(x.clone())  # people's transforms may write into their argument
    finally:
        np.random.set_state(numpy_state)
        random.setstate(python_state)


def make_views(text: str | None, count: int, seed: int = 0) -> Views:
    """``count`` views, the plain one included, of the transform that ``text`` describes ("" or "none" for none)."""
    transform, description = parse_transform(text or PLAIN)
    return Views(transform, description, count, seed)


def parse_transform(text: str) -> tuple[Callable[[Tensor], Tensor] | None, str]:
    """A transform and its canonical description.

    >>> parse_transform("affine:degrees=15+noise")[1]
    'affine:degrees=15,translate=0,scale=0,shear=0,fill=0+noise:std=0.1'

    Steps are joined by ``+``: a built-in with its parameters, or ``module:factory`` (``module:factory:key=value``),
    which names a transform, or something that is called to make one. A step that mixes examples comes last. Raises
    ConfigError with all the problems.
    """
    if text.strip() in ("", PLAIN):
        return None, PLAIN
    steps: list[Callable[[Tensor], Tensor]] = []
    mixing: Mixing | None = None
    descriptions: list[str] = []
    problems: list[str] = []
    for piece in text.split("+"):
        name, _, rest = piece.strip().partition(":")
        if mixing is not None:
            problems.append(f"{mixing.name} mixes the example with another, which comes last; found {name} after it")
        try:
            if name in BUILT_IN or not rest or "=" in rest.partition(":")[0]:
                step, wrong = make_step(name, parse_arguments([rest], f"--transform {name}"))
                problems += wrong
                if isinstance(step, Transform):
                    steps.append(step)
                elif isinstance(step, Mixing):
                    mixing = step
                descriptions += [step.describe()] if step is not None else []
            else:
                steps.append(_own(name, rest))
                descriptions.append(piece.strip())
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    transform = None if not steps else steps[0] if len(steps) == 1 else Chain(tuple(steps))
    return (transform if mixing is None else Mixed(mixing, transform)), "+".join(descriptions)


def _own(module: str, rest: str) -> Callable[[Tensor], Tensor]:
    attribute, _, given = rest.partition(":")
    reference = f"{module}:{attribute}"
    found = resolve(reference, "--transform")
    arguments = parse_arguments([given], f"--transform {reference}")
    is_factory = inspect.isroutine(found) or inspect.isclass(found)
    if is_factory and not inspect.isclass(found) and not arguments and _takes_one(found):
        is_factory = False  # def jitter(x): the transform itself
    made = call(found, arguments, f"--transform {reference}") if is_factory else found
    if not callable(made):
        raise ConfigError(
            f"--transform {reference} should be, or make, a callable from tensor to tensor; found {made!r}"
        )
    return made  # type: ignore[no-any-return]


def _takes_one(function: Callable[..., Any]) -> bool:
    try:
        signature = inspect.signature(function)
        signature.bind(None)
    except (TypeError, ValueError):
        return False
    try:
        signature.bind()
    except TypeError:
        return True
    return False


class EntryDataset(torch.utils.data.Dataset[Tensor]):
    """Model inputs by (row, view): load, view, prepare. For a DataLoader whose sampler gives such pairs."""

    def __init__(self, dataset: Dataset, views: Views) -> None:
        self.dataset = dataset
        self.views = views
        if views.mixed:
            members_of(dataset)  # now, not in each worker

    def __len__(self) -> int:
        return len(self.dataset) * self.views.count

    def __getitem__(self, entry: Entry) -> Tensor:
        row, view = entry
        x = self.dataset.load(row)
        if view:
            x = self.views.apply(x, self.dataset.ids[row], view, self.dataset)
        return self.dataset.prepare(x)


def input_loader(
    dataset: Dataset,
    views: Views,
    batches: Iterable[Sequence[Entry]],
    workers: int = 0,
    *,
    pin_memory: bool = False,
    persistent: bool = False,
) -> torch.utils.data.DataLoader[Tensor]:
    """A DataLoader of model inputs (B, ...), one batch for each sequence of entries, in their order.

    It draws nothing from the global generators: a model's dropout is the same with any number of workers. With
    ``persistent`` the workers wait for the next pass over ``batches``, which may be other ones then.
    """
    return torch.utils.data.DataLoader(
        EntryDataset(dataset, views),
        batch_sampler=batches,  # type: ignore[arg-type]
        num_workers=workers,
        pin_memory=pin_memory,
        persistent_workers=persistent and workers > 0,
        generator=torch.Generator(),
        collate_fn=torch.stack,
    )


def load_inputs(dataset: Dataset, views: Views, entries: Sequence[Entry], workers: int = 0) -> Tensor:
    """The model inputs of some entries as one tensor (N, ...) float32."""
    if not entries:
        return torch.empty((0, *dataset.input_shape))
    if workers == 0:
        held = EntryDataset(dataset, views)
        return torch.stack([held[entry] for entry in entries])
    batches = [entries[first : first + 64] for first in range(0, len(entries), 64)]
    return torch.cat(list(input_loader(dataset, views, batches, workers)))


def check_views(views: Views, dataset: Dataset, examples: int = 3) -> None:
    """Replay some views twice, from different states of the global generators.

    Raises ConfigError when they differ (a transform with a generator of its own), when a view has another shape than
    the dataset declares, holds NaN, or is no float32 tensor.
    """
    held = EntryDataset(dataset, views)
    rows = np.unique(np.linspace(0, len(dataset) - 1, examples).astype(int)).tolist()
    entries = [(row, view) for row in rows for view in range(1, min(views.count, 4))]
    first = [held[entry].clone() for entry in entries]
    again = [held[entry] for entry in reversed(entries)][::-1]
    for (row, view), one, two in zip(entries, first, again, strict=True):
        where = f"view {view} of {dataset.ids[row]} by {views.description}"
        if tuple(one.shape) != dataset.input_shape or one.dtype != torch.float32:
            raise ConfigError(
                f"{where} should be float32 of shape {dataset.input_shape} after preprocessing; found "
                f"{str(one.dtype).removeprefix('torch.')} of shape {tuple(one.shape)}"
            )
        if not bool(torch.isfinite(one).all()):
            raise ConfigError(f"{where} holds NaN or infinite values")
        if not torch.equal(one, two):
            raise ConfigError(
                f"{where} was different when it was replayed. A view should draw only from torch, from NumPy's global "
                f"functions (np.random.rand) or from random, without a generator of its own, and keep no state"
            )


@dataclass(frozen=True)
class ViewRecord:
    """One view as the teacher saw it, after preprocessing: ``pixels`` is float32 of the dataset's input shape."""

    example_id: str
    view: int
    seed: int
    pixels: npt.NDArray[np.float32]


def view_records(views: Views, dataset: Dataset, entries: Sequence[Entry]) -> list[ViewRecord]:
    """A few entries as they are seen now, to be kept beside a cache and compared by ``check_replay``."""
    held = EntryDataset(dataset, views)
    ids = dataset.ids
    return [ViewRecord(ids[r], v, views.seed_of(ids[r], v), held[(r, v)].clone().numpy()) for r, v in entries]


@dataclass(frozen=True)
class Replay:
    """How recorded views compare with a replay. Differences are root mean square, as a share of the recorded spread."""

    compared: int
    absent: int
    largest: float
    tolerance: float
    different: tuple[str, ...]
    mixed: bool = False

    @property
    def ok(self) -> bool:
        """Whether every view that could be compared lies within the tolerance."""
        return not self.different

    @property
    def summary(self) -> str:
        """One line for people."""
        found = f"{self.compared} recorded views replayed, largest difference {self.largest:.2g} of their spread"
        if self.ok:
            return f"{found} (tolerance {self.tolerance:g})"
        other = "the set of ids in the split, of which partners are drawn, " if self.mixed else ""
        return (
            f"{found}, more than the tolerance of {self.tolerance:g}: {', '.join(self.different[:3])}. The transform, "
            f"its library, {other}or the decoding of the data has changed since the dump: dump again, or "
            + ("name the data it was made from" if self.mixed else "install what it used")
        )


REPLAY_TOLERANCE = 0.01
"""Wide enough for another processor's rounding and another JPEG decoder, narrow enough to notice another transform."""


def check_replay(
    records: Sequence[ViewRecord], views: Views, dataset: Dataset, tolerance: float = REPLAY_TOLERANCE
) -> Replay:
    """Replay recorded views here and compare. Records of examples that this dataset lacks are counted as absent."""
    row_of = {example_id: row for row, example_id in enumerate(dataset.ids)}
    held = EntryDataset(dataset, views)
    largest, different, compared = 0.0, [], 0
    for record in records:
        if record.example_id not in row_of or record.view >= views.count:
            continue
        compared += 1
        seen = held[(row_of[record.example_id], record.view)].numpy()
        share = _difference(record.pixels, seen)
        largest = max(largest, share)
        if share > tolerance:
            different.append(f"view {record.view} of {record.example_id}")
    return Replay(compared, len(records) - compared, largest, tolerance, tuple(different), views.mixed)


def _difference(recorded: npt.NDArray[np.float32], seen: npt.NDArray[np.float32]) -> float:
    if recorded.shape != seen.shape:
        return float("inf")
    spread = float(recorded.std(dtype=np.float64)) or 1.0
    return float(np.sqrt(np.mean((recorded.astype(np.float64) - seen) ** 2))) / spread
