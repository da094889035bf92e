"""Bytes and gradients of sparse labels over a large vocabulary: which encoding turns the student's gradient least.

The gradient is that of KL(teacher || student), averaged over positions, in the student's output matrix (V, D). From
full distributions it is the mean of (q - p) h over the positions, q being the student's distribution, p the teacher's
and h the hidden state; from what was kept it is the mean of (q - w) h, w being what the labels stand for. Noise that
is another at every position averages out in it, and a bias does not.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from benchmarks.long_tail import LONG_TAIL, PEAKED, TWELVE, VOCABULARY, Teacher
from benchmarks.measure import Row, Settings, Table
from benchmarks.trained import Trained
from pipeline.encodings import ArraySpec, Sampled, position_keys
from pipeline.encodings.encode_torch import encode
from pipeline.encodings.planes import Planes
from pipeline.planning.parameters import Kept, largest, turn
from pipeline.store.shards import ShardPlan

BATCH = 256
RANGE = 16.0
"""Nats below the largest logit that a value of few bits reaches."""

RESIDUALS = {
    "bare": "the others renormalised",
    "even": "their mass spread evenly",
    "student": "their mass spread as the student spreads its own: all dropped classes as one outcome",
    "background": "their mass spread as the teacher spreads it on average over all positions",
}
"""What stands for the classes that are neither kept nor drawn."""


@dataclass(frozen=True)
class Candidate:
    """One way of keeping a distribution: the ``k`` largest classes, ``sampled`` classes of the others, or both.

    ``bits`` of each kept value: 16 is float16; 4 to 8 are steps of ``RANGE`` nats below the largest. ``residual``: see
    ``RESIDUALS``, where nothing is drawn. ``stored``: ids in whole numbers and two float32, as ``TopK`` keeps them;
    otherwise as ``Sampled`` packs ids, and two float16.
    """

    sampled: Sampled | None = None
    k: int = 0
    residual: str = "bare"
    bits: int = 16
    stored: bool = False

    @property
    def name(self) -> str:
        """In a few words."""
        words = []
        if self.k:
            words.append(f"top-{self.k}{'' if self.bits == 16 else f' of {self.bits} bits'}")
        if self.sampled is None:
            words.append("bare" if self.residual == "bare" else f"{self.residual} residual")
        else:
            proposal = f" from p^{self.sampled.proposal:g}" if self.sampled.proposal != 1 else ""
            words.append(f"{self.sampled.n} {self.sampled.scheme} draws{proposal}")
        return ", ".join(words) + (" (TopK as it is)" if self.stored else "")


@dataclass
class Batch:
    """Positions of one batch, and of them what every candidate needs. ``top``: logits and ids of the largest (B, K)."""

    hidden: Tensor
    logits: Tensor
    p: Tensor
    q: Tensor
    top: tuple[Tensor, Tensor]
    keys: npt.NDArray[np.uint64]


@dataclass
class Found:
    """What a candidate came to: the sum of w h (V, D), ids kept, and its arrays with their codecs, batch by batch."""

    label: Tensor
    kept: int = 0
    arrays: list[dict[str, tuple[npt.NDArray[Any], str]]] = field(default_factory=list)

    def bytes(self, rows: int) -> float:
        """Bytes of a position as the store writes them, all arrays together."""
        total = 0
        for name, (first, codec) in self.arrays[0].items():
            whole = np.concatenate([each[name][0] for each in self.arrays])
            total += len(ShardPlan.of(ArraySpec(first.shape[1:], str(first.dtype), codec), 1, len(whole)).encode(whole))
        return total / rows


@dataclass(frozen=True)
class Error:
    """A candidate's ids and bytes a position, and its gradient's angle (degrees) and length against the full one's."""

    kept: float
    bytes: float
    angle: float
    ratio: float


def gradient_errors(
    teacher: Teacher | Trained, candidates: Sequence[Candidate], rows: int
) -> tuple[list[Error], dict[str, float]]:
    """The error of each of ``candidates`` over so many positions, and what the teacher is like on them."""
    shape = teacher.weight.shape
    background = mean_distribution(teacher)
    full, student = torch.zeros(shape), torch.zeros(shape)
    found = [Found(torch.zeros(shape)) for _ in candidates]
    seen = {"bits": 0.0, "largest": 0.0, "top-12": 0.0}
    most = max(12, *(each.k for each in candidates))
    for first in range(0, rows, BATCH):
        hidden = teacher.measured(first, BATCH)
        logits = teacher.logits(hidden)
        p, q = logits.softmax(dim=1), teacher.student_logits(hidden).softmax(dim=1)
        full.addmm_(p.T, hidden)
        student.addmm_(q.T, hidden)
        batch = Batch(hidden, logits, p, q, logits.topk(most, dim=1), position_keys(first, BATCH))
        best = p.gather(1, batch.top[1])
        seen["bits"] += float(torch.special.entr(p).sum()) / float(np.log(2)) / rows
        seen["largest"] += float(best[:, 0].sum()) / rows
        seen["top-12"] += float(best[:, :12].sum()) / rows
        for candidate, sums in zip(candidates, found, strict=True):
            _add(candidate, sums, batch, background)
    errors = []
    for sums in found:
        turned = turn(full, sums.label, student, rows)
        errors.append(Error(sums.kept / rows, sums.bytes(rows), turned.angle, turned.ratio))
    return errors, seen


def mean_distribution(teacher: Teacher | Trained) -> Tensor:
    """The teacher's mean (V,) over positions that are not those measured: a background distribution."""
    parts = teacher.others().split(BATCH)
    return torch.stack([teacher.logits(part).softmax(dim=1).mean(dim=0) for part in parts]).mean(dim=0)


def _add(candidate: Candidate, found: Found, batch: Batch, background: Tensor) -> None:
    """Count one batch: what a candidate stands for, times the hidden states, and its arrays."""
    arrays: dict[str, tuple[npt.NDArray[Any], str]] = {}
    rest = torch.ones(len(batch.p))
    if candidate.k:
        rest = _largest(candidate, found, batch, background, arrays)
    if candidate.sampled is not None:
        logits = batch.logits
        if candidate.k:
            logits = logits.scatter(1, batch.top[1][:, : candidate.k], -1e4)
        stored = encode(candidate.sampled, logits, batch.keys)
        specs = candidate.sampled.specs(logits.shape[1])
        arrays.update({name: (values, specs[name].codec) for name, values in stored.items()})
        soft = candidate.sampled.decode(stored, logits.shape[1]).map(torch.from_numpy)
        weights = soft.weights * rest[soft.rows]
        Kept(soft.rows, soft.ids, weights).add_to(found.label, batch.q, batch.hidden)
        found.kept += len(soft.ids)
    found.arrays.append(arrays)


def _largest(
    candidate: Candidate,
    found: Found,
    batch: Batch,
    background: Tensor,
    arrays: dict[str, tuple[npt.NDArray[Any], str]],
) -> Tensor:
    """The k largest, and what stands for the others; the mass (B,) of those."""
    ids, order = batch.top[1][:, : candidate.k].sort(dim=1)
    values = (batch.top[0] - batch.top[0][:, :1])[:, : candidate.k].gather(1, order)
    if candidate.bits == 16:
        code, values = values.half().numpy(), values.half().float()
    else:
        step = RANGE / (2**candidate.bits - 1)
        coded = (values / -step).round().clamp(max=2**candidate.bits - 1)
        code, values = coded.to(torch.uint8).numpy(), coded * -step
    normaliser = (batch.logits - batch.top[0][:, :1]).logsumexp(dim=1)
    weights = (values - normaliser[:, None]).exp()
    # Summed over the others: one less the kept is below 0 where a teacher is sure, and has no logarithm.
    rest = batch.p.scatter(1, ids, 0.0).sum(dim=1)
    _pack(candidate, ids, code, arrays)
    if candidate.sampled is None:
        if candidate.residual == "bare":
            weights = weights / weights.sum(dim=1, keepdim=True)
        elif candidate.residual == "even":
            spread = rest / (len(background) - candidate.k)
            found.label += (spread @ batch.hidden)[None]
            weights = weights - spread[:, None]
        elif candidate.residual == "student":
            largest(ids, weights.log(), rest.log(), batch.q).add_to(found.label, batch.q, batch.hidden)
            found.kept += ids.numel()
            return rest
        else:
            own = background[ids]
            scale = rest / (1 - own.sum(dim=1))
            found.label.addr_(background, scale @ batch.hidden)
            weights = weights - own * scale[:, None]
    rows = torch.arange(len(ids))[:, None].expand_as(ids)
    Kept(rows.flatten(), ids.flatten(), weights.flatten()).add_to(found.label, batch.q, batch.hidden)
    found.kept += ids.numel()
    return rest


def _pack(
    candidate: Candidate, ids: Tensor, code: npt.NDArray[Any], arrays: dict[str, tuple[npt.NDArray[Any], str]]
) -> None:
    """The arrays of the k largest: those of ``TopK``, or tighter ones."""
    deltas = np.diff(ids.numpy(), axis=1, prepend=0)
    scalars = 0 if candidate.sampled is not None else 2
    if candidate.stored:
        arrays["ids"] = (deltas.astype(np.uint32), "zstd")
        arrays["scalars"] = (np.random.default_rng(0).random((len(ids), scalars)).astype(np.float32), "none")
    else:
        for plane, packed in enumerate(Planes.of(2**17, 0).split(deltas.reshape(-1), deltas)):
            arrays[f"ids_{plane}"] = (packed, "zstd")
        if scalars:
            arrays["scalars"] = (np.zeros((len(ids), scalars), np.float16), "none")
    arrays["values"] = (code.reshape(-1), "none" if candidate.bits == 16 else "zstd")


def candidates() -> list[Candidate]:
    """Those that the table compares."""
    draws = [Candidate(Sampled(50)), Candidate(Sampled(100)), Candidate(Sampled(60, scheme="independent"))]
    hybrids = [Candidate(Sampled(40), k=2), Candidate(Sampled(8), k=8)]
    kept = [Candidate(k=12, residual=residual) for residual in RESIDUALS]
    narrow = [Candidate(k=k, residual=each, bits=8) for k in (8, 12) for each in ("bare", "even", "student")]
    return [*draws, *hybrids, *kept, *narrow, Candidate(k=12, residual="even", stored=True)]


AIMS: dict[str, tuple[str, Callable[[Error], bool]]] = {
    "long tail": (
        "at most 1.8 B an id, ratio 1.00 +- 0.02",
        lambda error: error.bytes / error.kept <= 1.8 and abs(error.ratio - 1) <= 0.02,
    ),
    "twelve ids": ("at most 22 B", lambda error: error.bytes <= 22),
}
"""What 50 systematic draws should come to."""


def run(settings: Settings) -> Table:
    """Every candidate on a long-tailed teacher, a peaked and a trained one, and how fast draws are decoded."""
    rows, vocabulary = settings.pick(16_384, 512), settings.pick(VOCABULARY, 2_000)
    found, likenesses = [], []
    teachers = {
        "long tail": lambda: Teacher.make(vocabulary, strengths=LONG_TAIL),
        "twelve ids": lambda: Teacher.make(vocabulary, strengths=TWELVE),
        "peaked": lambda: Teacher.make(vocabulary, strengths=PEAKED),
        "trained": lambda: Trained.make(settings.scratch, rows, settings.quick),
    }
    for on, made in teachers.items():
        teacher, chosen = made(), candidates()[:1] if on == "twelve ids" else candidates()
        errors, seen = gradient_errors(teacher, chosen, rows)
        likenesses.append(
            f"{on}: {seen['bits']:.1f} bits, largest probability {seen['largest']:.2f}, 12 largest {seen['top-12']:.2f}"
        )
        for candidate, error in zip(chosen, errors, strict=True):
            shown = f"{error.bytes:.1f} B, {error.kept:.1f} ids, {error.angle:.2f} degrees, ratio {error.ratio:.3f}"
            aim, met = AIMS.get(on, ("shown", None)) if candidate == chosen[0] else ("shown", None)
            found.append(Row(candidate.name, on, shown, aim, None if met is None else met(error)))
    speed, kept = decoding(Teacher.make(vocabulary), settings.pick(4_096, 256))
    found.append(
        Row(
            "50 systematic draws: decoding, one core",
            f"{kept:.1f} ids a position",
            f"{speed * kept / 12 / 1e6:.1f} million positions/s at 12 ids",
            "at least 3 million",
            speed * kept / 12 >= 3e6,
        )
    )
    return Table(
        f"Sparse labels over {vocabulary:,} tokens",
        found,
        (
            "Bytes and kept ids a position; angle and length of the gradient in a linear student's output matrix, "
            f"averaged over {rows:,} positions, against that of the full distributions. Three teachers are made of "
            "random numbers (benchmarks/long_tail.py), one is a small model of 4,096 tokens, trained on Python's "
            "standard library and asked about other text (benchmarks/trained.py). On average: "
            f"{'; '.join(likenesses)}.",
            "Residual: " + "; ".join(f"{name}, {meaning}" for name, meaning in RESIDUALS.items()) + ".",
            "Decoding: from arrays in memory, as they are once decompressed, to soft labels.",
        ),
    )


def decoding(teacher: Teacher, rows: int) -> tuple[float, float]:
    """Positions decoded in a second, and the ids that each has."""
    made, vocabulary = Sampled(50), len(teacher.bias)
    parts = [
        encode(made, teacher.logits(teacher.hidden(BATCH, first)), position_keys(first, BATCH))
        for first in range(0, rows, BATCH)
    ]
    arrays = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    best = np.inf
    for _ in range(20):
        began = time.perf_counter()
        soft = made.decode(arrays, vocabulary)
        best = min(best, time.perf_counter() - began)
    return rows / best, len(soft.ids) / rows
