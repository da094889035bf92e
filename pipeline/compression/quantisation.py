"""Int8 by ONNX Runtime's own quantiser: activations unsigned, weights signed and per channel.

Signed activations, the library's default, left two thirds of the convolutions of the model measured unfused and
slower than float; hence U8S8. On x86 without VNNI its 16-bit sums can saturate: ``reduce_range`` gives weights
seven bits there.
"""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.artefacts.onnx_file import INPUT, quiet, strip
from pipeline.errors import ModelError
from pipeline.references import optional
from pipeline.workspace import write_atomic


def load_quantiser() -> Any:
    """onnxruntime.quantization. Raises MissingDependencyError that names the extra."""
    for package in ("onnx", "onnxruntime"):
        optional(package, "compress", "quantising")
    with quiet():
        return optional("onnxruntime.quantization", "compress", "quantising")


class _Batches:
    """Calibration inputs in the form ONNX Runtime reads them."""

    def __init__(self, batches: Iterable[npt.NDArray[np.float32]]) -> None:
        self._batches = iter(batches)

    def get_next(self) -> dict[str, npt.NDArray[np.float32]] | None:
        """The next batch, or None at the end."""
        batch = next(self._batches, None)
        return None if batch is None else {INPUT: batch}


def quantise_static(
    source: Path, target: Path, batches: Iterable[npt.NDArray[np.float32]], *, reduce_range: bool = False
) -> None:
    """Write ``source`` with int8 weights and activations to ``target`` (quantise/dequantise pairs, min-max ranges).

    ``batches`` are (B, ...) float32 inputs of the training split: the ranges of activations come from them. Raises
    ModelError when ONNX Runtime cannot quantise the graph.
    """
    library = load_quantiser()
    shapes = importlib.import_module("onnxruntime.quantization.shape_inference")
    with tempfile.TemporaryDirectory() as folder, quiet():
        prepared, made = Path(folder) / "prepared.onnx", Path(folder) / "int8.onnx"
        try:
            shapes.quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
            library.quantize_static(
                str(prepared),
                str(made),
                _Batches(batches),
                quant_format=library.QuantFormat.QDQ,
                activation_type=library.QuantType.QUInt8,
                weight_type=library.QuantType.QInt8,
                per_channel=True,
                reduce_range=reduce_range,
                calibrate_method=library.CalibrationMethod.MinMax,
            )
        except Exception as error:
            raise ModelError(f"ONNX Runtime cannot quantise {source.name}: {error}") from error
        _finish(made, source, target)


def quantise_dynamic(source: Path, target: Path) -> None:
    """Write ``source`` with int8 weights to ``target``; ranges of activations are found anew at every call."""
    library = load_quantiser()
    with tempfile.TemporaryDirectory() as folder, quiet():
        made = Path(folder) / "int8.onnx"
        try:
            library.quantize_dynamic(str(source), str(made), per_channel=True, weight_type=library.QuantType.QInt8)
        except Exception as error:
            raise ModelError(f"ONNX Runtime cannot quantise {source.name}: {error}") from error
        _finish(made, source, target)


def _finish(made: Path, source: Path, target: Path) -> None:
    """Carry the source's properties over and write the file in one step, weights inside."""
    onnx = importlib.import_module("onnx")
    proto = onnx.load(str(made))
    properties = {p.key: p.value for p in onnx.load(str(source), load_external_data=False).metadata_props}
    strip(proto)
    shorten(proto)
    del proto.metadata_props[:]
    onnx.helper.set_model_props(proto, properties)
    write_atomic(target, proto.SerializeToString(deterministic=True))


def shorten(proto: Any) -> None:
    """Give inner values short names, in place: those that the quantiser makes are a third of a small file.

    Graphs with subgraphs are left alone, for those refer to outer values by name.
    """
    graph = proto.graph
    if proto.functions or any(
        attribute.g.node or attribute.graphs for node in graph.node for attribute in node.attribute
    ):
        return
    fixed = {value.name for value in (*graph.input, *graph.output)} | {""}
    names: dict[str, str] = {}

    def short(name: str) -> str:
        return name if name in fixed else names.setdefault(name, f"t{len(names)}")

    del graph.value_info[:]
    for initializer in graph.initializer:
        initializer.name = short(initializer.name)
    for node in graph.node:
        node.name = ""
        for values in (node.input, node.output):
            for i, name in enumerate(values):
                values[i] = short(name)
