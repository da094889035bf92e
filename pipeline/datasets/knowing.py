"""A dataset as a teacher of some of its classes sees it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from pipeline.datasets.base import Dataset
from pipeline.errors import ConfigError, some
from pipeline.progress import Progress


class Knowing(Dataset):
    """All examples of a dataset, with some of its classes, in an order of one's own.

    The examples of the others have no label (-1). Ids, splits, content and digests are those of the dataset.
    """

    def __init__(self, dataset: Dataset, classes: Sequence[str]) -> None:
        new = np.full(len(dataset.classes) + 1, -1, np.int64)  # the last is where -1, no label, points to
        new[[dataset.classes.index(name) for name in classes]] = np.arange(len(classes))
        super().__init__(
            name=dataset.name,
            classes=classes,
            ids=dataset.ids,
            input_shape=dataset.input_shape,
            labels=new[np.asarray(dataset.labels)],
            splits=dataset.splits,
            preprocessing=dataset.preprocessing,
        )
        self.whole = dataset

    def load(self, row: int) -> Tensor:
        return self.whole.load(row)

    def prepare(self, x: Tensor) -> Tensor:
        return self.whole.prepare(x)

    def read(self, row: int) -> bytes:
        return self.whole.read(row)

    def content_digest(self, row: int) -> str:
        return self.whole.content_digest(row)

    def digest(self, progress: Progress | None = None) -> str:
        return self.whole.digest(progress)

    def known_digest(self, row: int) -> str:
        return self.whole.known_digest(row)


def knowing(dataset: Dataset, texts: Sequence[str]) -> Dataset:
    """``dataset`` with the classes that ``--classes`` names, the dataset itself where it names none.

    A text is the name of a class, or several joined by commas (one that holds a comma itself comes alone). Raises
    ConfigError for a name that is no class of the dataset, or is given twice, and for one class alone.
    """
    if texts and dataset.discrete:
        raise ConfigError(f"--classes is for examples of one label each; {dataset.name} holds tokens of one vocabulary")
    names: list[str] = []
    for text in texts:
        names += [text] if text in dataset.classes else [part.strip() for part in text.split(",")]
    problems = []
    if strange := [name for name in names if name not in dataset.classes]:
        problems.append(
            f"--classes should be classes of {dataset.name} ({some(dataset.classes, 10)}); found {some(strange)}"
        )
    if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        problems.append(f"--classes names {some(twice)} more than once")
    if len(names) == 1:
        problems.append(f"--classes should name two classes or more; found {names[0]}")
    if problems:
        raise ConfigError(problems)
    return Knowing(dataset, names) if names else dataset
