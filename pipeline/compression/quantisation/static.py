"""Int8 weights and activations by ONNX Runtime's own quantiser, the type of the activations chosen by measurement.

Which types are fast depends on the processor and the runtime's kernels: signed activations, the library's default,
left two thirds of the convolutions of one model unfused and slower than float. On x86 without VNNI the 16-bit sums of
U8S8 can saturate: ``reduce_range`` gives weights seven bits there.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.artefacts.checking import Floats
from pipeline.artefacts.latency import Latency, measure
from pipeline.artefacts.onnx_runtime import open_model
from pipeline.compression.quantisation.counting import Fusion, fusion
from pipeline.compression.quantisation.files import (
    finish,
    load_proto,
    load_quantiser,
    prepare,
    quantising,
    without_spinning,
)
from pipeline.errors import ConfigError, ModelError
from pipeline.workspace import write_atomic

KINDS = {"U8S8": ("QUInt8", "QInt8"), "S8S8": ("QInt8", "QInt8"), "U8U8": ("QUInt8", "QUInt8")}
"""Names of activation and weight types."""
METHODS = {"min-max": "MinMax", "percentile": "Percentile", "entropy": "Entropy"}
"""How ranges of activations are found: all values, all but the outermost 0.001%, or the least divergence."""

AROUND_PRODUCTS = (
    "Conv", "ConvTranspose", "Gemm", "MatMul", "Relu", "Clip", "MaxPool", "AveragePool", "GlobalAveragePool",
)  # fmt: skip
"""What is quantised of a network with layer norms. Additions are not: its residual sums have a few large values, and
eight bits for them did 13 times the harm of the products' on the one measured, for a tenth of the time at batch 32."""


def operators_of(proto: Any) -> tuple[str, ...]:
    """The ONNX operators to quantise in a graph; empty: all that the library can."""
    transformer = any(node.op_type == "LayerNormalization" for node in proto.graph.node)
    return AROUND_PRODUCTS if transformer else ()


class Batches:
    """Calibration inputs in the form ONNX Runtime reads them."""

    def __init__(self, name: str, batches: Iterable[Any]) -> None:
        self._name, self._batches = name, iter(batches)
        self.examples = 0

    def get_next(self) -> dict[str, Any] | None:
        """The next batch, or None at the end."""
        batch = next(self._batches, None)
        if batch is None:
            return None
        self.examples += len(batch)
        return {self._name: np.ascontiguousarray(batch)}


def quantise_static(
    source: Path,
    target: Path,
    batches: Iterable[Floats],
    *,
    kind: str = "U8S8",
    method: str = "min-max",
    reduce_range: bool = False,
    operators: Sequence[str] = (),
    exclude: Sequence[str] = (),
    only: Sequence[str] = (),
) -> None:
    """Write ``source`` with int8 weights and activations to ``target``, as pairs of QuantizeLinear/DequantizeLinear.

    ``batches`` are (B, ...) inputs of the training split: the ranges of activations come from them. ``kind`` is one of
    KINDS, weights have a scale per output channel; ``method`` one of METHODS. ``operators`` are the ONNX operators to
    quantise (``operators_of`` the graph, if empty), ``exclude`` and ``only`` names of nodes of the *prepared* graph
    (``files.prepare``). Raises ConfigError on an unknown name, ModelError when ONNX Runtime cannot quantise the graph.
    """
    check_options(kind, method)
    load_quantiser()
    with quantising(source, "static") as folder:
        prepared = prepare(source, folder)
        options: dict[str, Any] = {"operators": operators, "exclude": exclude, "only": only}
        made = folder / "int8.onnx"
        done = quantise_prepared(
            prepared, made, batches, kind=kind, method=method, reduce_range=reduce_range, **options
        )
        finish(load_proto(made), source, target, done)


def check_options(kind: str, method: str) -> None:
    """Raise ConfigError unless both names are known."""
    problems = []
    if kind not in KINDS:
        problems.append(f"types of static quantisation should be one of {', '.join(KINDS)}; found {kind}")
    if method not in METHODS:
        problems.append(f"calibration should be one of {', '.join(METHODS)}; found {method}")
    if problems:
        raise ConfigError(problems)


def quantise_prepared(
    prepared: Path,
    made: Path,
    batches: Iterable[Floats],
    *,
    kind: str,
    method: str,
    reduce_range: bool,
    operators: Sequence[str] = (),
    exclude: Sequence[str] = (),
    only: Sequence[str] = (),
) -> dict[str, Any]:
    """The library's call on a prepared file; what was done, as JSON values."""
    library = load_quantiser()
    activation, weight = KINDS[kind]
    proto = load_proto(prepared)
    operators = operators or operators_of(proto)
    reader = Batches(proto.graph.input[0].name, batches)
    with without_spinning():
        library.quantize_static(
            str(prepared),
            str(made),
            reader,
            quant_format=library.QuantFormat.QDQ,
            op_types_to_quantize=list(operators) or None,
            activation_type=getattr(library.QuantType, activation),
            weight_type=getattr(library.QuantType, weight),
            per_channel=True,
            reduce_range=reduce_range,
            nodes_to_exclude=list(exclude),
            nodes_to_quantize=list(only),
            calibrate_method=getattr(library.CalibrationMethod, METHODS[method]),
        )
    if not reader.examples:
        raise ModelError("static quantisation should have calibration batches; found none")
    done: dict[str, Any] = {"how": "static", "types": kind, "calibration": method, "examples": reader.examples}
    done |= {"reduce_range": reduce_range}
    return done | ({"operators": list(operators)} if operators else {})


@dataclass(frozen=True)
class Choice:
    """Which kind won, with every kind's times in milliseconds by batch size and what of it was fused.

    ``times`` holds the float source too, under ``float``; ``skipped`` the kinds that do not run, with the reason.
    """

    kind: str
    times: dict[str, dict[int, Latency]]
    fused: dict[str, Fusion]
    skipped: dict[str, str]


def choose_activation_type(
    source: Path,
    target: Path,
    batches: Sequence[Floats],
    *,
    kinds: Sequence[str] = ("U8S8", "S8S8"),
    batch_sizes: Sequence[int] = (1, 32),
    seconds: float = 1.0,
    threads: int = 1,
    method: str = "min-max",
    reduce_range: bool = False,
    operators: Sequence[str] = (),
) -> Choice:
    """Quantise as each of ``kinds``, time them in turns on this machine, and write the fastest to ``target``.

    The fastest has the least geometric mean of the medians over ``batch_sizes``. Other arguments as for
    ``quantise_static``. Raises ModelError when no kind can be made and run.
    """
    models = {"float": open_model(source, threads)}
    fused, skipped = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for kind in kinds:
            made = Path(folder) / f"{kind}.onnx"
            try:
                quantise_static(
                    source, made, batches, kind=kind, method=method, reduce_range=reduce_range, operators=operators
                )
                model = open_model(made, threads)
                model(batches[0][:1])
                fused[kind] = fusion(made)
                models[kind] = model
            except ModelError as error:
                skipped[kind] = str(error)
        if not fused:
            raise ModelError(f"no kind of int8 can be made of {source.name}: {skipped}")
        times = measure(models, batches[0], batch_sizes, seconds=seconds)
        kind = min(fused, key=lambda k: float(np.mean(np.log([t.p50 for t in times[k].values()]))))
        write_atomic(target, (Path(folder) / f"{kind}.onnx").read_bytes())
    return Choice(kind, times, fused, skipped)
