"""The table that models and artefacts are compared in: a row each, figures with their meaning, doubts in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from pipeline.artefacts.checking import Check
from pipeline.artefacts.latency import Latency

SLOWER = 1.05
SMALLER = 0.95
AGREES = 0.95


@dataclass
class Row:
    """One model, artefact or control, filled in as it is made, tried, measured and timed.

    ``source``: the row it was made from, or that it is compared with; ``control`` rows are there to compare with, not
    to deploy; ``runtime`` names what computed the figures; ``file`` is what is deployed, ``weights`` the float model as
    safetensors; ``skipped`` says why there are none. Of several seeds the figures are means. Shares are from 0 to 1;
    ``nll`` and ``kl_to_teacher`` in nats; ``agreement`` is with ``source``. ``mcnemar_*``: how many examples only this
    row recognised, how many only the other, and the exact p-value; of rows of one seed. ``against_*``: the difference
    in accuracy with half its 95% interval; of language models they come with that in ``nll``, and their unit is the
    sequence. Of these, everything is of scored tokens: ``perplexity``; ``bits_per_byte`` of their text; ``acceptance``,
    the share of drafted tokens that the teacher accepts, ``acceptance_between`` its bounds where only these are known,
    ``tokens_per_call`` what 4 drafted tokens come to; ``cross_entropy_to_teacher`` where only draws of the teacher are
    known. ``macs``: multiply-accumulates of one example, counted on the float model.
    ``latency``: milliseconds per call by batch size. ``memory``: bytes that a fresh process needs at its peak beyond
    its runtime; ``load_seconds``: until its first answer; ``process`` all that is known of it. ``activations``: how
    types of int8 were chosen; ``scan``: what was tried on the way. ``seconds``: that making it took.
    """

    name: str
    what: str
    source: str | None = None
    control: bool = False
    runtime: str | None = None
    file: str | None = None
    weights: str | None = None
    bytes: int | None = None
    parameters: int | None = None
    nonzeros: int | None = None
    bits_per_parameter: float | None = None
    macs: int | None = None
    seeds: int | None = None
    accuracy: float | None = None
    accuracy_std: float | None = None
    accuracy_interval: list[float] | None = None
    top_k_accuracy: float | None = None
    validation_accuracy: float | None = None
    nll: float | None = None
    brier: float | None = None
    ece: float | None = None
    adaptive_ece: float | None = None
    calibrated: dict[str, float] | None = None
    agreement: float | None = None
    teacher_agreement: float | None = None
    kl_to_teacher: float | None = None
    perplexity: float | None = None
    perplexity_std: float | None = None
    bits_per_byte: float | None = None
    acceptance: float | None = None
    acceptance_between: list[float] | None = None
    tokens_per_call: float | None = None
    cross_entropy_to_teacher: float | None = None
    agreement_where_teacher_wrong: float | None = None
    corrupted_accuracy: float | None = None
    mce: float | None = None
    outlier_auroc: float | None = None
    outlier_energy_auroc: float | None = None
    outlier_confidence: float | None = None
    against_baseline: dict[str, Any] | None = None
    against_source: dict[str, Any] | None = None
    mcnemar_teacher: dict[str, Any] | None = None
    mcnemar_source: dict[str, Any] | None = None
    check: dict[str, Any] | None = None
    activations: dict[str, Any] | None = None
    scan: list[dict[str, Any]] | None = None
    latency: dict[str, dict[str, float]] | None = None
    memory: int | None = None
    load_seconds: float | None = None
    process: dict[str, Any] | None = None
    joules: float | None = None
    seconds: float | None = None
    skipped: str | None = None
    warnings: list[str] = field(default_factory=list)

    def tried(self, check: Check) -> None:
        """Note how the file behaved against its source."""
        self.check = asdict(check)
        self.warnings.extend(check.problems())

    def timed(self, latencies: Sequence[Mapping[int, Latency]]) -> None:
        """Note the latency by batch size, in milliseconds per call: the mean over the seeds' files."""
        if not latencies:
            return
        self.latency = {
            str(size): {
                "p50": float(np.mean([each[size].p50 for each in latencies])),
                "p95": float(np.mean([each[size].p95 for each in latencies])),
                "calls": sum(each[size].calls for each in latencies),
            }
            for size in latencies[0]
        }

    @property
    def milliseconds(self) -> float | None:
        """The median at the largest batch that was timed."""
        return self.latency[max(self.latency, key=int)]["p50"] if self.latency else None


def warn(rows: Sequence[Row]) -> None:
    """Say by default where a step made the model slower, no smaller, or another one than what it was made from.

    Sizes and times are held against each other within one runtime: a float model of torch beside a file of it says
    nothing of the step.
    """
    by_name = {row.name: row for row in rows}
    for row in rows:
        source = by_name.get(row.source or "")
        if source is None:
            continue
        alike = _runtime(row) == _runtime(source)
        if alike and row.bytes is not None and source.bytes is not None and row.bytes > SMALLER * source.bytes:
            row.warnings.append(f"no smaller than {source.name}: {row.bytes:,} B against {source.bytes:,} B")
        for size in sorted((row.latency or {}).keys() & (source.latency or {}).keys(), key=int) if alike else ():
            mine, before = (row.latency or {})[size]["p50"], (source.latency or {})[size]["p50"]
            if mine > SLOWER * before:
                row.warnings.append(f"slower than {source.name} at batch {size}: {mine:.3g} ms against {before:.3g} ms")
        if row.agreement is not None and row.agreement < AGREES and not row.control:
            what = "examples" if row.perplexity is None else "tokens"
            row.warnings.append(f"agrees with {source.name} on {row.agreement:.1%} of the test {what} only")
        row.warnings.sort()


def _runtime(row: Row) -> str:
    """The name of what computes a row, without its version."""
    return (row.runtime or "").partition(" ")[0]


def flat(rows: Sequence[Row], baseline: str) -> dict[str, Any]:
    """The few figures that ``dvc metrics show`` prints, per row: accuracy, size, and ratios to the baseline."""
    by_name = {row.name: row for row in rows}
    figures: dict[str, Any] = {}
    for row in rows:
        if row.accuracy is None:
            continue
        key = row.name.replace("-", "_")
        figures[f"{key}_accuracy"] = round(row.accuracy, 4)
        for name in ("perplexity", "bits_per_byte", "acceptance") if row.perplexity is not None else ():
            if getattr(row, name) is not None:
                figures[f"{key}_{name}"] = round(getattr(row, name), 4)
        if row.corrupted_accuracy is not None:
            figures[f"{key}_corrupted_accuracy"] = round(row.corrupted_accuracy, 4)
        if row.bytes is not None:
            figures[f"{key}_kilobytes"] = round(row.bytes / 1e3, 1)
        base = by_name.get(baseline)
        if row.latency and base is not None and base.latency and row.name != baseline:
            for size in sorted(row.latency.keys() & base.latency.keys(), key=int):
                figures[f"{key}_speedup_{size}"] = round(base.latency[size]["p50"] / row.latency[size]["p50"], 2)
    return figures
