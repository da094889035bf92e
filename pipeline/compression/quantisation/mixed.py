"""Mixed precision: most layers in int8, the few that suffer from it in float.

Each group of layers is quantised alone and the divergence of the logits from the float file's is measured on
calibration inputs; then as few of the most sensitive groups as will do go back to float.
ONNX Runtime may still quantise the weight of a lone float layer between int8 ones when it opens the file; what it then
computes is what is scored here.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.artefacts.checking import Floats, Predictor
from pipeline.artefacts.onnx_runtime import open_model
from pipeline.compression.quantisation.files import finish, load_proto, load_quantiser, prepare, quantising
from pipeline.compression.quantisation.static import check_options, quantise_prepared
from pipeline.errors import ConfigError, ModelError

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass(frozen=True)
class Sensitivity:
    """A group of neighbouring layers; ``divergence`` (nats): what quantising it alone does to the predictions."""

    layers: tuple[str, ...]
    divergence: float
    in_float: bool = False


@dataclass(frozen=True)
class Mixed:
    """The scan, the most sensitive group first; scores of the float file and of those tried, by groups in float."""

    scan: tuple[Sensitivity, ...]
    source_score: float
    scores: dict[int, float]
    met: bool

    def table(self) -> list[dict[str, Any]]:
        """The scan as rows of JSON values."""
        return [
            {"layers": list(row.layers), "divergence": row.divergence, "in_float": row.in_float} for row in self.scan
        ]


def divergence(logits: Floats, source: Floats) -> float:
    """Mean KL divergence (nats) of the predictions of ``logits`` (B, C) from those of ``source`` (B, C)."""
    expected, found = _log_softmax(source), _log_softmax(logits)
    return float((np.exp(expected) * (expected - found)).sum(axis=1).mean())


def _log_softmax(logits: Floats) -> np.ndarray[Any, np.dtype[np.float64]]:
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


def quantise_mixed(
    source: Path,
    target: Path,
    batches: Sequence[Floats],
    *,
    max_drop: float,
    score: Callable[[Predictor], float] | None = None,
    groups: int = 16,
    kind: str = "U8S8",
    method: str = "min-max",
    reduce_range: bool = False,
    threads: int = 1,
) -> Mixed:
    """Write ``source`` in int8 to ``target``, as few groups of layers in float as keep the score.

    ``score`` of a predictor, more is better, must not fall more than ``max_drop`` below the float file's; without one
    it is minus the ``divergence`` on ``batches`` (nats). Layers are convolutions and matrix products with weights, in
    ``groups`` of neighbours at most, so that no more than ``groups`` + 2 log2 ``groups`` + 2 files are made. ``met`` is
    False where no number of groups in float did; then the best is written. Other arguments as for
    ``quantise_static``. Raises ConfigError, ModelError.
    """
    check_options(kind, method)
    if max_drop < 0 or groups < 1:
        raise ConfigError(f"max_drop should be 0 or more and groups at least 1; found {max_drop} and {groups}")
    load_quantiser()
    batches = list(batches)
    if not batches:
        raise ModelError("mixed precision should have calibration batches; found none")
    predict = open_model(source, threads)
    expected = np.concatenate([predict(batch) for batch in batches])

    def logits(path: Path) -> Floats:
        model = open_model(path, threads)
        return np.concatenate([model(batch) for batch in batches])

    def scored(path: Path) -> float:
        return -divergence(logits(path), expected) if score is None else score(open_model(path, threads))

    with quantising(source, "mixed") as folder:
        prepared, made = prepare(source, folder), folder / "int8.onnx"
        options: dict[str, Any] = {"kind": kind, "method": method, "reduce_range": reduce_range}
        found = []
        for layers in _groups(_named(prepared), groups):
            quantise_prepared(prepared, made, batches, only=layers, **options)
            found.append(Sensitivity(tuple(layers), divergence(logits(made), expected)))
        found.sort(key=lambda row: -row.divergence)
        source_score = 0.0 if score is None else score(predict)
        bound = source_score - max_drop
        scores: dict[int, float] = {}
        done: dict[int, dict[str, Any]] = {}

        def attempt(in_float: int) -> bool:
            exclude = [name for row in found[:in_float] for name in row.layers]
            file = folder / f"{in_float}.onnx"
            done[in_float] = quantise_prepared(prepared, file, batches, exclude=exclude, **options)
            scores[in_float] = scored(file)
            return scores[in_float] >= bound

        best = _fewest(attempt, len(found))  # all groups in float would be the source
        met = best is not None
        if best is None:
            best = max(scores, key=lambda k: scores[k])
        how = done[best] | {"how": "mixed", "in_float": [name for row in found[:best] for name in row.layers]}
        finish(load_proto(folder / f"{best}.onnx"), source, target, how)
    scan = tuple(Sensitivity(row.layers, row.divergence, k < best) for k, row in enumerate(found))
    return Mixed(scan, source_score, scores, met)


def _fewest(attempt: Callable[[int], bool], end: int) -> int | None:
    """The least number below ``end`` for which ``attempt`` holds, if it holds from some number on: 0, 1, 2, 4, ...
    until it does, then halving the gap. None where it did not hold for any tried."""
    failed, tried = -1, 0
    while not attempt(tried):
        failed = tried
        if tried == end - 1:
            return None
        tried = min(max(1, 2 * tried), end - 1)
    while tried - failed > 1:
        middle = (failed + tried) // 2
        if attempt(middle):
            tried = middle
        else:
            failed = middle
    return tried


def _named(prepared: Path) -> list[str]:
    """Names of the layers with weights in a prepared file, in order; those without a name get one."""
    onnx = importlib.import_module("onnx")
    proto = load_proto(prepared)
    stored = {tensor.name for tensor in proto.graph.initializer}
    for k, node in enumerate(proto.graph.node):
        node.name = node.name or f"{node.op_type}_{k}"
    onnx.save(proto, str(prepared))
    names = [n.name for n in proto.graph.node if n.op_type in WEIGHTED and n.input[1] in stored]
    if not names:
        raise ModelError("there are no convolutions or matrix products with weights to quantise")
    return names


def _groups(names: list[str], most: int) -> list[list[str]]:
    """``names`` in at most ``most`` runs of nearly equal length."""
    return [list(part) for part in np.array_split(np.asarray(names, dtype=object), min(most, len(names)))]
