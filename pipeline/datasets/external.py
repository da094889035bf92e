"""Datasets of other libraries, when they are installed: ``torchvision:NAME`` and ``hf:path``."""

from __future__ import annotations

import bisect
import inspect
import os
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.datasets.adapter import MapStyle
from pipeline.datasets.base import Dataset, cut_validation, split_index
from pipeline.datasets.pictures import Pictures
from pipeline.errors import ConfigError, DataError, first_line
from pipeline.identity import SPLITS
from pipeline.references import call, optional

_PICTURE_OPTIONS = tuple(inspect.signature(Pictures.make).parameters)


def torchvision_dataset(name: str, arguments: Mapping[str, Any]) -> Dataset:
    """A dataset of torchvision, train and test where it has them, a sixth of train as validation.

    Options: those of ``Pictures.make``, ``root`` (default "data"), ``download`` (default true), ``ids`` are
    "train/00042". Others go to torchvision. Content digests cover the decoded pixels.
    """
    library = optional("torchvision.datasets", "vision", f"torchvision:{name}")
    source = getattr(library, name, None)
    if not inspect.isclass(source):
        known = [n for n in getattr(library, "__all__", ()) if n[:1].isupper()]
        raise ConfigError(f"torchvision has no dataset {name!r}; it has {', '.join(known)}")
    given = dict(arguments)
    pictures = Pictures.make(**{k: given.pop(k) for k in _PICTURE_OPTIONS if k in given})
    parameters = inspect.signature(source).parameters
    offered = {"root": "data", "download": True}
    if "train" in parameters:
        variants: dict[str, dict[str, Any]] = {"train": {"train": True}, "test": {"train": False}}
    elif "split" in parameters and "split" not in given:
        variants = {s: {"split": s} for s in ("train", "val", "test")}
    else:
        variants = {"": {}}
    parts: dict[str, Any] = {}
    for split, extra in variants.items():
        try:
            parts[split] = call(source, given | extra, f"torchvision:{name}", offered)
        except (ValueError, RuntimeError, OSError) as error:
            if isinstance(error, ConfigError):
                raise
            # Many have no validation split, some (ImageNet) no test split, and say so with a ValueError.
            if split not in ("val", "test") or not isinstance(error, ValueError):
                raise DataError(f"torchvision:{name} {split}: {error}") from error
    ids = [f"{split}/{row:05d}".lstrip("/") for split, part in parts.items() for row in range(len(part))]
    splits = None
    if "" not in parts:
        splits = np.concatenate([np.full(len(part), split_index(s), np.int8) for s, part in parts.items()])
        splits = cut_validation(ids, splits)
    joined = _Joined(list(parts.values()))
    classes = getattr(joined.parts[0], "classes", None)
    if classes is None and given.get("num_classes"):
        classes = [str(n) for n in range(given["num_classes"])]
    return MapStyle(joined, f"torchvision:{name}", classes=classes, ids=ids, splits=splits, pictures=pictures)


class _Joined:
    """Several map-style datasets end to end."""

    def __init__(self, parts: Sequence[Any]) -> None:
        self.parts = parts
        self._ends = list(accumulate(len(p) for p in parts))
        known = [next((v for v in (getattr(p, a, None) for a in ("targets", "labels")) if v is not None), None)
                 for p in parts]  # fmt: skip
        self.labels = None if any(k is None for k in known) else np.concatenate([np.asarray(k) for k in known])

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, row: int) -> Any:
        part = bisect.bisect_right(self._ends, row)
        return self.parts[part][row - (self._ends[part - 1] if part else 0)]


class HubDataset(Dataset):
    """``hf:path``: a dataset of the Hugging Face library, saved to disk, a local folder of files, or a hub name.

    Splits named train, validation (or val, valid) and test are used, others are left out; without validation, a sixth
    of train. A column of pictures is decoded from its stored bytes, which the content digests cover; any other column
    should hold numbers of one shape.
    """

    def __init__(
        self, path: str, *, column: str | None = None, label: str | None = None, id: str | None = None, **options: Any
    ) -> None:
        """``column`` holds the inputs (by default the first of pictures, else of numbers), ``label`` the labels,
        ``id`` the ids (by default "train/42"); ``options`` are those of ``Pictures.make``."""
        library = optional("datasets", "hf", f"hf:{path}")
        name = f"hf:{path}"
        held = open_hub(library, path, name)
        self._parts = list(held.values())
        self._ends = list(accumulate(len(p) for p in self._parts))
        if not self._ends[-1]:
            raise DataError(f"{name} is empty: it should hold at least one example")
        features = self._parts[0].features
        for given in (column, label, id):
            if given is not None and given not in features:
                raise ConfigError(f"{name} has no column {given!r}; it has {', '.join(features)}")
        label = label or next((c for c in ("label", "labels", "y", "fine_label") if c in features), None)
        column = column or next(iter(_input_columns(library, features, label)), None)
        if column is None:
            raise DataError(f"{name}: name the column of inputs (column=...); it has {', '.join(features)}")
        self._column = column
        picture = isinstance(features[self._column], library.Image)
        if not picture and options:
            raise ConfigError(f"{name}: {', '.join(options)} are options of pictures; {self._column} holds none")
        self._pictures: Pictures | None = call(Pictures.make, options, name) if picture else None
        if picture:
            stored = library.Image(decode=False)
            self._parts = [part.cast_column(self._column, stored) for part in self._parts]
        ids = [str(i) for part in self._parts for i in part[id][:]] if id else _numbered(held)
        super().__init__(
            name=name,
            classes=_class_names(name, features, label, self._parts),
            ids=ids,
            labels=_label_values(self._parts, label) if label else None,
            splits=_splits(name, held, ids),
            input_shape=self._pictures.shape if self._pictures else self._values(0).shape,
            preprocessing=self._pictures.text if self._pictures else "values as they are, in float32",
        )

    def _item(self, row: int) -> Any:
        part = bisect.bisect_right(self._ends, row)
        return self._parts[part][row - (self._ends[part - 1] if part else 0)][self._column]

    def _values(self, row: int) -> npt.NDArray[np.float32]:
        try:
            return np.asarray(self._item(row), np.float32)
        except (TypeError, ValueError) as error:
            raise DataError(f"column {self._column} should hold numbers of one shape: {error}") from None

    def load(self, row: int) -> Tensor:
        """float32: a picture as (channels, H, W) in [0, 1], or the numbers of the column."""
        if self._pictures:
            return self._pictures.decode(self.read(row), f"{self.name}, {self.ids[row]}")
        return torch.from_numpy(self._values(row))

    def prepare(self, x: Tensor) -> Tensor:
        """Centre crop and normalisation of pictures; otherwise nothing."""
        return self._pictures.prepare(x) if self._pictures else x

    def read(self, row: int) -> bytes:
        """The stored bytes of a picture, or the float32 values."""
        if not self._pictures:
            values = self._values(row)
            return f"{values.dtype.str}{values.shape}\n".encode() + values.tobytes()
        item = self._item(row)
        if item and item.get("bytes"):
            return bytes(item["bytes"])
        try:
            return Path(item["path"]).read_bytes()
        except (OSError, TypeError, KeyError) as error:
            raise DataError(f"{self.name}, {self.ids[row]}: there is no picture: {error}") from error


def open_hub(library: Any, path: str, name: str, configuration: str | None = None) -> dict[str, Any]:
    """Split name -> dataset, of those whose names are known; "" where there is none. Raises DataError."""
    folder = Path(path).expanduser()
    try:
        if (folder / "dataset_dict.json").exists() or (folder / "dataset_info.json").exists():
            found = library.load_from_disk(str(folder))
        elif folder.exists() or not path.startswith((".", "/", "~")):
            found = library.load_dataset(str(folder) if folder.exists() else path, configuration)
        else:
            raise DataError(f"{name}: there is no folder {folder.absolute()}")
    except (OSError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        offline = " (HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE") else ""
        raise DataError(f"{name} cannot be opened{offline}: {first_line(error)}") from error
    held = dict(found) if isinstance(found, dict) else {"": found}
    known = {split: part for split, part in held.items() if split == "" or split_index(split) is not None}
    if not known:
        raise DataError(f"{name} should have splits among {', '.join(SPLITS)}; found {', '.join(held)}")
    return known


def _splits(name: str, held: Mapping[str, Any], ids: Sequence[str]) -> npt.NDArray[np.int8] | None:
    if "" in held:
        return None
    splits = np.concatenate([np.full(len(part), split_index(s), np.int8) for s, part in held.items()])
    # A single split called train is what a folder without any structure gets: no split of its own.
    return None if set(held) == {"train"} else cut_validation(ids, splits)


def _numbered(held: Mapping[str, Any]) -> list[str]:
    return [f"{split}/{row}".lstrip("/") for split, part in held.items() for row in range(len(part))]


def _input_columns(library: Any, features: Mapping[str, Any], label: str | None) -> list[str]:
    pictures = [c for c, kind in features.items() if isinstance(kind, library.Image)]
    plain = [c for c, kind in features.items() if c != label and not isinstance(kind, (library.Value, library.Image))]
    return [*pictures, *plain]


def _label_values(parts: Sequence[Any], label: str) -> npt.NDArray[Any]:
    return np.array([-1 if v is None else v for part in parts for v in part[label][:]])


def _class_names(name: str, features: Mapping[str, Any], label: str | None, parts: Sequence[Any]) -> list[str]:
    names = getattr(features.get(label), "names", None) if label else None
    if names:
        return list(names)
    if not label:
        raise DataError(f"{name}: name the column of labels (label=...); it has {', '.join(features)}")
    values = _label_values(parts, label)
    if values.dtype.kind not in "iu":
        raise DataError(f"{name}: column {label} should hold integer labels, found {values.dtype}")
    return [str(n) for n in range(int(values.max()) + 1)]
