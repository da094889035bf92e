"""The recipe that options stand for, and the controls that stand beside any recipe."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from pipeline.compression.config import CompressConfig
from pipeline.compression.recipe import BASELINE, TEACHER, Recipe
from pipeline.compression.steps import (
    CHANNELS,
    DYNAMIC,
    HARD,
    HEADS,
    QAT,
    RATIO,
    SOFT,
    STATIC,
    Check,
    Finetune,
    Prune,
    Quantise,
    Scratch,
    Step,
    fraction,
)  # fmt: skip


def default_recipe(config: CompressConfig) -> Recipe:
    """Quantise the student; prune it, and quantise that, after training and by training."""
    steps: list[Step] = []
    if config.int8:
        steps.append(Quantise(name="int8", of=BASELINE, method=STATIC))
        steps.append(Quantise(name="int8-dynamic", of=BASELINE, method=DYNAMIC, control=True))
    for prune in _prunings(config):
        steps.extend(forms(prune, config))
    return Recipe(tuple(steps))


def forms(prune: Prune, config: CompressConfig) -> list[Step]:
    """A pruned model as it is, and where int8 is asked for also quantised, after training and by training."""
    steps: list[Step] = [prune]
    if config.int8:
        steps.append(Quantise(name=f"{prune.name}-int8", of=prune.name, method=STATIC))
        if config.qat and config.epochs:
            steps.append(Quantise(name=f"{prune.name}-qat", of=prune.name, method=QAT))
    return steps


def _prunings(config: CompressConfig) -> list[Prune]:
    if config.target_macs is not None:
        return [Prune(name="pruned", of=BASELINE, target_macs=config.target_macs, importance=config.importance)]
    if config.max_drop is not None:
        drop = fraction(config.max_drop, "--max-drop")
        return [Prune(name="pruned", of=BASELINE, max_drop=drop, importance=config.importance)]
    ratios = [ratio for ratio in (config.prune or (RATIO,)) if ratio > 0]
    names = ["pruned"] if len(ratios) == 1 else [f"pruned-{round(100 * ratio)}" for ratio in ratios]
    return [
        Prune(name=name, of=BASELINE, ratio=ratio, importance=config.importance)
        for name, ratio in zip(names, ratios, strict=True)
    ]


def with_controls(recipe: Recipe, config: CompressConfig, *, soft: bool) -> Recipe:
    """``recipe`` with the controls that belong into every table, each after what it is a control for.

    The teacher merely quantised; each pruned shape from random weights on the same labels; the same fine-tuning on
    hard labels, where it is ``soft`` labels that are learnt from; the student with the same extra epochs.
    """
    steps: list[Step] = []
    if config.teacher is not None and config.int8:
        steps.append(Quantise(name=f"{TEACHER}-int8", of=TEACHER, method=STATIC, control=True))
    for step in recipe.steps:
        steps.append(step)
        if config.controls and not step.control:
            steps.extend(_controls_of(step, config, soft))
    trained = any(isinstance(s, (Prune, Finetune)) and _epochs(s, config) for s in recipe.steps)
    if config.controls and trained:
        steps.append(Finetune(name="finetuned", of=BASELINE, control=True))
    names: dict[str, Step] = {}
    for step in steps:  # what the recipe itself declares goes first
        if step.makes and (step.name not in names or names[step.name].control):
            names[step.name] = step
    kept = [step for step in steps if not step.makes or names[step.name] is step]
    return Recipe(tuple(kept))


def unknown_names(recipe: Recipe, config: CompressConfig) -> Iterator[str]:
    """What a recipe with its controls names and the run will not have: bounds against nothing, a teacher."""
    known = {BASELINE} | {step.name for step in recipe.steps if step.makes}
    known |= {TEACHER} if config.teacher is not None else set()
    for step in recipe.steps:
        if step.of == TEACHER and config.teacher is None:
            yield f"a step of {TEACHER} needs --teacher and --teacher-weights"
        elif isinstance(step, Check) and step.against not in known:
            yield f"`against` of a check should be one of {', '.join(sorted(known))}; found {step.against!r}"


def _controls_of(step: Step, config: CompressConfig, soft: bool) -> Iterator[Step]:
    if isinstance(step, Prune) and step.what in (CHANNELS, HEADS):
        yield Scratch(name=f"{step.name}-scratch", of=step.name, control=True)
    if soft and isinstance(step, (Prune, Finetune)) and step.labels == SOFT and _epochs(step, config):
        again = dataclasses.replace(step, name=f"{step.name}-hard", labels=HARD, control=True)
        shares_ratio = isinstance(again, Prune) and again.what in (CHANNELS, HEADS) and not again.sensitivity
        if isinstance(again, Prune) and shares_ratio and again.ratio is None and not again.like:
            nothing: dict[str, Any] = {"target_macs": None, "target_parameters": None, "max_drop": None}
            again = dataclasses.replace(again, like=step.name, trials=Prune.trials, **nothing)
        yield again


def _epochs(step: Prune | Finetune, config: CompressConfig) -> int:
    return config.epochs if step.epochs is None else step.epochs
