"""What there is to compress in a language model: its weights in fewer bits, in formats that take token sequences."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.compression.config import CompressConfig
from pipeline.compression.recipe import BASELINE, TEACHER, Recipe
from pipeline.compression.steps import BF16, DYNAMIC, FP16, WEIGHT_ONLY, Check, Export, Quantise, Step
from pipeline.errors import ConfigError

METHODS = (WEIGHT_ONLY, DYNAMIC, FP16, BF16)
"""Ways to quantise that look at no inputs."""
FORMATS = ("onnx", "pt2")


def language_recipe(config: CompressConfig) -> Recipe:
    """Weights in int8 and in int4, and int8 with ranges of activations found at every call, beside the float file."""
    if not config.int8:
        return Recipe(())
    return Recipe(
        (
            Quantise(name="int8-weights", of=BASELINE, method=WEIGHT_ONLY),
            Quantise(name="int4-weights", of=BASELINE, method=WEIGHT_ONLY, bits=4),
            Quantise(name="int8-dynamic", of=BASELINE, method=DYNAMIC),
        )
    )


def check_language(config: CompressConfig, recipe: Recipe, name: str) -> None:
    """Raise ConfigError for what is not of language models, naming all of it."""
    given = ("search", "prune", "target_macs", "max_drop", "teacher")
    problems = [f"--{option.replace('_', '-')}" for option in config.given(*given)]
    problems += _steps(recipe)
    if problems:
        raise ConfigError(
            f"{', '.join(problems)}: of classifiers; {name} has token sequences. Language models are quantised by "
            f"{', '.join(METHODS)} and exported to {' and '.join(FORMATS)}"
        )


def _steps(recipe: Recipe) -> Iterator[str]:
    for step in recipe.steps:
        if not _is_fit(step):
            yield f"step {step.name or step.kind} ({step.kind}{_way(step)})"


def _is_fit(step: Step) -> bool:
    if step.of == TEACHER:
        return False
    if isinstance(step, Quantise):
        return step.method in METHODS
    return step.format in FORMATS if isinstance(step, Export) else isinstance(step, Check)


def _way(step: Step) -> str:
    return f", {step.method}" if isinstance(step, Quantise) else f", {step.format}" if isinstance(step, Export) else ""
