"""Sources of examples with stable ids: digits, arrays, image folders, tokens, other libraries' datasets, one's own."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from pipeline.datasets.adapter import MapStyle
from pipeline.datasets.arrays import Arrays
from pipeline.datasets.base import FRACTIONS, Dataset, check_dataset, split_of
from pipeline.datasets.digits import Digits
from pipeline.datasets.external import HubDataset, torchvision_dataset
from pipeline.datasets.images import Images
from pipeline.datasets.knowing import knowing
from pipeline.datasets.munge import Munged
from pipeline.datasets.tokens.dataset import Tokens
from pipeline.errors import ConfigError
from pipeline.references import call, resolve

__all__ = [
    "FRACTIONS",
    "Arrays",
    "Dataset",
    "Digits",
    "HubDataset",
    "Images",
    "MapStyle",
    "Munged",
    "Tokens",
    "check_dataset",
    "knowing",
    "load_dataset",
    "split_of",
]

CHOICES = (
    "digits, arrays:FILE.npz, images:FOLDER, tokens:FOLDER, torchvision:NAME, hf:PATH, munge:BASE or module:factory"
)


def load_dataset(reference: str, arguments: Mapping[str, Any] | None = None) -> Dataset:
    """The dataset that ``--data`` names, with ``--data-args`` as ``arguments``, checked by ``check_dataset``.

    Raises ConfigError for a reference or argument that is not known, DataError for data that cannot be used.
    """
    given = dict(arguments or {})
    source, colon, rest = reference.partition(":")
    if reference == "digits":
        dataset = call(Digits, given, "--data digits")
    elif not colon or not rest:
        raise ConfigError(f"--data should be {CHOICES}; found {reference!r}")
    elif source in _SOURCES:
        dataset = call(_SOURCES[source], {"path": rest} | given, f"--data {reference}")
    else:
        dataset = _own(reference, given)
    check_dataset(dataset)
    return dataset  # type: ignore[no-any-return]


def _images(path: str, **options: Any) -> Dataset:
    return Images(path, **options)


def _torchvision(path: str, **options: Any) -> Dataset:
    return torchvision_dataset(path, options)


_MUNGED = frozenset({"size", "p", "s", "seed", "union"})
OF_BASE = "base_"


def _munged(path: str, **options: Any) -> Dataset:
    """Arguments that are not munge's are the base's; ``base_size`` is, where both have one of a name."""
    of_base = {key.removeprefix(OF_BASE): value for key, value in options.items() if key not in _MUNGED}
    own = {key: value for key, value in options.items() if key in _MUNGED}
    return Munged(load_dataset(path, of_base), **own)


_SOURCES: dict[str, Any] = {
    "arrays": Arrays,
    "images": _images,
    "torchvision": _torchvision,
    "hf": HubDataset,
    "munge": _munged,
    "tokens": Tokens,
}


def _own(reference: str, arguments: Mapping[str, Any]) -> Any:
    found = resolve(reference, "--data")
    factory = inspect.isclass(found) or (callable(found) and not hasattr(found, "__getitem__"))
    dataset = call(found, arguments, f"--data {reference}") if factory else found
    return dataset if isinstance(dataset, Dataset) else MapStyle(dataset, reference)
