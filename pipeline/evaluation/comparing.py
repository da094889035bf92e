"""Two evaluations held against each other: how far apart they are, how far chance alone reaches, what was expected."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline import metrics
from pipeline.configuration import REQUIRED, Config, option
from pipeline.errors import ConfigError
from pipeline.metrics import Comparison
from pipeline.outputs import json_bytes
from pipeline.progress import Progress
from pipeline.runs import read_json
from pipeline.workspace import write_atomic

ACCURACY, OMITTED_CLASS = "accuracy", "omitted_class_accuracy"
CALIBRATED = "calibrated_"
"""Before the name of a figure: after temperature scaling."""
RECENT = ("brier", "adaptive_ece")
"""Figures of every evaluation now, and of none by earlier releases."""
EXPECTATIONS = ("higher", "lower", "alike")
AS_EXPECTED, OTHER_WAY, WITHIN_NOISE, NOT_SHOWN = "as expected", "the other way", "within noise", "not shown"


@dataclass(frozen=True)
class Figure:
    """How a figure of an evaluation is printed: its title, times ``scale``, in ``unit``, with so many ``digits``."""

    title: str
    scale: float = 100.0
    unit: str = "points"
    digits: int = 1

    def text(self, value: float, signed: bool = False) -> str:
        """A value without its unit."""
        return f"{self.scale * value:{'+' if signed else ''}.{self.digits}f}"

    def pair(self, first: float, second: float) -> str:
        """Two values, and what they are of."""
        unit = "%" if self.unit == "points" else f" {self.unit}".rstrip()
        return f"{self.text(first)} and {self.text(second)}{unit}"

    def expected(self, expect: str, margin: float | None) -> str:
        """What was expected, in words; ``margin`` in the unit."""
        return f"{expect} within {margin:g} {self.unit}".rstrip() if margin else expect


FIGURES = {
    ACCURACY: Figure("accuracy"),
    OMITTED_CLASS: Figure("accuracy on the omitted class"),
    "nll": Figure("negative log-likelihood", 1.0, "nats", 3),
    "brier": Figure("Brier score", 1.0, "", 3),
    "ece": Figure("expected calibration error"),
    "adaptive_ece": Figure("expected calibration error in bins of equal mass"),
    f"{CALIBRATED}nll": Figure("negative log-likelihood after temperature scaling", 1.0, "nats", 3),
    f"{CALIBRATED}brier": Figure("Brier score after temperature scaling", 1.0, "", 3),
    f"{CALIBRATED}ece": Figure("expected calibration error after temperature scaling"),
    "teacher_agreement": Figure("agreement with the teacher"),
    "agreement_where_teacher_wrong": Figure("agreement with the teacher where it is wrong"),
    "kl_to_teacher": Figure("KL to the teacher", 1.0, "nats", 3),
    "perplexity": Figure("perplexity", 1.0, "", 2),
    "bits_per_token": Figure("bits per token", 1.0, "bits", 3),
    "bits_per_byte": Figure("bits per byte", 1.0, "bits", 3),
    "acceptance": Figure("share of drafted tokens that the teacher accepts"),
    "cross_entropy_to_teacher": Figure("cross-entropy with the teacher's draws", 1.0, "nats", 3),
}
LANGUAGE = ("perplexity", "bits_per_token", "bits_per_byte", "acceptance", "cross_entropy_to_teacher")
"""Figures of language models alone."""


@dataclass(frozen=True, kw_only=True)
class CompareConfig(Config):
    """Options of ``softlabels compare``."""

    first: Path = option(REQUIRED, "directory of an evaluation")
    second: Path = option(REQUIRED, "directory of the evaluation that it is held against")
    metric: str = option(ACCURACY, "which of their figures", choices=tuple(FIGURES))
    expect: str | None = option(
        None, "what the first should be, as someone claims: the outcome says whether it is", choices=EXPECTATIONS
    )
    margin: float | None = option(
        None, "with --expect alike: differences up to this count as none, in the unit printed (points, or nats)"
    )
    claim: str = option("", "what is claimed, in words; it goes into the result and the report")
    source: str = option("", "who claims it")
    out: Path | None = option(None, "JSON file for the result, which softlabels report takes as --claims")

    def problems(self) -> Iterator[str]:
        if (self.expect == "alike") != (self.margin is not None):
            yield "--expect alike and --margin go together: how far apart is still alike"
        if self.margin is not None and not self.margin > 0:
            yield f"--margin should be above 0; found {self.margin:g}"
        if self.out is not None and self.out.suffix != ".json":
            yield f"--out should be a JSON file, such as {self.out}.json; found {self.out}"


@dataclass(frozen=True)
class CompareReport:
    """``first`` and ``second``: means over the seeds that both have, over all where they have none in common.

    ``comparison`` is of shares where the figure is printed in points.
    """

    config: CompareConfig
    first: float
    second: float
    comparison: Comparison

    @property
    def figure(self) -> Figure:
        """What was compared."""
        return FIGURES[self.config.metric]

    @property
    def outcome(self) -> str:
        """Whether it is as expected; "" where nothing is."""
        margin = None if self.config.margin is None else self.config.margin / self.figure.scale
        return outcome(self.comparison, self.config.expect, margin) if self.config.expect else ""

    @property
    def difference(self) -> str:
        """The difference with its 95% half width and unit."""
        reach = self.comparison.half_width
        around = "" if np.isinf(reach) else f" ± {self.figure.text(reach)}"
        return f"{self.figure.text(self.comparison.difference, signed=True)}{around} {self.figure.unit}".rstrip()

    @property
    def summary(self) -> str:
        """The result for people, a line, and one more where something was expected."""
        shown, config = self.figure, self.config
        causes = {"paired seeds": self.comparison.by_seeds, "test examples": self.comparison.by_examples}
        known = [name for name, reach in causes.items() if not np.isnan(reach)]
        how = f" (95%: {' and '.join(known)})" if known else ""
        line = (
            f"{shown.title} of {config.first.name} and {config.second.name}: {shown.pair(self.first, self.second)}, "
            f"{self.difference}{how}: {self.comparison.verdict}"
        )
        if not config.expect:
            return line
        head = ", ".join(filter(None, [config.source, config.claim]))
        expected = shown.expected(config.expect, config.margin)
        return f"{head + chr(10) if head else ''}{line}\nexpected {expected}: {self.outcome}"

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON values; a half width that is not known is null."""
        found = self.comparison

        def known(value: float) -> float | None:
            return value if np.isfinite(value) else None

        return {
            **{key: value for key, value in self.config.as_dict().items() if key != "out"},
            "first_mean": self.first,
            "second_mean": self.second,
            "difference": found.difference,
            "half_width": known(found.half_width),
            "by_seeds": known(found.by_seeds),
            "by_examples": known(found.by_examples),
            "paired_seeds": found.seeds,
            "verdict": found.verdict,
            "outcome": self.outcome,
            "text": self.difference,
        }


def run(config: CompareConfig, progress: Progress | None = None) -> CompareReport:
    """Compare, and write ``out`` where one is named.

    Raises ConfigError when a directory holds no evaluation, lacks the figure, or measured other examples, and when
    ``out`` is a file of another kind.
    """
    first, second = (
        read_json(folder / "details.json", "the details of an evaluation (softlabels evaluate writes them)")
        for folder in (config.first, config.second)
    )
    if first["examples_digest"] != second["examples_digest"]:
        raise ConfigError(
            f"{config.second} measured other examples than {config.first}. Evaluate both on the same data and split"
        )
    ours, theirs = _values(first, config.metric, config.first), _values(second, config.metric, config.second)
    paired = ours.keys() & theirs.keys()
    means = [
        metrics.spread([value for seed, value in each.items() if seed in paired or not paired])[0]
        for each in (ours, theirs)
    ]
    report = CompareReport(config, means[0], means[1], compared(first, second, config.metric))
    if config.out is not None:
        _refuse_another(config.out)
        config.out.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(config.out, json_bytes(report.as_dict()))
    return report


def compared(first: Mapping[str, Any], second: Mapping[str, Any], metric: str) -> Comparison:
    """One figure of the details of two evaluations: paired by seed and, for accuracies, by test example."""
    values = by_seed(first, metric), by_seed(second, metric)
    if metric in (ACCURACY, OMITTED_CLASS) and first["examples_digest"] == second["examples_digest"]:
        ours, theirs = (_hits(details, first, metric) for details in (first, second))
        sizes = first.get("positions")
        return metrics.compare(*values, ours, theirs, None if sizes is None else np.asarray(sizes, dtype=np.float64))
    return metrics.compare(*values)


def by_seed(details: Mapping[str, Any], metric: str) -> dict[int, float]:
    """One figure of each seed of an evaluation that has it."""

    def of(figures: Mapping[str, Any]) -> Any:
        if metric.startswith(CALIBRATED):
            return (figures.get("calibrated") or {}).get(metric.removeprefix(CALIBRATED))
        return figures.get(metric)

    found = {int(seed): of(figures) for seed, figures in details["seeds"].items()}
    return {seed: float(value) for seed, value in found.items() if value is not None}


def outcome(found: Comparison, expect: str, margin: float | None = None) -> str:
    """Whether a comparison is as expected, the other way, or not told apart from noise.

    ``alike`` is shown by an interval that lies within ``margin`` on both sides of 0, and refuted by one outside.

    >>> outcome(Comparison(0.02, 0.01, 0.0, 5), "higher"), outcome(Comparison(0.02, 0.01, 0.0, 5), "lower")
    ('as expected', 'the other way')
    >>> outcome(Comparison(0.02, 0.01, 0.0, 5), "alike", 0.05), outcome(Comparison(0.02, 0.01, 0.0, 5), "alike", 0.02)
    ('as expected', 'not shown')
    """
    if expect == "alike":
        allowed = margin or 0.0
        if abs(found.difference) + found.half_width <= allowed:
            return AS_EXPECTED
        return OTHER_WAY if abs(found.difference) - found.half_width > allowed else NOT_SHOWN
    if found.verdict == WITHIN_NOISE:
        return WITHIN_NOISE
    return AS_EXPECTED if found.verdict == expect else OTHER_WAY


def _values(details: Mapping[str, Any], metric: str, folder: Path) -> dict[int, float]:
    """``by_seed``. Raises ConfigError when no seed has the figure."""
    found = by_seed(details, metric)
    if not found:
        why = "it was measured without the teacher's labels"
        if metric == OMITTED_CLASS:
            why = "no class was left out"
        elif metric.startswith(CALIBRATED):
            why = "no temperature was fitted; its details.json may say why (calibration)"
        elif metric in LANGUAGE:
            why = "it is of language models, or was left out; its details.json may say why (left_out)"
        elif metric in RECENT:
            why = "an earlier release wrote it; evaluate again"
        raise ConfigError(f"{folder} has no {FIGURES[metric].title}: {why}")
    return found


def _hits(details: Mapping[str, Any], first: Mapping[str, Any], metric: str) -> npt.NDArray[np.float64]:
    """The share of seeds that recognised each test example that counts; those of the omitted class are ``first``'s.

    Of sequences the sum over their tokens.
    """
    shares = np.asarray(details["hits"], dtype=np.float64) / max(len(details["seeds"]), 1)
    return shares[first.get("omitted_class_rows") or []] if metric == OMITTED_CLASS else shares


def _refuse_another(out: Path) -> None:
    """Raise ConfigError when ``out`` is there and is no comparison."""
    if out.exists():
        try:
            read_comparison(out)
        except ConfigError as error:
            raise ConfigError(f"--out {out} is there, and holds no comparison. Name another place") from error


def read_comparison(path: Path) -> dict[str, Any]:
    """What ``run`` wrote. Raises ConfigError for another file."""
    what = "a comparison (softlabels compare --out writes it)"
    found = read_json(path, what)
    numbers = ("first_mean", "second_mean", "difference")
    if (
        found.get("metric") not in FIGURES
        or not all(isinstance(found.get(name), str) for name in ("first", "second", "outcome", "verdict", "text"))
        or not all(isinstance(found.get(name), float) for name in numbers)
        or not all(isinstance(found.get(name), float | None) for name in ("half_width", "margin"))
    ):
        raise ConfigError(f"{path} should be {what}; it lacks some of what that holds")
    return found
