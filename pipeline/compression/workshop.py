"""What every step of a recipe works with: the data, the labels, and models that are kept as files between steps."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from pipeline.compression import pruning
from pipeline.compression.choosing import Chosen
from pipeline.compression.config import CompressConfig
from pipeline.compression.finetuning import Tuning
from pipeline.compression.recipe import BASELINE, TEACHER
from pipeline.configuration import parse_arguments
from pipeline.datasets import Dataset
from pipeline.errors import ConfigError, DataError, ModelError
from pipeline.evaluation import labelled_rows, plain_batches, score_rows, torch_predictor
from pipeline.evaluation.teachers import Teachers
from pipeline.models import load_model
from pipeline.progress import Progress

TRIED = 64
"""Inputs that each file is checked on, one by one and together."""
TRIED_ELEMENTS = 1 << 23
"""Logits of language models that each file is checked on: 32 MiB."""
CALIBRATION_BATCH = 32


@dataclass(frozen=True)
class Product:
    """What a step made: a float ``model`` on the CPU in eval mode, or none where only a file can tell, and its file.

    ``sparse``: weights that are zero should stay so in training. ``root``: the model that it all started from.
    """

    name: str
    model: nn.Module | None = None
    file: Path | None = None
    sparse: bool = False
    root: str = BASELINE


class Workshop:
    """The data and the labels, opened once, and where files go. Raises DataError without a train split."""

    def __init__(
        self,
        config: CompressConfig,
        dataset: Dataset,
        chosen: Chosen,
        teachers: Teachers | None,
        folder: Path,
        progress: Progress,
    ) -> None:
        self.config, self.dataset, self.chosen, self.folder, self.progress = config, dataset, chosen, folder, progress
        self.soft = Tuning(config, chosen.run, progress)
        self.teachers = teachers
        self.classes = len(dataset.classes)
        self.validation = labelled_rows(dataset, "validation")
        train = dataset.rows("train")
        if not len(train):
            raise DataError(f"{dataset.name} should have a train split: fine-tuning and calibration use it; found none")
        order = np.random.default_rng(config.seed).permutation(train)
        self.calibration = np.sort(order[: config.calibration])
        self.example = next(plain_batches(dataset, self.calibration[[0, 0]], batch_size=2))[1]
        self.tried = next(plain_batches(dataset, self.validation[:TRIED], batch_size=TRIED))[1].numpy()
        if dataset.discrete:  # logits of every token: fewer sequences, and as much of them as memory allows
            most = max(TRIED_ELEMENTS // self.classes, 2)
            length = min(dataset.input_shape[0], most // 2)
            self.tried = np.ascontiguousarray(self.tried[: most // length, :length])

    @cached_property
    def student(self) -> nn.Module:
        """The one that is compressed."""
        return self.chosen.run.build(self.dataset, self.chosen.seed)

    @cached_property
    def teacher(self) -> nn.Module:
        """The one named by ``--teacher``. Raises ModelError without."""
        if self.config.teacher is None:
            raise ModelError(f"a step of {TEACHER} needs --teacher and --teacher-weights")
        reference, weights = self.reference(TEACHER), self.config.teacher_weights
        return load_model(
            reference, self.arguments(TEACHER), weights, self.dataset, whose=f"teacher {reference}"
        ).eval()

    @cached_property
    def hard(self) -> Tuning:
        """The same training, from hard labels alone. Raises ModelError for a student that has none such."""
        try:
            return Tuning(dataclasses.replace(self.config, cache="none"), self.chosen.run, self.progress)
        except ConfigError as error:
            raise ModelError(f"hard labels alone cannot teach this student: {error}") from error

    def reference(self, root: str) -> str:
        """What builds the student, or the teacher."""
        return str(self.config.teacher) if root == TEACHER else self.chosen.run.model[0]

    def arguments(self, root: str) -> dict[str, Any]:
        """Its factory's arguments."""
        if root == TEACHER:
            return parse_arguments(self.config.teacher_args, "--teacher-args")
        return parse_arguments(self.chosen.run.model[1], "the run's student_args")

    def tuning(self, labels: str) -> Tuning:
        """By the labels that a step names."""
        return self.soft if labels == "soft" else self.hard

    def original(self, name: str) -> nn.Module | None:
        """The models that compression starts from, by the name of their row."""
        return self.student if name == BASELINE else self.teacher if name == TEACHER else None

    def calibration_batches(self) -> Iterator[npt.NDArray[np.float32]]:
        """Inputs (B, ...) of the training split that set the ranges of activations."""
        return (x.numpy() for _, x in plain_batches(self.dataset, self.calibration, batch_size=CALIBRATION_BATCH))

    def recalibrated(self, model: nn.Module) -> nn.Module:
        """``model`` with its batch norms measured anew, in place."""
        pruning.recalibrate(model, self.soft.batches())
        return model

    def validation_accuracy(self, predict: Any) -> float:
        """Of a module, or of a function from tensors to logits."""
        predictor = torch_predictor(predict, torch.device("cpu")) if isinstance(predict, nn.Module) else predict
        size, workers = self.config.batch_size, self.config.workers
        scores = score_rows({0: predictor}, self.dataset, self.validation, batch_size=size, workers=workers)
        return scores[0].accuracy

    def logits(self, model: nn.Module) -> npt.NDArray[np.float32]:
        """Of the inputs that files are tried with."""
        predict = torch_predictor(model, torch.device("cpu"))
        return np.asarray(predict(torch.from_numpy(self.tried)), dtype=np.float32)

    def state(self, name: str) -> Path:
        """Where the training state of a step is kept while it runs."""
        return self.folder / JOURNAL / f"{name}.state"


JOURNAL = "journal"
"""The folder of what a resumed run needs and a finished one does not."""


def model_of(source: Product, what: str) -> nn.Module:
    """The float model of a product. Raises ModelError where there is only a file."""
    if source.model is None:
        raise ModelError(f"{what} needs a float model; {source.name} is a file. Put the step before quantisation")
    return source.model


def file_of(source: Product, what: str) -> Path:
    """The ONNX file of a product. Raises ModelError where there is none."""
    if source.file is None or source.file.suffix != ".onnx" or not source.file.is_file():
        raise ModelError(f"{what} needs {source.name}.onnx, which was not made")
    return source.file
