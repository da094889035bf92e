"""A model with its weights, refused where the file says that they belong to other classes or other inputs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipeline.datasets import Dataset
from pipeline.errors import ModelError
from pipeline.models.building import build_model
from pipeline.models.checks import check_class_names, check_vocabulary
from pipeline.models.structure import with_structure
from pipeline.models.weights import load_weights, read_metadata, read_state


def load_model(
    reference: str, arguments: Mapping[str, Any], weights: str | Path | None, dataset: Dataset, *, whose: str
) -> nn.Module:
    """``build_model`` for ``dataset`` with the weights of a file, if one is named; ``whose`` is for messages.

    A file that says that its model was pruned gives it its shape as well (``structure``).

    Raises ConfigError or ModelError: what ``build_model`` and ``load_weights`` raise, and weights that say of
    themselves that they were trained on other classes, another order of them, or inputs prepared in another way.
    """
    discrete = dataset.discrete
    model = build_model(
        reference, arguments, classes=len(dataset.classes), input_shape=dataset.input_shape, discrete=discrete
    )
    if weights is not None:
        named = f"{whose} ({weights})"
        if Path(weights).suffix == ".safetensors":  # which say what they are for before they fail to fit
            metadata = read_metadata(weights)
            check_metadata(metadata, dataset, named)
            if metadata.get("structure"):
                example = torch.zeros(2, *dataset.input_shape, dtype=torch.int64 if discrete else torch.float32)
                return with_structure(model, metadata["structure"], read_state(weights), example)
        check_metadata(load_weights(model, weights), dataset, named)
    return model


def check_metadata(metadata: Mapping[str, Any], dataset: Dataset, whose: str) -> None:
    """Raise ModelError when what a file of weights says of itself does not fit ``dataset``; silence fits everything."""
    names = metadata.get("class_names")
    named = isinstance(names, list) and all(isinstance(name, str) for name in names)
    known = names if named else None
    if dataset.discrete:
        check_vocabulary(known, dataset.classes, whose)
    else:
        check_class_names(known, dataset.classes, whose)
    declared = metadata.get("preprocessing")
    if declared is not None and declared != dataset.preprocessing:
        raise ModelError(
            f"{whose} was trained on inputs prepared as '{declared}'; {dataset.name} prepares them as "
            f"'{dataset.preprocessing}'. Prepare them alike, or use weights that were trained so"
        )
