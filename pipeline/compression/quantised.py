"""Steps that quantise, and those that export: from a model or its file to another file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import torch

from pipeline.artefacts.executorch_file import export_executorch
from pipeline.artefacts.onnx_file import export_onnx
from pipeline.artefacts.pt2_file import export_pt2
from pipeline.compression import quantisation
from pipeline.compression.finetuning import epochs_of
from pipeline.compression.lineage import about
from pipeline.compression.steps import BF16, DYNAMIC, FP16, MIXED, QAT, STATIC, WEIGHT_ONLY, Export, Quantise, Step
from pipeline.compression.workshop import Product, Workshop, file_of, model_of
from pipeline.evaluation.candidates import as_tensors
from pipeline.evaluation.table import Row

KINDS = {"auto": ("U8S8", "S8S8"), "uint8": ("U8S8",), "int8": ("S8S8",)}
"""Types of activations and weights that are tried, by the option of a step."""
SLOWER = 0.1
"""The rate of quantisation-aware training over that of fine-tuning: there are no batch norms any more."""
Way: TypeAlias = Callable[[Quantise, Product, Workshop, Row, tuple[Step, ...]], Product]


def quantised(step: Quantise, source: Product, shop: Workshop, row: Row, steps: tuple[Step, ...]) -> Product:
    """What ``step`` makes of ``source``; ``steps`` are those that led here, this one included."""
    ways: dict[str, Way] = {
        STATIC: _static, DYNAMIC: _dynamic, WEIGHT_ONLY: _weights, QAT: _trained, MIXED: _mixed, FP16: _fp16,
        BF16: _bf16,
    }  # fmt: skip
    return ways[step.method](step, source, shop, row, steps)


def _static(step: Quantise, source: Product, shop: Workshop, row: Row, steps: tuple[Step, ...]) -> Product:
    """Int8 by the types that are fastest here, or by those that are asked for."""
    return Product(step.name, file=_int8(step, file_of(source, "int8"), shop, row))


def _int8(step: Quantise, source: Path, shop: Workshop, row: Row) -> Path:
    config, target = shop.config, _target(step, shop)
    choice = quantisation.choose_activation_type(
        source, target, list(shop.calibration_batches()),
        kinds=KINDS[step.activations], batch_sizes=config.latency_batch, seconds=min(config.latency_seconds, 0.5),
        threads=config.runtime_threads, method=step.ranges, reduce_range=config.reduce_range,
    )  # fmt: skip
    row.activations = {
        "chosen": choice.kind,
        "milliseconds": {
            kind: {str(size): latency.p50 for size, latency in sizes.items()} for kind, sizes in choice.times.items()
        },
        "skipped": choice.skipped,
    }
    row.what = f"int8 weights and activations ({choice.kind})"
    return target


def _dynamic(step: Quantise, source: Product, shop: Workshop, row: Row, steps: tuple[Step, ...]) -> Product:
    row.what = "int8 weights, activation ranges found at every call"
    target = _target(step, shop)
    quantisation.quantise_dynamic(file_of(source, "int8"), target)
    return Product(step.name, file=target)


def _weights(step: Quantise, source: Product, shop: Workshop, row: Row, steps: tuple[Step, ...]) -> Product:
    row.what = f"int{step.bits} weights, float activations"
    target = _target(step, shop)
    made = quantisation.quantise_weights(
        file_of(source, row.what), target, bits=step.bits, block=step.block if step.bits == 4 else None
    )
    row.warnings.extend(f"left in float: {what}" for what in dict.fromkeys(made.left))
    return Product(step.name, file=target)


def _trained(step: Quantise, source: Product, shop: Workshop, row: Row, steps: tuple[Step, ...]) -> Product:
    """Quantisation-aware training: the model learns with rounding in it, then its file is quantised."""
    config, tuning = shop.config, shop.tuning(step.labels)
    batches = [torch.from_numpy(batch) for batch in shop.calibration_batches()]
    rounded = quantisation.prepare_qat(
        model_of(source, "quantisation-aware training"), batches, reduce_range=config.reduce_range
    )
    epochs = config.epochs if step.epochs is None else step.epochs
    lr = tuning.lr * SLOWER if step.lr is None else step.lr
    rounded = tuning.train(rounded, step.name, epochs=epochs, lr=lr, state=shop.state(step.name))
    quantisation.observe_ranges(rounded, batches)
    model = quantisation.finish_qat(rounded)
    between = shop.state(step.name).with_suffix(".onnx")
    says = about(shop, source.root, steps).as_dict()
    export_onnx(model, shop.dataset.input_shape, between, opset=config.opset, metadata=says)
    target = _int8(step, between, shop, row)
    between.unlink()
    row.what = f"{row.what}, trained for it: {epochs_of(epochs)} on {tuning.labels}"
    if source.sparse and epochs:
        row.warnings.append(f"the zeros of {source.name} were trained away")
    return Product(step.name, file=target)


def _mixed(step: Quantise, source: Product, shop: Workshop, row: Row, steps: tuple[Step, ...]) -> Product:
    """Int8, but for the layers that cost most."""
    target, config = _target(step, shop), shop.config
    made = quantisation.quantise_mixed(
        file_of(source, "mixed precision"), target, list(shop.calibration_batches()),
        max_drop=step.max_drop, score=lambda predict: shop.validation_accuracy(as_tensors(predict)),
        method=step.ranges, reduce_range=config.reduce_range, threads=config.runtime_threads,
    )  # fmt: skip
    row.scan = made.table()
    kept = sum(1 for group in made.scan if group.in_float)
    row.what = f"int8, {kept} of {len(made.scan)} groups of layers in float"
    if not made.met:
        row.warnings.append(f"even so, more than {step.max_drop:.2%} of validation accuracy is lost")
    return Product(step.name, file=target)


def _fp16(step: Quantise, source: Product, shop: Workshop, row: Row, steps: tuple[Step, ...]) -> Product:
    row.what = "float16 weights, computed in float32"
    target = _target(step, shop)
    quantisation.halve(file_of(source, "float16"), target)
    return Product(step.name, file=target)


def _bf16(step: Quantise, source: Product, shop: Workshop, row: Row, steps: tuple[Step, ...]) -> Product:
    row.what = "bfloat16 weights and arithmetic, by torch.export"
    target = _target(step, shop).with_suffix(".pt2")
    model = quantisation.to_bfloat16(model_of(source, "bfloat16"))
    says, discrete = about(shop, source.root, steps).as_dict(), shop.dataset.discrete
    export_pt2(model, shop.dataset.input_shape, target, says, discrete=discrete)
    return Product(step.name, file=target)


def exported(step: Export, source: Product, shop: Workshop, row: Row, steps: tuple[Step, ...]) -> Product:
    """The float model in another format."""
    model, shape = model_of(source, f"export to {step.format}"), shop.dataset.input_shape
    says, discrete = about(shop, source.root, steps).as_dict(), shop.dataset.discrete
    row.what = f"{source.name} as {step.format}"
    if step.format == "onnx":
        target = _target(step, shop)
        export_onnx(model, shape, target, opset=step.opset or shop.config.opset, metadata=says, discrete=discrete)
    elif step.format == "pt2":
        target = _target(step, shop).with_suffix(".pt2")
        export_pt2(model, shape, target, says, discrete=discrete)
    else:
        target = _target(step, shop).with_suffix(".pte")
        export_executorch(model, shape, target, says)
    return Product(step.name, model, target, source.sparse)


def _target(step: Step, shop: Workshop) -> Path:
    return shop.folder / f"{step.name}.onnx"
