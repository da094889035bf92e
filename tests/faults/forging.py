"""Caches as an attacker makes them, every digest put right again, and a receiver in a process that is watched."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import select
import signal
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from fastcrc.crc32 import iscsi as crc32c
from torch import Tensor

from pipeline.datasets import Dataset
from pipeline.encodings import Encoding
from pipeline.errors import SoftlabelsError
from pipeline.identity import digest
from pipeline.models import build_model, load_weights, read_metadata
from pipeline.sources.cached import CachedLabels
from pipeline.sources.replay import recorded_views, replay_views
from pipeline.store import FileRecord, PartRecord, open_cache, parts, verify
from pipeline.store.tables import write_table
from pipeline.views import parse_transform
from tests.store.small import CLASSES, FEW, small_cache

ROOT = Path(__file__).resolve().parent.parent.parent
SECONDS, ROOM, GROWTH = 10, 256 << 20, 64
"""A receiver is done within SECONDS, and its memory grows by at most ROOM and GROWTH times the bytes on disk."""

VIEWS = [{"example_id": "train/0", "view": 1, "seed": 5, "shape": [1, 2, 2], "pixels": [0.0, 0.5, 1.0, 0.25]}]
VIEWS_SCHEMA = pa.schema(
    [
        ("example_id", pa.string()),
        ("view", pa.int32()),
        ("seed", pa.int64()),
        ("shape", pa.list_(pa.int32())),
        ("pixels", pa.list_(pa.float32())),
    ]
)


def sound_cache(folder: Path, encoding: Encoding, store: str) -> None:
    """A cache with all that one can have: features, random views, a replay table."""
    small_cache(folder, encoding, store, FEW)
    put(folder, "views.parquet", write_table(pa.Table.from_pylist(VIEWS, VIEWS_SCHEMA), row_group_size=64, zstd=()))

    def complete(body: dict[str, Any]) -> None:
        body["identity"]["features"] = {"block.1": "block.1"}
        body["identity"]["views"] = {"transform": parse_transform("flip")[1], "seed": 0, "count": 2}
        body["replay"] = "views.parquet"

    manifest(folder, complete)


def manifest(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change the manifest and put its digest right."""
    body = json.loads((folder / "manifest.json").read_bytes())
    body.pop("digest")
    change(body)
    (folder / "manifest.json").write_text(json.dumps({**body, "digest": digest(body)}))


def records(folder: Path) -> list[PartRecord]:
    """The parts of a cache that is sound so far."""
    return list(parts.decode((folder / parts.PATH).read_bytes(), len(FEW.parts), "parts"))


def put(folder: Path, path: str, data: bytes) -> None:
    """Write a file, and put right whatever says its digest, size or seal."""
    (folder / path).write_bytes(data)
    record = FileRecord.of(data)
    held = {} if path == parts.PATH else {p: r for r in records(folder) for p in r.files}
    if path not in held:
        manifest(folder, lambda body: body["files"].update({path: vars(record)}))
        return
    owner = held[path]
    seals = {**owner.seals, path: seal_of(data, folder / path)} if path in owner.seals else owner.seals
    changed = PartRecord(**{**vars(owner), "files": {**owner.files, path: record}, "seals": seals})
    with_parts(folder, [changed if r.number == owner.number else r for r in records(folder)])


def with_parts(folder: Path, changed: list[PartRecord]) -> None:
    """Other parts than the manifest counts."""
    put(folder, parts.PATH, parts.encode(changed))


def inner_chunks(place: Path) -> int:
    """Inner chunks of a shard, by the metadata beside it; 1 when that says nothing sensible."""
    try:
        body = json.loads((place.parent / "zarr.json").read_bytes())
        whole = body["chunk_grid"]["configuration"]["chunk_shape"][0]
        return max(1, int(whole // body["codecs"][0]["configuration"]["chunk_shape"][0]))
    except (ValueError, KeyError, TypeError, IndexError, ArithmeticError, OSError, RecursionError):
        return 1


def seal_of(data: bytes, place: Path) -> int:
    """The seal of a shard, made from whatever its index says."""
    count = inner_chunks(place)
    index = data[-16 * count - 4 : -4]
    pairs = [(int.from_bytes(index[n : n + 8], "little"), int.from_bytes(index[n + 8 : n + 16], "little"))
             for n in range(0, len(index) - 15, 16)]  # fmt: skip
    return crc32c(b"".join(data[max(0, a + b - 4) : a + b] for a, b in pairs if a + b <= len(data)))


def shard(bodies: list[bytes], count: int | None = None) -> bytes:
    """A shard of these encoded inner chunks, with good checksums."""
    made, index = b"", b""
    for body in bodies:
        chunk = body + crc32c(body).to_bytes(4, "little")
        index += len(made).to_bytes(8, "little") + len(chunk).to_bytes(8, "little")
        made += chunk
    index += b"\xff" * 16 * ((count or len(bodies)) - len(bodies))
    return made + index + crc32c(index).to_bytes(4, "little")


class Toy(Dataset):
    """The examples that the small caches are of."""

    def __init__(self) -> None:
        super().__init__(
            name="toy",
            classes=[f"class {n}" for n in range(CLASSES)],
            ids=[f"train/{n}" for n in range(11)],
            labels=np.zeros(11, np.int64),
            splits=np.zeros(11, np.int8),
            input_shape=(1, 2, 2),
            preprocessing="none",
        )

    def load(self, row: int) -> Tensor:
        return torch.zeros(1, 2, 2)

    def content_digest(self, row: int) -> str:
        return hashlib.sha256(self.ids[row].encode()).hexdigest()


def receive(folder: Path) -> Iterator[tuple[str, Callable[[], bool]]]:
    """Everything that somebody who was given ``folder`` does with it: a name and a step, which says if all is sound."""
    from stages.verbs.inspecting import describe, table

    cache = open_cache(folder)
    split = next(iter(cache.splits()), "train")

    def inspect() -> bool:
        found = cache.describe()
        return bool(json.dumps(found) and list(table(describe(found))))

    def read() -> bool:
        cache.labels(split), cache.input_digests(split), "".join(cache.ids(split)).encode()
        for part in cache.parts:
            cache.index(part)
            cache.decode(cache.read_part(part))
            for name in cache.feature_names:
                cache.read_feature(name, part)
        for view in cache.views(split):
            rows = np.arange(min(100, cache.examples(split)))
            cache.decode(cache.read_rows(split, view, rows))
        return True

    def views() -> bool:
        return replay_views(cache).count > 0 and all(r.pixels.ndim for r in recorded_views(cache))

    def train() -> bool:
        for resident in ("none", "auto"):
            labels = CachedLabels(cache, Toy(), resident=resident)
            with labels.stream(labels.order(4), 0, view=labels.views[-1]) as stream:
                for _, soft in stream:
                    len(soft)
        return True

    yield "verify", lambda: verify(cache).ok
    yield from (("inspect", inspect), ("read", read), ("views", views), ("train", train))


def load(path: Path) -> Iterator[tuple[str, Callable[[], bool]]]:
    """What ``--weights`` does with a file."""
    model = build_model("mlp-4", classes=3, input_shape=(1, 2, 2))
    yield "load", lambda: load_weights(model, path) is not None
    if path.suffix == ".safetensors":
        yield "metadata", lambda: read_metadata(path) is not None


class Hang(BaseException):
    """Too long."""


class Watch:
    """Notes what no reader of a cache may do."""

    forbidden = ("pickle.find_class", "subprocess.Popen", "socket.connect", "ctypes.dlopen", "shutil.")

    def __init__(self) -> None:
        self.on, self.seen = False, list[str]()
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on:
            return
        writes = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
        bad = event.startswith(self.forbidden) or (
            event.startswith("os.") and event not in ("os.listdir", "os.scandir")
        )
        if event == "open":
            bad = bool(isinstance(arguments[2], int) and arguments[2] & writes)
        elif event == "import":
            bad = str(arguments[0]).startswith(("hostile", "antigravity"))
        elif event == "exec":
            bad = str(getattr(arguments[0], "co_filename", "<")).startswith("<string")
        if bad:
            self.seen.append(f"{event} {str(arguments)[:200]}")


def attempt(path: Path, watch: Watch) -> dict[str, Any]:
    """Receive ``path`` under watch: how each step ended, the seconds, the growth in memory, what was forbidden."""
    steps, escaped = dict[str, str](), ""

    def hang(*_: Any) -> None:
        raise Hang

    signal.signal(signal.SIGALRM, hang)
    Path("/proc/self/clear_refs").write_text("5")
    before, began = _status("VmRSS"), time.monotonic()
    watch.seen.clear()
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    watch.on = True
    name, found = "open", load(path) if path.is_file() or path.parent.name == "weights" else receive(path)
    try:
        while True:
            try:
                step = next(found, None)
                if step is None:
                    break
                name = step[0]
                steps[name] = "sound" if step[1]() else "reported"
            except SoftlabelsError as error:
                str(error).encode(errors="backslashreplace")
                steps[name] = f"{type(error).__name__}: {str(error)[:300]}"
    except Hang:
        escaped = f"{name} took more than {SECONDS} s: {traceback.format_exc()[-1500:]}"
    except BaseException:
        escaped = f"{name}: {traceback.format_exc()[-3000:]}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        watch.on = False
    grown = _status("VmHWM") - before
    return {"steps": steps, "escaped": escaped, "forbidden": watch.seen[:], "grown": grown,
            "seconds": time.monotonic() - began}  # fmt: skip


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(name))


def child() -> None:
    """Receive each path that standard input names, and answer with a line of JSON."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    pa.set_cpu_count(1)
    watch = Watch()
    for path in sys.argv[1:]:  # sound ones first: whatever is imported late is imported now
        attempt(Path(path), watch)
    limit = _status("VmSize") + (4 << 30)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for line in sys.stdin:
        print(json.dumps(attempt(Path(json.loads(line)), watch)), flush=True)


class Outcome(NamedTuple):
    """How a forged cache was received."""

    steps: dict[str, str]
    escaped: str
    forbidden: list[str]
    grown: int
    seconds: float

    @property
    def refused(self) -> bool:
        """Whether some step did not take it for sound."""
        return any(found != "sound" for found in self.steps.values())


class Receiver:
    """A child process that receives caches one by one; another takes its place when it dies."""

    def __init__(self, *sound: Path) -> None:
        self.sound = [str(path) for path in sound]
        self.process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Receiver:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def _end(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process = None

    def receive(self, path: Path) -> Outcome:
        """What became of ``path``."""
        if self.process is None:
            command = [sys.executable, "-c", "from tests.faults import forging; forging.child()", *self.sound]
            environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
            pipe = subprocess.PIPE
            self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, cwd=ROOT, env=environment)
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(str(path)) + "\n")
        self.process.stdin.flush()
        ready, _, _ = select.select([self.process.stdout], [], [], 60)
        line = self.process.stdout.readline() if ready else ""
        if not line:
            status = self.process.poll() if ready else "no answer"
            self._end()
            return Outcome({}, f"the process died or hung ({status})", [], 0, 0.0)
        return Outcome(**json.loads(line))
