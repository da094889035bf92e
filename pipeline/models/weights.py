"""Weights in files: safetensors with one JSON text beside the tensors, and checkpoints, without running any code."""

from __future__ import annotations

import json
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from pipeline import identity
from pipeline.errors import ModelError, first_line, some
from pipeline.workspace import write_atomic

METADATA_KEY = "softlabels"
"""The one metadata key of a weights file. It holds canonical JSON: several keys would come in no fixed order."""

_NESTED = ("state_dict", "model", "model_state_dict", "module")
_PREFIXES = ("module.", "_orig_mod.", "model._orig_mod.")
_KINDS = (".safetensors", ".pt", ".pth")
_HEADER_LIMIT = 100_000_000


def save_weights(path: str | Path, model: nn.Module, metadata: Mapping[str, Any] | None = None) -> None:
    """Write a model's state as safetensors with ``metadata`` (JSON values), atomically. Equal state, equal bytes.

    A tensor that has several names (tied weights) is stored once, under the first; ``aliases`` in the file's own
    metadata keeps the others. Raises ModelError when the state holds something that is no tensor.
    """
    tensors, aliases = _storable(model.state_dict())
    text = identity.canonical_json({"metadata": dict(metadata or {}), "aliases": aliases}).decode()
    write_atomic(Path(path), safetensors.torch.save(tensors, {METADATA_KEY: text}))


def _storable(state: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, str]]:
    tensors: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    seen: dict[tuple[Any, ...], str] = {}
    for name in sorted(state):
        value = state[name]
        if not isinstance(value, Tensor):
            raise ModelError(f"the state of a model should hold tensors only; {name} is a {type(value).__name__}")
        place = (value.device, value.data_ptr(), value.dtype, tuple(value.shape), value.stride())
        if value.numel() and place in seen:
            aliases[name] = seen[place]
        else:
            seen[place] = name
            # A copy: safetensors refuses tensors that overlap or are strided.
            tensors[name] = value.detach().cpu().contiguous().clone()
    return tensors, aliases


def read_metadata(path: str | Path) -> dict[str, Any]:
    """The metadata that ``save_weights`` stored, {} for files of others. Reads the header only, imports nothing.

    Raises ModelError when the file is no safetensors file.
    """
    own = _own_metadata(Path(path)).get("metadata", {})
    return own if isinstance(own, dict) else {}


def _own_metadata(path: Path) -> dict[str, Any]:
    """The JSON under our key: {"metadata": ..., "aliases": ...}."""
    if not path.is_file():  # a pipe would be waited for
        raise ModelError(f"there are no weights at {path}")
    try:
        with open(path, "rb") as file:
            size = int.from_bytes(file.read(8), "little")
            if not 2 <= size <= min(_HEADER_LIMIT, path.stat().st_size):
                raise ModelError(f"{path} should be a safetensors file and is not: it has no header")
            header = json.loads(file.read(size))
        text = (header.get("__metadata__") or {}).get(METADATA_KEY)
        found = json.loads(text) if text else {}
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, ModelError):
            raise
        raise ModelError(f"{path} should be a safetensors file and cannot be read: {error}") from error
    return found if isinstance(found, dict) else {}


def load_weights(model: nn.Module, path: str | Path) -> dict[str, Any]:
    """Fill a model from a file and return the file's metadata ({} for checkpoints and files of others).

    ``.safetensors``, or a checkpoint of torch: a state dict, plain or under "state_dict" or "model", with or without
    the "module." of data-parallel training. A checkpoint is read with ``weights_only``: nothing in it is executed.
    Raises ModelError: no such file, a file that holds more than weights, missing, unexpected or misshapen tensors.
    """
    path = Path(path)
    if path.is_dir():
        inside = sorted(str(p.relative_to(path)) for kind in _KINDS for p in path.glob(f"**/*{kind}"))
        holds = f"it holds {some(inside)}" if inside else f"it holds no {' or '.join(_KINDS)}"
        raise ModelError(f"weights should be a file; {path} is a folder ({holds})")
    if not path.is_file():
        raise ModelError(f"there are no weights at {path}")
    if path.suffix == ".safetensors" or _is_safetensors(path):
        _fill(model, *_tensors(path), path)
        return read_metadata(path)
    _fill(model, _checkpoint(path), None, path)
    return {}


def read_state(path: str | Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file by name, those that share one too. Raises ModelError when it cannot be read."""
    state, aliases = _tensors(Path(path))
    return _with_aliases(state, aliases)


def _tensors(path: Path) -> tuple[dict[str, Tensor], Any]:
    """The tensors as they are stored, and the names that share one."""
    own = _own_metadata(path)
    try:
        return safetensors.torch.load_file(path), own.get("aliases")
    except Exception as error:  # types that torch lacks, shapes that no memory holds: any kind of error
        raise ModelError(f"{path} should be a safetensors file and cannot be read: {first_line(error)}") from error


def _with_aliases(state: dict[str, Tensor], aliases: Any) -> dict[str, Tensor]:
    if not isinstance(aliases, dict):
        return state
    named = {name: first for name, first in aliases.items() if isinstance(first, str) and first in state}
    return state | {name: state[first] for name, first in named.items()}


def _is_safetensors(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(9)[8:] == b"{"


def _checkpoint(path: Path) -> dict[str, Tensor]:
    _refuse_programs(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # about the pickle protocol of what is then refused
            found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # bytes that are no checkpoint can make the reader fail in any way
        # torch's own text advises to read the file without this guard.
        name = re.search(r"GLOBAL (\S+)", str(error))
        what = f"it names {name[1]}" if name else first_line(error).partition(". ")[0]
        raise ModelError(
            f"{path} should hold weights alone and was not loaded, so that nothing in it could run ({what}). Save it "
            f"as safetensors, or with torch.save(model.state_dict(), ...)"
        ) from error
    for key in _NESTED:
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
    if not isinstance(found, dict) or not found or not all(isinstance(v, Tensor) for v in found.values()):
        kind = f"a dict of {', '.join(map(str, list(found)[:4]))}" if isinstance(found, dict) else type(found).__name__
        raise ModelError(f'{path} should hold a state dict, plain or under "state_dict" or "model"; found {kind}')
    return {str(name): value for name, value in found.items()}


def _refuse_programs(path: Path) -> None:
    """Raise ModelError for archives that hold more than weights, by what they are, before torch looks into them."""
    advice = "was not loaded, so that nothing in it could run. Save model.state_dict() as safetensors"
    if path.suffix == ".pt2":
        raise ModelError(f"{path} is named as an exported program, which runs what it carries when loaded: it {advice}")
    try:
        if not zipfile.is_zipfile(path):
            return
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile) as error:
        raise ModelError(f"{path} is a damaged archive and {advice} ({first_line(error)})") from error
    names = {member.filename.rpartition("/")[2] for member in members}
    programs = names & {"serialized_exported_program.json", "archive_format", "constants.pkl", "models.json"}
    if programs or any("/code/" in member.filename or "/models/" in member.filename for member in members):
        raise ModelError(f"{path} is an archive of a program (torch.export or TorchScript): it {advice}")
    packed = [m.filename for m in members if m.compress_type != zipfile.ZIP_STORED or m.file_size != m.compress_size]
    if packed or sum(member.file_size for member in members) > path.stat().st_size:
        raise ModelError(f"{path} is a compressed archive, which torch.save never writes: it {advice}")


def _fill(model: nn.Module, state: dict[str, Tensor], aliases: Any, path: Path) -> None:
    wanted = model.state_dict()
    for prefix in _PREFIXES:
        if state and all(name.startswith(prefix) for name in state) and not any(n.startswith(prefix) for n in wanted):
            state = {name.removeprefix(prefix): value for name, value in state.items()}
    state = _with_aliases(state, aliases)
    state = state | _tied(wanted, state)
    problems = []
    missing = [name for name in wanted if name not in state]
    unexpected = [name for name in state if name not in wanted]
    misshapen = [n for n, v in wanted.items() if n in state and tuple(state[n].shape) != tuple(v.shape)]
    if missing:
        problems.append(f"{len(missing)} missing ({some(missing)})")
    if unexpected:
        problems.append(f"{len(unexpected)} unexpected ({some(unexpected)})")
    if misshapen:
        shapes = [f"{n} {tuple(state[n].shape)} for {tuple(wanted[n].shape)}" for n in misshapen]
        problems.append(f"{len(misshapen)} of another shape ({some(shapes)})")
    if problems:
        raise ModelError(f"{path} does not fit the model: {'; '.join(problems)}. Is it the architecture they are of?")
    strange = [n for n in wanted if state[n].layout != torch.strided or state[n].is_meta or state[n].is_quantized]
    if strange:
        raise ModelError(f"{path} does not hold plain tensors: {some(strange)}. Save the weights as dense tensors")
    try:
        model.load_state_dict(state)
    except (RuntimeError, TypeError, ValueError) as error:
        raise ModelError(f"{path} does not fit the model: {first_line(error)}") from error


def _tied(wanted: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names that a file leaves out because the model itself shares their tensor with one that is there."""
    held = {value.data_ptr(): name for name, value in wanted.items() if name in state and value.numel()}
    absent = {name: held.get(value.data_ptr()) for name, value in wanted.items() if name not in state}
    return {
        name: state[first]
        for name, first in absent.items()
        if first is not None and wanted[name].shape == wanted[first].shape
    }


def state_digest(model: nn.Module) -> str:
    """sha256 over a model's sorted state: the identity of its weights, on whichever device they are."""
    return identity.digest_state({name: _array(value) for name, value in model.state_dict().items()})


def _array(value: Any) -> npt.NDArray[Any]:
    if not isinstance(value, Tensor):
        raise ModelError(f"the state of a model should hold tensors only; found a {type(value).__name__}")
    value = value.detach().cpu()
    try:
        return np.asarray(value.numpy())
    except TypeError:  # bfloat16 and the like have no counterpart in NumPy: their bits serve
        return np.asarray(value.reshape(-1).contiguous().view(torch.uint8).numpy())
