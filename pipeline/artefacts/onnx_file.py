"""ONNX files: one file with its weights inside, free batch and length, and nothing of the machine that made it."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipeline.artefacts.kinds import Float32Logits, example_of, free_sizes
from pipeline.errors import ModelError, first_line
from pipeline.references import optional
from pipeline.workspace import write_atomic

CHATTERING = (
    *("onnxscript", "onnx_ir", "torch.onnx", "torch.export"),
    "onnxruntime.quantization.matmul_nbits_quantizer",  # has a level of its own
)

INPUT, OUTPUT = "input", "logits"
LARGEST = 2**31 - 2**20
"""Protobuf ends at 2 GiB: a larger model cannot be one file."""


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the exporters' deprecation notices and chatter off the user's screen; errors still rise."""
    root = logging.getLogger()
    levels = {name: logging.getLogger(name).level for name in CHATTERING}
    before = root.level
    try:
        for name in levels:
            logging.getLogger(name).setLevel(logging.ERROR)
        root.setLevel(max(before, logging.ERROR))
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        root.setLevel(before)
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def export_onnx(
    model: nn.Module,
    input_shape: tuple[int, ...],
    path: Path,
    *,
    opset: int,
    metadata: Mapping[str, Any],
    discrete: bool = False,
) -> None:
    """Write ``model`` (in eval mode) to ``path``: input (batch, *input_shape) float32, output (batch, C) logits.

    ``discrete``: a language model, input (batch, length) int64 tokens, output (batch, length, V), both sizes free.
    The example input is synthetic, so no data can end up in the file; the exporter's notes on each node (source
    lines with the paths of this machine) are removed. ``metadata`` goes in as the model's own properties, as JSON.
    Raises MissingDependencyError without onnx, ModelError when the model cannot be exported.
    """
    onnx = optional("onnx", "compress", "exporting")
    optional("onnxscript", "compress", "exporting")
    weights = sum(t.numel() * t.element_size() for t in model.state_dict().values())
    if weights > LARGEST:
        raise ModelError(f"one ONNX file holds at most 2 GiB; the weights alone are {weights / 2**30:.1f} GiB")
    example = example_of(input_shape, discrete)  # a batch of 1 would be frozen into the graph
    try:
        with quiet(), torch.no_grad():
            program = torch.onnx.export(
                Float32Logits(model.cpu().eval()),
                (example,),
                dynamo=True,
                dynamic_shapes=free_sizes(discrete),
                input_names=[INPUT],
                output_names=[OUTPUT],
                opset_version=opset,
                external_data=False,
                verbose=False,
            )
    except Exception as error:
        raise ModelError(f"torch.onnx cannot export {type(model).__name__}: {first_line(error)}") from error
    if program is None:
        raise ModelError(f"torch.onnx gave no program for {type(model).__name__}")
    proto = program.model_proto
    made = {imported.version for imported in proto.opset_import if imported.domain == ""}
    if made != {opset}:  # it warns, and writes the operator set of its own choice
        raise ModelError(f"torch.onnx cannot write --opset {opset} for this model. Leave it out, or try another")
    values = [value.type.tensor_type.shape for value in (*proto.graph.input, *proto.graph.output)]
    for place, what in enumerate(("batch", "length") if discrete else ("batch",)):
        if not all(shape.dim[place].dim_param for shape in values):
            raise ModelError(
                f"the {what} of {type(model).__name__} would be fixed at {example.shape[place]} in the file: its "
                f"forward pass turns the {what} into a plain number, by len(x) or int(...). x.shape[{place}], "
                "flatten(1) or -1 leave it free"
            )
    strip(proto)
    onnx.helper.set_model_props(proto, {k: json.dumps(v, sort_keys=True) for k, v in sorted(metadata.items())})
    onnx.checker.check_model(proto)
    write_atomic(path, proto.SerializeToString(deterministic=True))


def strip(proto: Any) -> None:
    """Remove documentation and debugging properties from an ONNX model, in place.

    The shapes noted for inner values go too: runtimes infer them, and ONNX Runtime's quantiser stumbles over them
    after it has transposed a weight.
    """
    proto.doc_string = ""
    for graph in (proto.graph, *proto.functions):
        graph.doc_string = ""
        del graph.value_info[:]
        for item in (*graph.node, *getattr(graph, "initializer", ())):
            item.doc_string = ""
            del item.metadata_props[:]
        del graph.metadata_props[:]
    for value in (*proto.graph.input, *proto.graph.output):
        value.doc_string = ""
        del value.metadata_props[:]
