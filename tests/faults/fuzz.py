"""Everything that reads a stranger's bytes, given bytes that were changed: a result or a ``SoftlabelsError``, soon.

Structure is kept where it can be: JSON is changed field by field, digests and checksums are put right or left wrong,
and Parquet carries no page checksums, so that changes reach the decoders. With atheris installed (it is no dependency),
``python -m tests.faults.fuzz`` is guided by coverage; otherwise, and in the tests, changes follow from a seed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
import types
import warnings
from pathlib import Path
from typing import Any

import torch

from pipeline.errors import SoftlabelsError
from tests.faults.counts import Counts
from tests.faults.fuzz_targets import Target, targets
from tests.faults.fuzz_thirds import third_targets
from tests.faults.receiving import GROWTH, ROOM

SECONDS, MOST_BYTES = 5, 20_000
ODD: tuple[Any, ...] = (
    None, True, -1, 0, 1, 1.5, 2**31, 2**63, 10**15, 10**30, 10**400, float("nan"), float("inf"), "", "x", "../x",
    "a\0b", "\ud800", "é" * 300, "1", [], [[]], {}, {"a": 1}, [None], "pickle", "object", "float16",
)  # fmt: skip


def readers(folder: Path) -> dict[str, Target]:
    """All of them, by name."""
    return {**targets(folder), **third_targets(folder / "thirds")}


def mutated(target: Target, data: bytes, rng: random.Random) -> bytes:
    """``data`` changed in one to three places, and sealed again in half of the cases."""
    for _ in range(rng.choice((1, 1, 2, 3))):
        changed = _fields(data, rng) if target.json and rng.random() < 0.8 else _bytes(data, rng)
        data = changed if len(changed) < MOST_BYTES else data
    return target.reseal(data) if target.reseal and rng.random() < 0.7 else data


def _bytes(data: bytes, rng: random.Random) -> bytes:
    at, other = rng.randrange(len(data) + 1), rng.randrange(len(data) + 1)
    low, high = min(at, other), max(at, other)
    kind = rng.randrange(8)
    if kind <= 1:
        return data[:at] + bytes([rng.randrange(256)]) + data[at + 1 :]
    if kind == 2 and data:
        place = min(at, len(data) - 1)
        return data[:place] + bytes([data[place] ^ 1 << rng.randrange(8)]) + data[place + 1 :]
    if kind == 3:
        return data[:low] + data[min(high, low + 64) :]
    if kind == 4:
        return data[:at] + data[low : min(high, low + 64)] + data[at:]
    if kind == 5:
        width = rng.choice((1, 2, 4, 8))
        value = rng.choice((0, 1, 2 ** (8 * width) - 1, 2 ** (8 * width - 1), 2 ** (8 * width - 1) - 1, 255))
        return data[:at] + value.to_bytes(8, "little")[:width] + data[at + width :]
    if kind == 6:
        return data[:at] + rng.choice((b"[" * 1200, b"\xff" * 9, b"\0" * 40, b"- &x *x\n", b'{"a":' * 1200)) + data[at:]
    return data[:at]


def _fields(data: bytes, rng: random.Random) -> bytes:
    """One value of a JSON text, changed."""
    try:
        body = json.loads(data)
        places: list[tuple[Any, Any]] = []
        todo = [body]
        while todo:
            held = todo.pop()
            pairs = list(held.items() if isinstance(held, dict) else enumerate(held) if isinstance(held, list) else ())
            places += [(held, key) for key, _ in pairs]
            todo += [value for _, value in pairs if isinstance(value, (dict, list))]
        if not places:
            return json.dumps(rng.choice(ODD)).encode()
        held, key = rng.choice(places)
        kind = rng.randrange(6)
        if kind == 0:
            del held[key]
        elif kind == 1 and isinstance(held, dict):
            held[str(rng.choice(ODD))] = held.pop(key)
        elif kind == 2:
            held[key] = [held[key]] * rng.choice((1, 2, 1000))
        elif kind == 3 and type(held[key]) in (int, float):
            held[key] = rng.choice((held[key] + 1, -held[key], held[key] * 10**9, float(held[key])))
        elif kind == 4:
            other, name = rng.choice(places)
            held[key] = json.loads(json.dumps(other[name])) if name in other or isinstance(other, list) else None
        else:
            held[key] = rng.choice(ODD)
        return json.dumps(body).encode()
    except (ValueError, TypeError, LookupError, ArithmeticError, RecursionError):
        return _bytes(data, rng)


class Hang(BaseException):
    """Too long."""


def checked(name: str, target: Target, data: bytes, counts: Counts, note: str) -> None:
    """Read ``data``. AssertionError when it ends in anything but a result or a ``SoftlabelsError``, late, or large."""

    def hang(*_: Any) -> None:
        raise Hang

    before = _memory("VmRSS")
    signal.signal(signal.SIGALRM, hang)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # numpy's, about numbers that overflow
            target.read(data)
        counts[f"{name}: read"] += 1
    except SoftlabelsError as error:
        str(error).encode(errors="backslashreplace")  # as standard error writes it
        counts[f"{name}: refused"] += 1
    except BaseException as error:
        where = Path(tempfile.gettempdir()) / "softlabels-fuzz-found"
        where.write_bytes(data)
        raise AssertionError(
            f"{name}, {note}: {type(error).__name__} escaped: {error!s:.500}; input in {where}"
        ) from error
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    grown = _memory("VmHWM") - before
    assert grown <= ROOM + GROWTH * len(data), f"{name}, {note}: {grown:,} bytes of memory for {len(data):,}"


def _memory(name: str) -> int:
    if name == "VmRSS":
        Path("/proc/self/clear_refs").write_text("5")
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(name))


def campaign(folder: Path, times: int, seed: int) -> Counts:
    """``times`` changed inputs, shared out over all readers. A change that was read is changed further."""
    counts, rng = Counts(), random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    all_targets = readers(folder)
    pools = {name: list(target.seeds) for name, target in all_targets.items()}
    for name, target in all_targets.items():
        for number, data in enumerate(target.seeds):
            checked(name, target, data, Counts(), f"seed input {number}")
    for turn in range(times):
        name = list(all_targets)[turn % len(all_targets)]
        data = mutated(all_targets[name], rng.choice(pools[name]), rng)
        (folder / "current").write_bytes(data)  # what a crash leaves behind
        read = counts[f"{name}: read"]
        checked(name, all_targets[name], data, counts, f"turn {turn} of seed {seed}")
        if counts[f"{name}: read"] > read and len(pools[name]) < 200:
            pools[name].append(data)
    counts["mutations"] = times
    return counts


def guided(folder: Path, times: int, seed: int) -> None:
    """The same readers under atheris, which keeps what reaches new code. Ends the process."""
    import atheris

    all_targets = readers(folder)
    names, counts, turns = list(all_targets), Counts(), 0
    corpus = folder / "corpus"
    corpus.mkdir()
    for number, target in enumerate(all_targets.values()):
        for place, data in enumerate(target.seeds):
            (corpus / f"{number}-{place}").write_bytes(bytes([number]) + data)
    for module in [m for name, m in sys.modules.items() if name.startswith("pipeline") or name == "stages.parameters"]:
        owners = [
            module,
            *(v for v in vars(module).values() if isinstance(v, type) and v.__module__ == module.__name__),
        ]
        for function in [v for owner in owners for v in vars(owner).values() if isinstance(v, types.FunctionType)]:
            if function.__module__ == module.__name__:
                atheris.instrument_func(function)

    def one(data: bytes) -> None:
        nonlocal turns
        if not data:
            return
        name = names[data[0] % len(names)]
        checked(name, all_targets[name], data[1:], counts, f"atheris, seed {seed}")
        turns += 1
        if turns >= times:
            report(counts, f"{turns:,} inputs, guided by atheris")
            sys.stdout.flush()
            os._exit(0)

    def change(data: bytes, most: int, number: int) -> bytes:
        rng = random.Random(number)
        name = data[0] % len(names) if data else 0
        if data and rng.random() < 0.3:
            return bytes(atheris.Mutate(data, most))
        return (bytes([name]) + mutated(all_targets[names[name]], data[1:] or all_targets[names[name]].seeds[0], rng))[
            :most
        ]

    arguments = [
        sys.argv[0],
        f"-seed={seed + 1}",
        "-max_len=40000",
        "-rss_limit_mb=4096",
        "-timeout=20",
        "-verbosity=0",
        f"-artifact_prefix={tempfile.gettempdir()}/softlabels-",
    ]
    atheris.Setup([*arguments, str(corpus)], one, custom_mutator=change)
    atheris.Fuzz()


def report(counts: Counts, title: str) -> None:
    """The counts, for people."""
    from tests.faults.counts import table

    print(table(f"Changed inputs: {title}", dict(sorted(counts.items()))))


def main() -> None:
    """``python -m tests.faults.fuzz``."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--times", type=int, default=20_000)
    options.add_argument("--seed", type=int, default=0)
    given = options.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        try:
            import atheris  # noqa: F401
        except ImportError:
            print("atheris is not installed: changes follow from the seed")
            counts = campaign(Path(folder), given.times, given.seed)
            report(counts, f"{given.times:,} in {time.monotonic() - began:.0f} s")
        else:
            print("guided by atheris")
            guided(Path(folder), given.times, given.seed)


if __name__ == "__main__":
    main()
