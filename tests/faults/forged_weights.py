"""Weights files made to run code, or to ask for absurd memory."""

from __future__ import annotations

import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from pipeline.models import build_model
from tests.faults.forged_manifests import HUGE


class Harm:
    """What runs a command when it is unpickled."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("hostile-was-here",)


def weights() -> Iterator[tuple[str, Callable[[Path], Any], bool]]:
    """(file name, how it is made, whether it is to be loaded) of what ``--weights`` may be given."""
    model = build_model("mlp-4", classes=3, input_shape=(1, 2, 2))
    state = model.state_dict()
    good = safetensors.torch.save(state)
    harm = {"state_dict": state, "more": Harm()}

    def written(data: bytes) -> Callable[[Path], Any]:
        return lambda path: path.write_bytes(data)

    def headed(header: Any, data: bytes = b"", length: int | None = None) -> Callable[[Path], Any]:
        head = header if isinstance(header, bytes) else json.dumps(header).encode()
        return written(struct.pack("<Q", len(head) if length is None else length) + head + data)

    def zipped(names: dict[str, bytes], how: int = zipfile.ZIP_STORED) -> Callable[[Path], Any]:
        def make(path: Path) -> None:
            with zipfile.ZipFile(path, "w", how) as archive:
                for name, data in names.items():
                    archive.writestr(name, data)

        return make

    yield "good.safetensors", written(good), True
    yield "safetensors-named.pt", written(good), True
    yield "good.pt", lambda path: torch.save(state, path), True
    program = {"archive/archive_format": b"pt2", "archive/models/model.json": b"{}"}
    for name in ("program.pt2", "program.pt", "program.safetensors", "program"):
        yield name, zipped({**program, "archive/data/weights/w.pkl": pickle.dumps(Harm())}), False
    yield "old-program.pt", zipped({"serialized_exported_program.json": b"{}", "x.pt": pickle.dumps(Harm())}), False
    yield "harm.pt2", written(pickle.dumps(harm)), False
    yield "state.pt2", lambda path: torch.save(state, path), False
    script = {"a/constants.pkl": pickle.dumps(()), "a/code/x.py": b"import os", "a/data.pkl": pickle.dumps(Harm())}
    yield "script.pt", zipped(script), False
    for name in ("harm.pt", "harm.safetensors", "harm.bin"):
        yield f"pickle-{name}", written(pickle.dumps(harm)), False
        yield f"torch-{name}", lambda path: torch.save(harm, path), False
        yield f"legacy-{name}", lambda path: torch.save(harm, path, _use_new_zipfile_serialization=False), False
    yield "model.pt", lambda path: torch.save(model, path), False
    yield "zip-pickle.pt", zipped({"a/data.pkl": pickle.dumps(Harm()), "a/version": b"3"}), False
    yield "zip-bomb.pt", zipped({"a/data.pkl": bytes(64 << 20), "a/version": b"3"}, zipfile.ZIP_DEFLATED), False
    for number, protocol in enumerate((b"cos\nsystem\n(S'true'\ntR.", b"\x80\x02c__builtin__\neval\nU\x041+1\n\x85R.")):
        yield f"opcodes-{number}.pt", written(protocol), False
    yield "nested.pt", written(b"\x80\x02" + b"]" * 10**5 + b"a" * 10**5 + b"."), False
    yield "long-text.pt", written(b"\x80\x02X" + struct.pack("<I", 2**31) + b"a."), False
    spanning = b"PK\x06\x07" + struct.pack("<LQL", 0, 0, 2) + b"PK\x05\x06" + bytes(18)
    yield "spanning-zip.pt", written(spanning), False
    yield "bytes.pt", written(b"\x80\x02cbuiltins\nbytearray\nK\x05\x85R."), False
    sizes = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    yield "length.safetensors", headed(b"{}", length=2**63), False
    yield "length-2.safetensors", headed(b"{}", length=10**9), False
    yield "offsets.safetensors", headed({"a": sizes, "b": sizes}, bytes(4)), False
    yield "outside.safetensors", headed({"a": {**sizes, "data_offsets": [0, 2**60]}}, bytes(4)), False
    yield "shape.safetensors", headed({"a": {**sizes, "shape": [HUGE, HUGE]}}, bytes(4)), False
    yield "empty-shape.safetensors", headed({"a": {**sizes, "shape": [HUGE, 0], "data_offsets": [0, 0]}}), False
    yield "type.safetensors", headed({"a": {**sizes, "dtype": "OBJECT"}}, bytes(4)), False
    for dtype in ("F8_E8M0", "F4", "F6_E2M3", "C64"):
        yield (
            f"{dtype}.safetensors",
            headed({"a": {"dtype": dtype, "shape": [8], "data_offsets": [0, 8]}}, bytes(8)),
            False,
        )
    yield "deep.safetensors", headed(b'{"a":' * 100_000), False
    for number, own in enumerate([3, [1], {"a": 1}, None, "[" * 100_000, '{"aliases": {"a": [1], "b": {}}}']):
        tensors = safetensors.torch.save(state)
        size = int.from_bytes(tensors[:8], "little")
        header = json.loads(tensors[8 : 8 + size]) | {"__metadata__": {"softlabels": own}}
        yield f"own-{number}.safetensors", headed(header, tensors[8 + size :]), number == 5
    yield "list.safetensors", headed({"__metadata__": [1]}), False
    yield "pipe.pt", os.mkfifo, False
    yield "pipe.safetensors", os.mkfifo, False
    yield "zero.pt", lambda path: path.symlink_to("/dev/zero"), False
    sparse = {name: value.to_sparse() for name, value in state.items()}
    yield "sparse.pt", lambda path: torch.save(sparse, path), False
    yield "meta.pt", lambda path: torch.save({n: v.to("meta") for n, v in state.items()}, path), False
    huge = {name: torch.zeros(1).expand(10**6, 10**6) for name in state}
    yield "expanded.pt", lambda path: torch.save(huge, path), False
