"""What every quantiser does around its work: the library with its name for what is missing, files in and files out."""

from __future__ import annotations

import contextlib
import importlib
import json
import tempfile
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.artefacts.onnx_file import quiet, strip
from pipeline.errors import ModelError, first_line
from pipeline.references import optional
from pipeline.workspace import write_atomic

PROPERTY = "quantisation"
"""The metadata property of a file that says, as JSON, how it was quantised."""


def load_quantiser() -> Any:
    """onnxruntime.quantization. Raises MissingDependencyError that names the extra."""
    for package in ("onnx", "onnxruntime"):
        optional(package, "compress", "quantising")
    with quiet():
        return optional("onnxruntime.quantization", "compress", "quantising")


def load_proto(path: Path) -> Any:
    """The ONNX model in ``path``, its weights included. Raises ModelError when it is not one."""
    onnx = optional("onnx", "compress", "quantising")
    try:
        return onnx.load(str(path))
    except Exception as error:
        raise ModelError(f"{path} should be an ONNX file: {first_line(error)}") from error


@contextlib.contextmanager
def quantising(source: Path, how: str) -> Iterator[Path]:
    """A folder for files on the way; the library's chatter kept off, its errors made ModelErrors that name the file."""
    with tempfile.TemporaryDirectory() as folder, quiet():
        try:
            yield Path(folder)
        except ModelError:
            raise
        except Exception as error:
            raise ModelError(f"ONNX Runtime cannot quantise {source.name} ({how}): {first_line(error)}") from error


@contextlib.contextmanager
def without_spinning() -> Iterator[None]:
    """Let the calibrating sessions of ONNX Runtime wait for their threads without spinning.

    Calibration runs hundreds of tiny reductions; where other programs use the cores too, threads that spin for each
    made it up to 30 times slower. The library has no option for it, so its module gets other session options meanwhile.
    """
    runtime = importlib.import_module("onnxruntime")
    calibrate: Any = importlib.import_module("onnxruntime.quantization.calibrate")

    def options() -> Any:
        made = runtime.SessionOptions()
        made.add_session_config_entry("session.intra_op.allow_spinning", "0")
        return made

    calibrate.onnxruntime = types.SimpleNamespace(**{**vars(runtime), "SessionOptions": options})
    try:
        yield
    finally:
        calibrate.onnxruntime = runtime


def prepare(source: Path, folder: Path) -> Path:
    """``source`` as the quantisers want it: constants folded, batch norms in their convolutions, shapes known."""
    shapes = importlib.import_module("onnxruntime.quantization.shape_inference")
    prepared = folder / "prepared.onnx"
    shapes.quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
    return prepared


def finish(proto: Any, source: Path, target: Path, done: Mapping[str, Any]) -> None:
    """Write ``proto`` in one step, weights inside, with the source's properties and ``done`` as how it was made."""
    onnx = importlib.import_module("onnx")
    properties = {p.key: p.value for p in onnx.load(str(source), load_external_data=False).metadata_props}
    strip(proto)
    shorten(proto)
    del proto.metadata_props[:]
    properties[PROPERTY] = json.dumps(dict(done), sort_keys=True)
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
