"""Several teachers apart: each answers for the classes that it knows, and has a loss of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.errors import ConfigError
from pipeline.sampler import Order, Rows
from pipeline.softlabels import Dense, Opinion, Opinions
from pipeline.sources.base import LabelSource, LabelStream
from pipeline.sources.mixing import shares
from pipeline.sources.together import agree, open_streams

SEPARATE = "losses"
"""The name of what a panel does, among the rules of ``mixing.MIXES``."""
HEADS = "heads"
"""The same for a student with a head for each teacher, all of whom know all classes."""
APART = (SEPARATE, HEADS)

FOREIGN = ("skip", "keep")


class Member(NamedTuple):
    """A teacher of a panel; ``classes``: the student's number of each class that it knows, None for all in order."""

    source: LabelSource
    weight: float = 1.0
    classes: tuple[int, ...] | None = None


class Panel:
    """Several sources side by side, as ``Opinions``; a student learns from them by ``losses.opinions_loss``.

    A specialist's distribution is over its own classes: about an example of another class it still says which of them
    it looks like most, which is noise for a student. So under ``foreign="skip"`` it does not count for examples whose
    hard label, in ``labels`` (N,) by dataset row, is no class of its own; ``keep`` has it count. Where there is no hard
    label (-1), or no ``labels``, it counts either way. Of each example, the weights of those that count and have labels
    of it are divided by their sum. A row has labels where there is one such.

    Caches among the sources must speak of the same data but may know other classes of it: ``match`` them ``partly``,
    and give their ``knows`` as the ``classes`` of a ``Member``. Labels may be top-k, of any member.

    Raises ConfigError for no member, classes beyond the ``classes`` of the student or twice in a member, or another
    number of them than the source has.
    """

    def __init__(
        self,
        members: Sequence[Member],
        *,
        classes: int,
        labels: npt.NDArray[np.int64] | None = None,
        foreign: str = "skip",
    ) -> None:
        if not members:
            raise ConfigError("a panel needs at least one member")
        if foreign not in FOREIGN:
            raise ConfigError(f"foreign should be one of {', '.join(FOREIGN)}; found {foreign!r}")
        for number, member in enumerate(members):
            _check_member(number, member, classes)
        self.members, self._classes = tuple(members), classes
        self.sources = [member.source for member in members]
        self.weights = shares([member.weight for member in members])
        self._labels = labels if foreign == "skip" else None
        # One column more: -1, no hard label, is foreign to nobody.
        self._knows = np.ones((len(members), classes + 1), dtype=np.bool_)
        for number, member in enumerate(members):
            if member.classes is not None:
                self._knows[number, :classes] = np.isin(np.arange(classes), member.classes)
        agree(self.sources, 0, partly=True)

    @property
    def classes(self) -> int:
        """C, the student's number of classes."""
        return self._classes

    def counts(self, rows: Rows) -> npt.NDArray[np.bool_]:
        """Which members count for which of these dataset rows, (S, B)."""
        has = np.stack([source.has(rows) for source in self.sources])
        return has if self._labels is None else has & self._knows[:, self._labels[rows]]

    def has(self, rows: Rows) -> npt.NDArray[np.bool_]:
        """For which of these dataset rows any member counts, (B,)."""
        return np.asarray(self.counts(rows).any(axis=0))

    def weights_of(self, rows: Rows) -> npt.NDArray[np.float32]:
        """The weights of the members for each row, (S, B): 0 where one does not count; they come to 1, or all are 0."""
        counted = self.counts(rows) * np.array(self.weights)[:, None]
        return np.asarray(counted / np.maximum(counted.sum(axis=0), np.finfo(np.float64).tiny), dtype=np.float32)

    def stream(self, order: Order, epoch: int, start: int = 0, view: int = 0) -> _PanelStream:
        """A stream of each member, read side by side. Raises CacheMismatchError when a view is not the same in all."""
        agree(self.sources, view, partly=True)
        return _PanelStream(open_streams(self.sources, order, epoch, start, view), self)


class _PanelStream:
    def __init__(self, streams: Sequence[LabelStream], panel: Panel) -> None:
        self._streams, self._panel = streams, panel
        self._classes: list[Tensor | None] = [None] * len(streams)

    def next(self, inputs: Tensor, rows: Rows) -> Opinions:
        weights = torch.from_numpy(self._panel.weights_of(rows))
        found: list[Opinion] = []
        for number, (stream, member) in enumerate(zip(self._streams, self._panel.members, strict=True)):
            soft = stream.next(inputs, rows)
            if isinstance(soft, Opinions):
                raise ConfigError(f"the sources of a panel give soft labels; its source {number} is a panel itself")
            device = (soft.stored if isinstance(soft, Dense) else soft.ids).device
            if member.classes is not None and self._classes[number] is None:
                self._classes[number] = torch.tensor(member.classes, device=device)
            found.append(Opinion(soft, self._classes[number], weights[number].to(device, non_blocking=True)))
        return Opinions(tuple(found))

    def close(self) -> None:
        for stream in self._streams:
            stream.close()


def _check_member(number: int, member: Member, classes: int) -> None:
    known = range(classes) if member.classes is None else member.classes
    if len(known) != member.source.classes:
        raise ConfigError(f"member {number} of a panel answers for {member.source.classes} classes, not {len(known)}")
    if len(set(known)) != len(known) or not set(known) <= set(range(classes)):
        raise ConfigError(f"the classes of a panel's member should be some of 0 to {classes - 1}; found {known}")
