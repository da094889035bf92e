"""From options to a report: ask the teacher about a sample, measure every encoding on it, pick one if asked to."""

from __future__ import annotations

import dataclasses
import time

from pipeline.dump import prepare
from pipeline.errors import EncodingError
from pipeline.planning.choosing import choose, dump_options, reason, recommended, ways
from pipeline.planning.config import PlanConfig
from pipeline.planning.estimates import Estimate, candidates, estimate
from pipeline.planning.report import PlanReport
from pipeline.planning.sampling import ask_sample, default_size
from pipeline.planning.standing import Standing
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
    classes, discrete = len(job.dataset.classes), job.dataset.discrete
    if discrete and not config.given("temperature"):
        config = dataclasses.replace(config, temperature=1.0)
    sample = ask_sample(job, config.sample or default_size(discrete, classes), config.seed, progress)
    student = Standing.of(sample.logits, sample.hidden, config.temperature) if discrete else None
    wanted = candidates(config, classes, discrete)
    estimates: list[Estimate] = []
    with progress.bar("measure", len(wanted), "encodings") as bar:
        for options in wanted:
            estimates += ways(estimate(job, sample, options, config, setup_seconds, student))
            bar.update(1)
    picked, refused = None, None
    try:
        picked = choose(estimates, config)
    except EncodingError as error:
        refused = str(error)
    advised = recommended(estimates) if discrete and picked is None and refused is None else None
    taken = picked or advised
    return PlanReport(
        teacher=job.config.teacher,
        data=job.dataset.name,
        classes=classes,
        entries=job.layout.entries,
        splits={s: {"examples": e, "views": v} for s, (e, v) in job.layout.splits().items()},
        positions=job.layout.positions if discrete else None,
        sample=len(sample.logits),
        temperature=config.temperature,
        device=str(job.device),
        forward_seconds=sample.forward_seconds,
        load_seconds=sample.load_seconds,
        setup_seconds=setup_seconds,
        estimates=tuple(estimates),
        budget=config.budget,
        max_kl=config.max_kl,
        picked=None if picked is None else picked.name,
        recommended=None if advised is None else advised.name,
        command=None if taken is None else f"{dump_options(config, taken)} --out CACHE",
        reason="" if taken is None else reason(taken, estimates, config),
        refused=refused,
    )
