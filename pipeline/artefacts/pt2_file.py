"""``.pt2`` files: torch.export's programs, with free batch and length, their weights inside and no data.

They run in torch as they are. Nothing here compiles them: int8 models compiled by inductor with freezing were measured
to answer rightly once and to drift afterwards.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from pipeline import identity
from pipeline.artefacts.checking import Floats, Inputs
from pipeline.artefacts.kinds import Float32Logits, Opened, example_of, free_sizes, in_batches
from pipeline.artefacts.onnx_file import quiet
from pipeline.artefacts.pt2_archive import EXTRA, reading
from pipeline.errors import ModelError, first_line
from pipeline.workspace import write_atomic

_PROGRAM = "models/model.json"
_NOTES = ("stack_trace", "nn_module_stack", "source_fn_stack", "torch_fn", "from_node", "seq_nr")
"""What the exporter notes on each node: source lines with the paths of this machine, the modules' names."""


def export_pt2(
    model: nn.Module, input_shape: tuple[int, ...], path: Path, metadata: Mapping[str, Any], *, discrete: bool = False
) -> str:
    """Write ``model`` (in eval mode) to ``path`` and return the file's sha256, by which ``open_pt2`` may trust it.

    Input (B, *input_shape) float32, output (B, C) float32 logits, weights in the precision they have; ``discrete``: a
    language model, input (B, T) int64 tokens for any T, output (B, T, V). The example
    inputs that such a file carries are zeros with a storage of their own. ``metadata`` goes in as
    ``extra/softlabels.json``. Equal models give equal bytes with the same torch. Raises ModelError when the
    model cannot be exported.
    """
    program = exported(model, input_shape, discrete=discrete)
    buffer = io.BytesIO()
    with quiet():
        torch.export.save(program, buffer, extra_files={EXTRA: identity.canonical_json(dict(metadata)).decode()})
    data = buffer.getvalue()
    write_atomic(path, data)
    return identity.digest_bytes(data)


def exported(
    model: nn.Module,
    input_shape: tuple[int, ...],
    *,
    example: int = 2,
    largest: int | None = None,
    discrete: bool = False,
) -> torch.export.ExportedProgram:
    """The program of ``model`` for 1 to ``largest`` examples, traced with ``example`` of them, without notes.

    Raises ModelError when torch.export cannot make it, or fixes the batch, or the length of token sequences.
    """
    # No slice of anything: a program keeps the whole storage of its example.
    zeros = example_of(input_shape, discrete, example)
    try:
        with quiet(), torch.no_grad():
            program = torch.export.export(
                Float32Logits(model.cpu().eval()), (zeros.clone(),), dynamic_shapes=free_sizes(discrete, largest)
            )
    except Exception as error:
        raise ModelError(f"torch.export cannot export {type(model).__name__}: {first_line(error)}") from error
    for graph in (
        module.graph for module in program.graph_module.modules() if isinstance(module, torch.fx.GraphModule)
    ):
        for node in graph.nodes:
            for note in _NOTES:
                node.meta.pop(note, None)
    return program


def open_pt2(path: Path, *, threads: int = 1, trusted: Collection[str] = ()) -> Opened:
    """Load a program whose sha256 is in ``trusted`` into torch. ``threads`` 0 leaves the number to torch.

    torch.export.load unpickles and evaluates what the file says, so a file that nobody vouches for is not loaded:
    ModelError, which names the digest. ModelError too for what is no program of one input of floats or tokens.
    """
    data = path.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    if digest not in trusted:
        raise ModelError(
            f"{path} was not loaded: loading a .pt2 runs what it carries. If you made it, or trust who did, vouch for "
            f"its sha256, {digest}"
        )
    with reading(path) as archive:
        if _PROGRAM not in archive.names:
            raise ModelError(f"{path} holds no exported program ({_PROGRAM}); compiled packages are not opened")
    try:
        with quiet():
            program = torch.export.load(io.BytesIO(data))  # the bytes that were vouched for, not the file as it is now
            module = program.module()
    except Exception as error:
        raise ModelError(f"torch {torch.__version__} cannot load {path.name}: {first_line(error)}") from error
    shape, dtype = _input(program, path)
    place, classes = _output(program, path, 3 if dtype == torch.int64 else 2)
    fixed = shape[0] if isinstance(shape[0], int) else None

    def predict(inputs: Inputs) -> Floats:
        with torch.inference_mode(), _threads(threads):
            found = module(torch.from_numpy(np.ascontiguousarray(inputs)).to(dtype))
        chosen = found if isinstance(found, torch.Tensor) else _flat(found)[place]
        return np.asarray(chosen.float().numpy())

    inner = tuple(size for size in shape[1:] if isinstance(size, int))
    return Opened(
        predict=predict if fixed is None else in_batches(predict, fixed, fill=True),
        runtime=f"torch {torch.__version__}",
        input_shape=inner if len(inner) == len(shape) - 1 else None,
        classes=classes,
        batch=fixed,
        dtype=str(dtype).removeprefix("torch."),
    )


def _input(program: torch.export.ExportedProgram, path: Path) -> tuple[tuple[Any, ...], torch.dtype]:
    """The shape of the one input, free sizes as they are, and its type."""
    wanted = set(program.graph_signature.user_inputs)
    values = [n.meta.get("val") for n in program.graph.nodes if n.op == "placeholder" and n.name in wanted]
    one = values[0] if len(values) == 1 else None
    tokens = isinstance(one, torch.Tensor) and one.dtype == torch.int64 and one.ndim == 2
    if not isinstance(one, torch.Tensor) or not (one.is_floating_point() or tokens):
        raise ModelError(
            f"{path} should take one input of floats, or of int64 tokens (batch, length); it takes {len(values)} of "
            "other kinds or more than one"
        )
    return tuple(one.shape), one.dtype


def _output(program: torch.export.ExportedProgram, path: Path, axes: int) -> tuple[int, int | None]:
    """Which output is the first of shape (B, C), or (B, T, C) where ``axes`` is 3, and C."""
    names = [spec.arg.name for spec in program.graph_signature.output_specs if spec.kind.name == "USER_OUTPUT"]
    values = {node.name: node.meta.get("val") for node in program.graph.nodes}
    for place, name in enumerate(names):
        value = values.get(name)
        if isinstance(value, torch.Tensor) and value.ndim == axes and value.is_floating_point():
            return place, value.shape[-1] if isinstance(value.shape[-1], int) else None
    wanted = "(batch, classes)" if axes == 2 else "(batch, length, vocabulary)"
    raise ModelError(f"{path} should have an output of shape {wanted}; none of its {len(names)} has")


def _flat(output: Any) -> list[Any]:
    return list(torch.utils._pytree.tree_leaves(output))


@contextmanager
def _threads(number: int) -> Iterator[None]:
    """torch's threads set to ``number`` for a while; they are the whole process's."""
    before = torch.get_num_threads()
    if number in (0, before):
        yield
        return
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
