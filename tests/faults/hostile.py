"""A catalogue of caches and weights made to harm whoever receives them: each is refused by name, and does nothing.

Every digest is put right again, as an attacker would. A watched child process receives them one by one: no file
written, nothing imported or executed, memory bounded by the bytes on disk, seconds at most, always a
``SoftlabelsError``.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Mapping
from pathlib import Path

from tests.faults.counts import Counts
from tests.faults.forged_files import indices, tables
from tests.faults.forged_manifests import BASES, Forgery, links, manifests
from tests.faults.forged_scratch import scratches, unfinished
from tests.faults.forged_shards import dense_shards, shards
from tests.faults.forged_thirds import THIRD_BASES, thirds
from tests.faults.forged_weights import weights
from tests.faults.forging import UNEVEN, companions, sound_cache
from tests.faults.receiving import GROWTH, ROOM, Outcome, Receiver


def catalogue() -> list[Forgery]:
    """All forged caches of format versions 1 and 2, and all forged scratch of unfinished ones."""
    return [*manifests(), *links(), *indices(), *tables(), *shards(), *dense_shards(), *scratches()]


def bytes_under(path: Path) -> int:
    """Bytes on disk of a file or folder, the targets of links not counted."""
    places = [path] if not path.is_dir() else path.rglob("*")
    return sum(place.lstat().st_blocks * 512 for place in places if not place.is_dir())


def judge(name: str, found: Outcome, sound: bool, size: int, seed: int) -> str:
    """How a forgery ended. AssertionError when it did anything but be refused, or read where it is legitimate."""
    case = f"{name} (seed {seed}): {found.steps}"
    assert not found.escaped, f"{case}: {found.escaped}"
    assert not found.forbidden, f"{case}: it made the reader {found.forbidden}"
    room = ROOM + GROWTH * size
    assert found.grown <= room, f"{case}: {found.grown:,} bytes of memory for {size:,} on disk, {room:,} at most"
    alone = {step: end for step, end in found.steps.items() if not step.startswith("merge")}
    with_others = [end for step, end in found.steps.items() if step not in alone and end != "sound"]
    refused = any(end != "sound" for end in alone.values()) or (not alone and bool(with_others))
    odd = [end for end in with_others if not end.startswith("CacheMismatchError")]
    assert not (sound and odd), f"{case}: it should have been merged, or found to be something else"
    assert refused != sound, f"{case}: it should have been {'read' if sound else 'refused'}"
    return "read, as it should be" if sound else "refused by name"


def campaign(folder: Path, times: int, seed: int, each: int = 1) -> Counts:
    """Everything ``times`` times, in an order that follows from ``seed``, over all kinds of caches.

    Every ``each``-th cache is also given to the verbs that make caches out of caches, which takes most of the time.
    """
    counts = Counts()
    folder.mkdir(parents=True, exist_ok=True)
    bases = {name: folder / f"base-{name}" for name in BASES}
    for name, (encoding, store) in BASES.items():
        sound_cache(bases[name], encoding, store)
        companions(bases[name])
    bases["scratch"] = folder / "base-scratch"
    unfinished(bases["scratch"])
    (folder / "weights").mkdir()
    rng = random.Random(seed)
    with Receiver(folder / "made", *_firsts(folder, bases)) as receiver:
        for _ in range(times):
            for number, forgery in enumerate(rng.sample(every_one := catalogue(), len(every_one))):
                _receive(receiver, forgery, folder / "forged", bases, counts, seed, reworked=not number % each)
            for name, make, sound in weights():
                path = folder / "weights" / name
                make(path)
                found = receiver.receive(path)
                counts[judge(name, found, sound, bytes_under(path), seed)] += 1
                counts["weights"] += 1
                path.unlink()
    _check_nothing_ran(folder, seed)
    return counts


def third_campaign(folder: Path, times: int, seed: int, each: int = 1, share: float = 1.0) -> Counts:
    """As ``campaign``, over caches of format version 3; ``share`` of the catalogue, chosen by ``seed``, each time."""
    counts = Counts()
    folder.mkdir(parents=True, exist_ok=True)
    bases = {name: folder / f"base-{name.replace(' ', '-')}" for name in THIRD_BASES}
    for name, (encoding, store) in THIRD_BASES.items():
        sound_cache(bases[name], encoding, store, UNEVEN)
        companions(bases[name])
    rng = random.Random(seed)
    with Receiver(folder / "made", *_firsts(folder, bases)) as receiver:
        for _ in range(times):
            chosen = rng.sample(every_one := list(thirds()), round(share * len(every_one)))
            for number, forgery in enumerate(chosen):
                _receive(receiver, forgery, folder / "forged", bases, counts, seed, reworked=not number % each)
    _check_nothing_ran(folder, seed)
    return counts


def _firsts(folder: Path, bases: Mapping[str, Path]) -> list[tuple[Path, Path | None]]:
    """Sound ones of each kind, by which a receiver has imported all that it needs."""
    found: list[tuple[Path, Path | None]] = [(base, base) for name, base in bases.items() if name != "scratch"]
    if "scratch" in bases:
        found.append((folder / "scratch" / "first", bases["scratch"]))
        shutil.copytree(bases["scratch"], found[-1][0])
    return found


def _receive(
    receiver: Receiver,
    forgery: Forgery,
    room: Path,
    bases: Mapping[str, Path],
    counts: Counts,
    seed: int,
    *,
    reworked: bool,
) -> None:
    """Forge one, and count how it ended. ``reworked``: the verbs that make caches out of caches get it too."""
    kind = "scratch" if forgery.base == "scratch" else "caches"
    place = room / kind / "cache"
    shutil.copytree(bases[forgery.base], place)
    forgery.forge(place)
    found = receiver.receive(place, bases[forgery.base] if reworked or kind == "scratch" else None)
    counts[judge(f"{forgery.name}, in {forgery.base}", found, forgery.sound, bytes_under(place), seed)] += 1
    counts[kind] += 1
    shutil.rmtree(room)


def _check_nothing_ran(folder: Path, seed: int) -> None:
    assert not list(folder.rglob("hostile-was-here")) and not Path("hostile-was-here").exists(), (
        f"code ran (seed {seed})"
    )
