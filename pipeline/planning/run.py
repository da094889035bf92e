"""From options to a report: ask the teacher about a sample, measure every encoding on it, pick one if asked to."""

from __future__ import annotations

import time

from pipeline.dump import prepare
from pipeline.errors import EncodingError
from pipeline.planning.choosing import choose, dump_options
from pipeline.planning.config import PlanConfig
from pipeline.planning.estimates import candidates, estimate
from pipeline.planning.report import PlanReport
from pipeline.planning.sampling import ask_sample
from pipeline.progress import Progress, Silent


def run(config: PlanConfig, progress: Progress | None = None) -> PlanReport:
    """Measure what a dump would cost and lose, by encoding. Nothing is written.

    The dump is prepared as ``softlabels dump`` prepares it, so whatever that would refuse is refused here. Where
    ``budget`` or ``max_kl`` cannot be met, ``refused`` of the report says so.

    Raises ConfigError, DataError, ModelError, and EncodingError naming the entry of which nothing can be kept.
    """
    progress = progress or Silent()
    began = time.perf_counter()
    job = prepare(config.dump())
    setup_seconds = time.perf_counter() - began
    sample = ask_sample(job, config.sample, config.seed, progress)
    wanted = candidates(config, len(job.dataset.classes))
    estimates = []
    with progress.bar("measure", len(wanted), "encodings") as bar:
        for options in wanted:
            estimates.append(estimate(job, sample, options, config, setup_seconds))
            bar.update(1)
    picked, refused = None, None
    try:
        picked = choose(estimates, config)
    except EncodingError as error:
        refused = str(error)
    return PlanReport(
        teacher=config.teacher,
        data=job.dataset.name,
        classes=len(job.dataset.classes),
        entries=job.layout.entries,
        splits={s: {"examples": e, "views": v} for s, (e, v) in job.layout.splits().items()},
        sample=len(sample.entries),
        temperature=config.temperature,
        device=str(job.device),
        forward_seconds=sample.forward_seconds,
        load_seconds=sample.load_seconds,
        setup_seconds=setup_seconds,
        estimates=tuple(estimates),
        budget=config.budget,
        max_kl=config.max_kl,
        picked=None if picked is None else picked.name,
        command=None if picked is None else f"{dump_options(config, picked)} --out CACHE",
        refused=refused,
    )
