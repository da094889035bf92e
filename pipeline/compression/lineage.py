"""What an artefact says of itself: its classes, its input, and the way back to the run, the cache and the teacher."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from typing import Any

from pipeline.artefacts.metadata import ArtefactMetadata, Lineage
from pipeline.artefacts.metadata import Step as Made
from pipeline.compression.recipe import TEACHER
from pipeline.compression.steps import Step
from pipeline.compression.workshop import Workshop
from pipeline.identity import digest
from pipeline.training.stage import model_metadata

PACKAGES = ("torch", "onnx", "onnxscript", "onnxruntime", "torch-pruning", "executorch")


def about(shop: Workshop, root: str, steps: Sequence[Step]) -> ArtefactMetadata:
    """What goes into a file: ``root`` is the model that it was made from, by ``steps``."""
    dataset, run, teachers = shop.dataset, shop.chosen.run, shop.teachers
    caches = teachers.caches if teachers else ()
    lineage = Lineage(
        cache=digest(teachers.digest) if teachers and len(caches) > 1 else caches[0].digest if caches else None,
        teacher=dict(caches[0].identity.get("teacher") or {}) if len(caches) == 1 else {},
        run=run.name,
        config=digest(dict(run.config)),
        seed=shop.chosen.seed,
    )
    if root == TEACHER:
        lineage = Lineage(teacher={"reference": shop.config.teacher, "args": shop.arguments(root)})
    made = tuple(Made(step.kind, step.options()) for step in steps)
    return ArtefactMetadata(
        class_names=tuple(dataset.classes),
        preprocessing=dataset.preprocessing,
        input_shape=tuple(dataset.input_shape),
        lineage=lineage,
        steps=made,
        discrete=dataset.discrete,
        made_by=f"softlabels {_version('softlabels') or ''}".strip(),
    )


def building(shop: Workshop, root: str) -> dict[str, Any]:
    """What a file of weights says of the model that they are for: enough to build it again."""
    return model_metadata(shop.reference(root), shop.arguments(root), shop.dataset)


def versions() -> dict[str, str]:
    """Versions of the packages that shaped the files."""
    return {package: found for package in PACKAGES if (found := _version(package))}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
