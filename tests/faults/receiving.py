"""Everything that somebody does with a cache that a stranger made, in a child process that is watched."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import select
import shutil
import signal
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from pipeline.datasets import Dataset
from pipeline.errors import SoftlabelsError
from pipeline.models import build_model, load_weights, read_metadata
from pipeline.sources import match
from pipeline.sources.cached import CachedLabels
from pipeline.sources.replay import recorded_views, replay_views
from pipeline.store import open_cache, verify
from tests.faults.reworking import finish, rework
from tests.store.small import CLASSES, LENGTHS

ROOT = Path(__file__).resolve().parent.parent.parent
SECONDS, ROOM, GROWTH = 30, 256 << 20, 64
"""A receiver is done within SECONDS of processor time; memory grows by ROOM and GROWTH times its bytes at most.

The plan of 400,000 parts, which is legitimate, has taken more than 10 s on a busy machine.
"""


class Toy(Dataset):
    """The examples that the small caches are of; ``uneven``: of which each has its own number of positions."""

    def __init__(self, uneven: bool = False) -> None:
        self._lengths = LENGTHS["train"][:11].astype(np.int64) if uneven else np.ones(11, np.int64)
        super().__init__(
            name="toy",
            classes=[f"class {n}" for n in range(CLASSES)],
            ids=[f"train/{n}" for n in range(11)],
            labels=np.zeros(11, np.int64),
            splits=np.zeros(11, np.int8),
            input_shape=(1, 2, 2),
            preprocessing="none",
        )

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        return self._lengths

    def load(self, row: int) -> Tensor:
        return torch.zeros(1, 2, 2)

    def content_digest(self, row: int) -> str:
        return hashlib.sha256(self.ids[row].encode()).hexdigest()


def receive(folder: Path) -> Iterator[tuple[str, Callable[[], bool]]]:
    """Everything that somebody who was given ``folder`` does with it: a name and a step, which says if all is sound."""
    from stages.verbs.inspecting import describe, table

    cache = open_cache(folder)
    split = next(iter(cache.splits()), "train")
    toy = Toy(uneven=cache.manifest.layout.is_ragged)

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
            labels = CachedLabels(cache, toy, resident=resident)
            with labels.stream(labels.order(4), 0, view=labels.views[-1]) as stream:
                for _, soft in stream:
                    len(soft)
        return True

    def matched() -> bool:
        return all(len(match(cache, toy, split, missing).rows) > 0 for missing in ("skip", "hard", "error"))

    yield "verify", lambda: verify(cache).ok
    yield from (("inspect", inspect), ("read", read), ("views", views), ("match", matched), ("train", train))


def load(path: Path) -> Iterator[tuple[str, Callable[[], bool]]]:
    """What ``--weights`` does with a file."""
    model = build_model("mlp-4", classes=3, input_shape=(1, 2, 2))
    yield "load", lambda: load_weights(model, path) is not None
    if path.suffix == ".safetensors":
        yield "metadata", lambda: read_metadata(path) is not None


class Hang(BaseException):
    """Too long."""


class Watch:
    """Notes what nobody may do who reads a cache; ``room``: the folders in which files may be made and removed."""

    forbidden = ("pickle.find_class", "subprocess.Popen", "socket.connect", "ctypes.dlopen")
    ends: ClassVar[dict[str, tuple[tuple[int, int | None], ...]]] = {
        "os.rename": ((0, 2), (1, 3)),
        "os.link": ((1, 3),),
        "os.symlink": ((1, 2),),
        "os.mkdir": ((0, 2),),
        "os.remove": ((0, 1),),
        "os.rmdir": ((0, 1),),
        "shutil.rmtree": ((0, None),),
        "shutil.copyfile": ((1, None),),
    }
    """Events that change a folder: where in their arguments each path is, and what it is relative to."""

    def __init__(self) -> None:
        self.on, self.seen, self.room = False, list[str](), tuple[str, ...]()
        sys.addaudithook(self._hook)

    def _within(self, path: Any, folder: Any = -1) -> bool:
        if isinstance(folder, int) and folder >= 0:
            path = os.path.join(os.readlink(f"/proc/self/fd/{folder}"), os.fsdecode(path))
        whole = os.path.join(os.path.realpath(os.path.dirname(os.fsdecode(path))), os.path.basename(os.fsdecode(path)))
        return any(f"{whole}/".startswith(f"{place}/") for place in self.room)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on:
            return
        writes = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
        bad = event.startswith((*self.forbidden, "shutil.")) or (
            event.startswith("os.") and event not in ("os.listdir", "os.scandir")
        )
        if event in self.ends:
            bad = not all(
                self._within(arguments[at], -1 if of is None else arguments[of]) for at, of in self.ends[event]
            )
        if event == "open":
            bad = bool(isinstance(arguments[2], int) and arguments[2] & writes) and not self._within(arguments[0])
        elif event == "import":
            bad = str(arguments[0]).startswith(("hostile", "antigravity"))
        elif event == "exec":
            bad = str(getattr(arguments[0], "co_filename", "<")).startswith("<string")
        if bad:
            self.seen.append(f"{event} {str(arguments)[:200]}")


def steps_of(path: Path, sound: Path | None, out: Path) -> Iterator[tuple[str, Callable[[], bool]]]:
    """What is done with ``path``: weights, the scratch of a dump, or a cache; see ``rework`` for ``sound``."""
    if path.is_file() or path.parent.name == "weights":
        yield from load(path)
    elif sound is not None and (sound / "manifest.json").is_file():
        try:
            yield from receive(path)
        except SoftlabelsError as error:
            refused = error

            def opened() -> bool:
                raise refused

            yield "open", opened
        yield from rework(path, sound, out)
    elif sound is not None:
        yield from finish(path, sound, out)
    else:
        yield from receive(path)


def attempt(path: Path, sound: Path | None, out: Path, watch: Watch) -> dict[str, Any]:
    """Receive ``path`` under watch: how each step ended, the seconds, the growth in memory, what was forbidden."""
    steps, escaped = dict[str, str](), ""

    def hang(*_: Any) -> None:
        raise Hang

    # Of processor time, for a busy machine is no hang; and a while longer by the clock, for one that waits.
    timers = ((signal.SIGPROF, signal.ITIMER_PROF, SECONDS), (signal.SIGALRM, signal.ITIMER_REAL, 4 * SECONDS))
    for number, _, _ in timers:
        signal.signal(number, hang)
    Path("/proc/self/clear_refs").write_text("5")
    before, began = _status("VmRSS"), time.monotonic()
    watch.seen.clear()
    watch.room = (os.path.realpath(out), *([os.path.realpath(path)] if path.parent.name == "scratch" else []))
    for _, timer, seconds in timers:
        signal.setitimer(timer, seconds)
    watch.on = True
    name, found = "open", steps_of(path, sound, out)
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
        for _, timer, _ in timers:
            signal.setitimer(timer, 0)
        watch.on = False
    grown = _status("VmHWM") - before
    return {"steps": steps, "escaped": escaped, "forbidden": watch.seen[:], "grown": grown,
            "seconds": time.monotonic() - began}  # fmt: skip


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(name))


def child() -> None:
    """Receive what each line of standard input names, and answer with a line of JSON."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    pa.set_cpu_count(1)
    watch, ready = Watch(), False
    for line in sys.stdin:
        path, sound, out = (Path(name) if name else None for name in json.loads(line))
        if path is None:  # whatever is imported late has been imported by now
            limit = _status("VmSize") + (4 << 30)
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
            ready = True
            continue
        assert out is not None
        out.mkdir(parents=True, exist_ok=True)
        found = attempt(path, sound, out, watch)
        shutil.rmtree(out)
        if ready:
            print(json.dumps(found), flush=True)


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
    """A child process that receives things one by one; another takes its place when it dies.

    ``room``: a folder for what is made of them; ``first``: sound ones, each with the one beside it.
    """

    def __init__(self, room: Path, *first: tuple[Path, Path | None]) -> None:
        self.room, self.first = room, first
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

    def _name(self, path: Path | None, sound: Path | None = None) -> None:
        assert self.process is not None and self.process.stdin is not None
        names = [str(place) if place else None for place in (path, sound, self.room)]
        self.process.stdin.write(json.dumps(names) + "\n")
        self.process.stdin.flush()

    def receive(self, path: Path, sound: Path | None = None) -> Outcome:
        """What became of ``path``; ``sound``: a sound one of its kind."""
        if self.process is None:
            command = [sys.executable, "-c", "from tests.faults import receiving; receiving.child()"]
            environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
            pipe = subprocess.PIPE
            self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, cwd=ROOT, env=environment)
            for first in self.first:
                self._name(*first)
            self._name(None)
        self._name(path, sound)
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], 60)
        line = self.process.stdout.readline() if ready else ""
        if not line:
            status = self.process.poll() if ready else "no answer"
            self._end()
            return Outcome({}, f"the process died or hung ({status})", [], 0, 0.0)
        return Outcome(**json.loads(line))
