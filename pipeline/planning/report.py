"""The table of encodings, for people and for machines."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipeline.losses.meeting import EVEN
from pipeline.planning.choosing import human_bytes, mean_kl
from pipeline.planning.estimates import Estimate

MEANINGS = {
    "bytes_per_label": "bytes of the label arrays for each entry, or each position of token sequences, from files made "
    "in memory of the sample",
    "bytes": "of the whole cache: labels, features, index and other files",
    "kl": "KL(teacher || stored) in nats over the sample, a top-k residual spread evenly over the dropped classes",
    "top1_agreement": "share of the sample whose largest class is the teacher's, at the training temperature",
    "angles": "degrees between the gradients of the distillation loss in the student's logits, from all logits and "
    "from what is kept, at the training temperature: `rows`, the mean over entries; `batch`, between the gradients "
    "averaged over the sample. `untrained`: a student with the same logit for every class. `half_trained`: half the "
    "teacher's centred logits plus Gaussian noise of half their standard deviation",
    "turns": "of token sequences: between the gradients in the output matrix of a student that stands in, summed over "
    "positions, from full distributions and from what is kept: `angle` in degrees, and `ratio` of their lengths. "
    "`sample`: over the sample; `step`: to expect over a step of so many positions, if positions are independent. "
    "Noise averages out over positions, a bias does not",
    "bare": "the same, of top-k labels trained without their residual",
    "even": "the same, of top-k labels trained with --loss-args residual=even; where that turns a step less it is also "
    "an estimate of its own, whose `residual` says so",
    "kept": "classes that a position keeps, in the mean, of draws; null otherwise",
    "seconds": "of one entry to encode, to write and to read in memory, and of the whole dump: setup + entries * "
    "max(loading + forward + encode, write); --workers divide the loading, which then runs beside the forward pass",
    "break_even_epochs": "smallest E with dump + E * read < E * live: `live` is the teacher's forward passes over the "
    "training examples in every epoch, `read` reads as many labels; null when never",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlanReport:
    """What a dump would cost, by encoding.

    - ``sample`` of ``entries`` were asked, or of ``positions`` of token sequences (None of anything else), on
      ``device``; ``splits``: name -> examples and views;
    - ``forward_seconds``, ``load_seconds``: of one entry; ``setup_seconds``: before the first;
    - ``picked``: the name of the encoding that ``budget`` and ``max_kl`` ask for, and ``command``, which dumps it; None
      when neither was given; ``refused`` says why none will do;
    - ``recommended``: of token sequences, the name of the encoding to take where neither was given; ``command`` dumps
      it; ``reason``: for the one or the other.
    """

    teacher: str
    data: str
    classes: int
    entries: int
    splits: Mapping[str, Mapping[str, int]]
    sample: int
    temperature: float
    device: str
    forward_seconds: float
    load_seconds: float
    setup_seconds: float
    estimates: Sequence[Estimate]
    budget: str | None = None
    max_kl: float | None = None
    picked: str | None = None
    command: str | None = None
    refused: str | None = None
    positions: int | None = None
    recommended: str | None = None
    reason: str = ""

    @property
    def summary(self) -> str:
        """One line for people: what was asked, and what was picked."""
        asked = f"{self.sample:,} of {self.entries:,} entries asked"
        if self.positions is not None:
            asked = f"{self.sample:,} of {self.positions:,} positions asked"
        why = f": {self.reason}" if self.reason else ""
        if self.picked is not None:
            return f"{asked}; picked {self.picked}{why}"
        if self.recommended is not None:
            return f"{asked}; nothing was written. To be recommended: {self.recommended}{why}; the command:"
        return f"{asked}; {'no encoding will do' if self.refused else 'nothing was written'}"

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON values, with what each figure means."""
        shown = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        splits = {name: dict(numbers) for name, numbers in self.splits.items()}
        estimates = [each.as_dict() for each in self.estimates]
        return {**shown, "splits": splits, "estimates": estimates, "meanings": MEANINGS}

    @property
    def table(self) -> str:
        """The table of encodings with what was measured above it and what the columns mean below."""
        return "\n".join([*self._head(), "", *self._lines(), "", *self._legend()])

    def _head(self) -> Iterator[str]:
        splits = ", ".join(
            f"{split} {numbers['examples']:,}" + (f" x {numbers['views']} views" if numbers["views"] > 1 else "")
            for split, numbers in self.splits.items()
        )
        yield f"{self.teacher} on {self.data}"
        of = "" if self.positions is None else f"{self.positions:,} positions in "
        plural = "es" * (self.classes > 1)
        tokens = f"{self.classes:,} class{plural}" if self.positions is None else f"a vocabulary of {self.classes:,}"
        yield f"{of}{self.entries:,} entries ({splits}), {tokens}"
        length = 1.0 if self.positions is None else self.positions / self.entries
        each = "an entry" if self.positions is None else "a position"
        yield (
            f"{self.sample:,} of them asked on {self.device}: forward {human_seconds(self.forward_seconds / length)}, "
            f"loading {human_seconds(self.load_seconds / length)} {each}"
        )

    def _lines(self) -> Iterator[str]:
        t = f"{self.temperature:g}"
        if self.positions is None:
            heads = ["encoding", "B/label", "cache", "KL T=1", *([f"KL T={t}"] if t != "1" else []), f"max T={t}"]
            heads += ["top-1 %", "angle", "half", "batch", "dump", "epochs"]
        else:
            heads = ["encoding", "B/token", "ids", "cache", f"KL T={t}", "top-1 %", "angle", "step", "length", "bare"]
            heads += ["length", "dump", "epochs"]
        rows = [heads] + [self._row(each) for each in self.estimates if each.problem is None]
        widths = [max(len(row[column]) for row in rows) for column in range(len(heads))]
        for row in rows:
            yield "  ".join(
                [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
            )
        for each in self.estimates:
            if each.problem is not None:
                yield f"{each.name.ljust(widths[0])}  {each.problem}"

    def _row(self, each: Estimate) -> list[str]:
        at = sorted({1.0, self.temperature})
        time = [
            human_seconds(each.seconds["dump"]),
            "never" if each.break_even_epochs is None else f"{each.break_even_epochs:,}",
        ]
        total, agreement = human_bytes(each.bytes["total"]), f"{100 * each.top1_agreement:.1f}"
        if self.positions is not None:
            bare = each.bare.get("step")
            return [
                each.name,
                f"{each.bytes_per_label:,.1f}",
                "-" if each.kept is None else f"{each.kept:.1f}",
                total,
                _nats(mean_kl(each, self.temperature)),
                agreement,
                _degrees(each.turns["sample"].angle),
                _degrees(each.turns["step"].angle),
                f"{each.turns['step'].ratio:.3f}",
                *(["-", "-"] if bare is None else [_degrees(bare.angle), f"{bare.ratio:.3f}"]),
                *time,
            ]
        half = each.angles["half_trained"]
        return [
            each.name,
            f"{each.bytes_per_label:,.1f}",
            total,
            *(_nats(mean_kl(each, t)) for t in at),
            _nats(each.kl[f"{self.temperature:g}"]["max"]),
            agreement,
            _degrees(each.angles["untrained"].rows),
            _degrees(half.rows),
            _degrees(half.batch),
            *time,
        ]

    def _legend(self) -> Iterator[str]:
        sound = [each for each in self.estimates if each.problem is None]
        if sound:
            held = sound[0].bytes
            parts = [f"index {human_bytes(held['index'])}", f"other files {human_bytes(held['other'])}"]
            parts[:0] = [f"features {human_bytes(held['features'])}"] if held["features"] else []
            yield f"cache   all files; whatever the encoding, about: {', '.join(parts)}"
        at = f"T={self.temperature:g}"
        if self.positions is not None:
            yield from self._legend_of_tokens(at)
            return
        yield f"KL      teacher || stored, nats: mean over the sample, and the largest; top-1 agreement at {at}"
        yield f"angle   degrees between the gradients in the student's logits at {at}, from all logits and from what is"
        yield "        kept: untrained student; half: half-trained one; batch: half-trained, gradients averaged first"
        yield "dump    expected time, loading and writing included (in memory: the disk is not measured)"
        yield "epochs  from so many on, the dump is cheaper than the teacher run beside the student"

    def _legend_of_tokens(self, at: str) -> Iterator[str]:
        step = next((each.turns["step"].positions for each in self.estimates if each.problem is None), 0)
        yield f"KL      teacher || stored, nats, mean over the sample, and top-1 agreement at {at}; draws have no KL"
        yield "angle   degrees between the gradients in the output matrix of a student that stands in, from full"
        yield f"        distributions and from what is kept, over the {self.sample:,} positions of the sample at {at}"
        yield f"step    the same to expect over {step:,} positions; length: of the one gradient to the other; bare: of"
        yield "        top-k trained without its residual. Noise averages out over more positions, a bias does not"
        if any(each.residual == EVEN for each in self.estimates):
            yield f"even    top-k trained with --loss-args residual={EVEN}: a line where that turns a step less"
        yield "ids     tokens that a position keeps, in the mean"
        yield "dump    expected time, loading and writing included (in memory: the disk is not measured)"
        yield "epochs  from so many on, the dump is cheaper than the teacher run beside the student"


def _nats(value: float) -> str:
    if not math.isfinite(value):
        return "-"
    return "0" if value == 0 else f"{value:.1e}" if value < 1e-3 else f"{value:.4f}" if value < 1 else f"{value:.3f}"


def _degrees(value: float) -> str:
    return "0" if value == 0 else f"{value:.1e}" if value < 0.01 else f"{value:.2f}"


def human_seconds(seconds: float) -> str:
    """A duration with the unit that suits it.

    >>> [human_seconds(s) for s in (0.0000042, 0.0123, 5.2, 600, 40_000)]
    ['4.2 us', '12 ms', '5.2 s', '10 min', '11.1 h']
    """
    if not math.isfinite(seconds):
        return "?"
    for limit, unit, size in ((1e-3, "us", 1e-6), (1, "ms", 1e-3), (90, "s", 1.0), (5400, "min", 60.0)):
        if seconds < limit:
            value = seconds / size
            return f"{value:.1f} {unit}" if value < 10 else f"{value:.0f} {unit}"
    return f"{seconds / 3600:,.1f} h"
