"""The steps that a recipe may declare, as data: what each takes, its defaults, and what is wrong with it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from pipeline.errors import ConfigError

SOFT, HARD = "soft", "hard"
CHANNELS, HEADS, WEIGHTS, TWO_OF_FOUR = "channels", "heads", "weights", "2:4"
RATIO = 0.5
"""What is pruned where nothing is said."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")


def fraction(value: Any, what: str) -> float:
    """A drop in accuracy from 0 to 1: a number, or points as text.

    >>> fraction("0.5pt", "it"), fraction(0.01, "it")
    (0.005, 0.01)

    Raises ConfigError naming ``what``.
    """
    try:
        points = isinstance(value, str) and value.strip().removesuffix("s").endswith("pt")
        found = float(value.strip().removesuffix("s").removesuffix("pt")) / 100 if points else float(value)
        found = -1.0 if isinstance(value, bool) else found
    except (ValueError, TypeError):
        found = -1.0
    if not 0 <= found < 1:
        raise ConfigError(f"{what} should be a drop such as 0.005 or '0.5pt', at least 0 and below 1; found {value!r}")
    return found


@dataclass(frozen=True, kw_only=True)
class Step:
    """What all steps have. ``of``: the name of what it starts from; ``control``: its row is there to compare with."""

    kind: ClassVar[str]
    makes: ClassVar[bool] = True
    """Whether later steps can start from its product."""
    name: str = ""
    of: str = ""
    control: bool = False

    def __post_init__(self) -> None:
        found = [*self._name_problems(), *self.problems()]
        if found:
            raise ConfigError(found)

    def _name_problems(self) -> Iterator[str]:
        if self.name and not _NAME.fullmatch(self.name):
            yield f"`name` becomes a file's: letters, digits, '.', '_', '+', '-'; found {self.name!r}"

    def problems(self) -> Iterator[str]:
        """What is wrong, one sentence each."""
        yield from ()

    def suffix(self) -> str:
        """What the step adds to the name of its source."""
        raise NotImplementedError

    def named(self) -> str:
        """The default name."""
        return self.suffix() if self.of in ("baseline", "") else f"{self.of}-{self.suffix()}"

    def as_dict(self) -> dict[str, Any]:
        """What was declared, as JSON values: everything that is not at its default."""
        fields = dataclasses.fields(self)
        given = {field.name: getattr(self, field.name) for field in fields}
        return {"step": self.kind} | {f.name: given[f.name] for f in fields if given[f.name] != f.default}

    def options(self) -> dict[str, Any]:
        """What was declared of what it does, and not of where it stands in its recipe. JSON values."""
        return {name: value for name, value in self.as_dict().items() if name not in ("step", "name", "of", "control")}


@dataclass(frozen=True, kw_only=True)
class Prune(Step):
    """Remove channels, attention heads or single weights; measure batch norms again; fine-tune for ``epochs``.

    How much: ``ratio`` of the channels (heads, weights), or what ``target_macs`` or ``target_parameters`` leave of the
    source's, or the most that costs no more than ``max_drop`` of validation accuracy. ``rounds``: in so many steps,
    with as many times a share of the fine-tuning. ``sensitivity``: ratios by layer, from a scan of each. ``like``: an
    earlier step whose ratio is taken. ``multiple``: layers keep a multiple of so many channels, which runtimes compute
    faster; 0 takes 8, less in narrow layers.
    """

    kind: ClassVar[str] = "prune"
    what: str = CHANNELS
    ratio: float | None = None
    target_macs: float | None = None
    target_parameters: float | None = None
    max_drop: float | None = None
    like: str = ""
    trials: int = 4
    importance: str = "l2"
    scope: str = "local"
    multiple: int = 0
    sensitivity: bool = False
    rounds: int = 1
    epochs: int | None = None
    lr: float | None = None
    labels: str = SOFT

    def suffix(self) -> str:
        return {CHANNELS: "pruned", HEADS: "fewer-heads", WEIGHTS: "sparse", TWO_OF_FOUR: "sparse-2-4"}[self.what]

    def problems(self) -> Iterator[str]:
        if self.what not in (CHANNELS, HEADS, WEIGHTS, TWO_OF_FOUR):
            yield f"`what` should be {CHANNELS}, {HEADS}, {WEIGHTS} or {TWO_OF_FOUR}; found {self.what!r}"
        targets = [n for n in ("ratio", "target_macs", "target_parameters", "max_drop") if getattr(self, n) is not None]
        if len(targets) > 1:
            yield f"give one of ratio, target_macs, target_parameters and max_drop; found {', '.join(targets)}"
        if self.like and (targets or self.sensitivity):
            yield "`like` takes the ratio of another step: leave ratio, targets, max_drop and sensitivity out"
        if self.sensitivity and self.max_drop is not None:
            yield "`sensitivity` finds ratios for a ratio or a target, not for max_drop: give one of both"
        if self.trials != Prune.trials and self.max_drop is None:
            yield "`trials` are of max_drop"
        for name in ("ratio", "target_macs", "target_parameters"):
            value = getattr(self, name)
            if value is not None and not 0 < value < 1:
                yield f"`{name}` should be above 0 and below 1; found {value:g}"
        if self.what in (WEIGHTS, TWO_OF_FOUR) and (self.sensitivity or set(targets) - {"ratio"} or self.rounds > 1):
            yield f"`what` = {self.what!r} leaves shapes alone: it takes a ratio, no targets, rounds or sensitivity"
        if self.what == HEADS and self.sensitivity:
            yield "`sensitivity` is of channels; heads leave by one ratio"
        if self.what == TWO_OF_FOUR and self.ratio is not None:
            yield "`what` = '2:4' removes two of four weights: leave `ratio` out"
        if self.multiple < 0:
            yield f"`multiple` should be 0 (automatic) or more; found {self.multiple}"
        if self.scope not in ("local", "global"):
            yield f"`scope` should be local or global; found {self.scope!r}"
        if self.rounds < 1 or self.trials < 1:
            yield f"`rounds` and `trials` should be at least 1; found {self.rounds} and {self.trials}"
        yield from _training_problems(self.epochs, self.lr, self.labels)


@dataclass(frozen=True, kw_only=True)
class Finetune(Step):
    """Train on, from the cached soft labels (``labels`` = soft) or from hard labels alone."""

    kind: ClassVar[str] = "finetune"
    epochs: int | None = None
    lr: float | None = None
    labels: str = SOFT

    def suffix(self) -> str:
        return "finetuned" if self.labels == SOFT else "finetuned-hard"

    def problems(self) -> Iterator[str]:
        yield from _training_problems(self.epochs, self.lr, self.labels)


@dataclass(frozen=True, kw_only=True)
class Scratch(Step):
    """The control for pruning: the same shape from random weights, by the labels and for the epochs of both."""

    kind: ClassVar[str] = "scratch"
    epochs: int | None = None
    labels: str = SOFT

    def suffix(self) -> str:
        return "scratch"

    def problems(self) -> Iterator[str]:
        yield from _training_problems(self.epochs, None, self.labels)


STATIC, DYNAMIC, WEIGHT_ONLY, QAT, MIXED, FP16, BF16 = "static", "dynamic", "weights", "qat", "mixed", "fp16", "bf16"
METHODS = (STATIC, DYNAMIC, WEIGHT_ONLY, QAT, MIXED, FP16, BF16)
_OF_METHODS = {
    "activations": (STATIC, QAT), "ranges": (STATIC, QAT, MIXED), "block": (WEIGHT_ONLY,), "max_drop": (MIXED,),
    "epochs": (QAT,), "lr": (QAT,), "labels": (QAT,),
}  # fmt: skip
"""Options that other methods would pass over."""


@dataclass(frozen=True, kw_only=True)
class Quantise(Step):
    """Fewer bits: int8 weights and activations (``static``, ``dynamic``), weights alone (``weights``, of ``bits``),
    trained for int8 (``qat``), int8 but for the most sensitive layers (``mixed``), half precision (``fp16``, ``bf16``).

    ``activations``: uint8, int8, or the faster of both as measured (auto). ``ranges``: how ranges of activations are
    chosen. ``block``: weights that share a scale. ``max_drop``: of mixed, of validation accuracy.
    """

    kind: ClassVar[str] = "quantise"
    method: str = STATIC
    activations: str = "auto"
    ranges: str = "min-max"
    bits: int = 8
    block: int = 32
    max_drop: float = 0.0
    epochs: int | None = None
    lr: float | None = None
    labels: str = SOFT

    def suffix(self) -> str:
        named = {STATIC: "int8", DYNAMIC: "int8-dynamic", WEIGHT_ONLY: f"int{self.bits}-weights", MIXED: "int8-mixed"}
        return named.get(self.method, self.method)

    def problems(self) -> Iterator[str]:
        if self.method not in METHODS:
            yield f"`method` should be one of {', '.join(METHODS)}; found {self.method!r}"
        if self.activations not in ("auto", "uint8", "int8"):
            yield f"`activations` should be auto, uint8 or int8; found {self.activations!r}"
        if self.ranges not in ("min-max", "percentile", "entropy"):
            yield f"`ranges` should be min-max, percentile or entropy; found {self.ranges!r}"
        if self.bits not in (4, 8):
            yield f"`bits` should be 4 or 8; found {self.bits}"
        if self.bits == 4 and self.method != WEIGHT_ONLY:
            yield f"4 bits are for `method` = {WEIGHT_ONLY!r}; found {self.method!r}"
        if self.block not in (16, 32, 64, 128, 256):
            yield f"`block` should be 16, 32, 64, 128 or 256; found {self.block}"
        for name, methods in _OF_METHODS.items():
            if self.method in METHODS and self.method not in methods and name in self.as_dict():
                yield f"`{name}` is of `method` = {' or '.join(map(repr, methods))}; found {self.method!r}"
        yield from _training_problems(self.epochs, self.lr, self.labels)


@dataclass(frozen=True, kw_only=True)
class Export(Step):
    """A file in another format: ``onnx`` (with another operator set), ``pt2`` (torch.export), ``executorch``."""

    kind: ClassVar[str] = "export"
    format: str = "onnx"
    opset: int | None = None

    def suffix(self) -> str:
        return self.format

    def problems(self) -> Iterator[str]:
        if self.format not in ("onnx", "pt2", "executorch"):
            yield f"`format` should be onnx, pt2 or executorch; found {self.format!r}"
        if self.opset is not None and self.format != "onnx":
            yield "`opset` is of onnx"


@dataclass(frozen=True, kw_only=True)
class Check(Step):
    """Bounds that ``of`` must keep, measured when all is made: the command fails when one is broken.

    ``max_drop``: of test accuracy, against ``against``; ``agreement``: with what it was made from; ``max_bytes``;
    ``max_ms``: median milliseconds at the largest batch timed; ``smaller``, ``faster``: times, against ``against``.
    """

    kind: ClassVar[str] = "check"
    makes: ClassVar[bool] = False
    against: str = "baseline"
    max_drop: float | None = None
    agreement: float | None = None
    max_bytes: int | None = None
    max_ms: float | None = None
    smaller: float | None = None
    faster: float | None = None

    def suffix(self) -> str:
        return "check"

    def problems(self) -> Iterator[str]:
        names = ("max_drop", "agreement", "max_bytes", "max_ms", "smaller", "faster")
        if all(getattr(self, name) is None for name in names):
            yield f"give one of {', '.join(names)}: what should hold"


def _training_problems(epochs: int | None, lr: float | None, labels: str) -> Iterator[str]:
    if epochs is not None and epochs < 0:
        yield f"`epochs` should be at least 0; found {epochs}"
    if lr is not None and not lr > 0:
        yield f"`lr` should be above 0; found {lr:g}"
    if labels not in (SOFT, HARD):
        yield f"`labels` should be {SOFT} or {HARD}; found {labels!r}"


KINDS: dict[str, type[Step]] = {step.kind: step for step in (Prune, Finetune, Scratch, Quantise, Export, Check)}
