"""A catalogue of caches and weights made to harm whoever receives them: each is refused by name, and does nothing.

Every digest is put right again, as an attacker would. A watched child process receives them one by one: no file
written, nothing imported or executed, memory bounded by the bytes on disk, seconds at most, always a
``SoftlabelsError``.
"""

from __future__ import annotations

import random
import shutil
from pathlib import Path

from tests.faults.counts import Counts
from tests.faults.forged_files import indices, shards, tables
from tests.faults.forged_manifests import BASES, Forgery, links, manifests
from tests.faults.forged_scratch import scratches, unfinished
from tests.faults.forged_weights import weights
from tests.faults.forging import companions, sound_cache
from tests.faults.receiving import GROWTH, ROOM, Outcome, Receiver


def catalogue() -> list[Forgery]:
    """All forged caches, and all forged scratch of unfinished ones."""
    return [*manifests(), *links(), *indices(), *tables(), *shards(), *scratches()]


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
    """The catalogue ``times`` times, in an order that follows from ``seed``, over all kinds of caches.

    Every ``each``-th cache is also given to the verbs that make caches out of caches, which takes most of the time.
    """
    counts = Counts()
    folder.mkdir(parents=True, exist_ok=True)
    bases = {name: folder / f"base-{name}" for name in BASES}
    for name, (encoding, store) in BASES.items():
        sound_cache(bases[name], encoding, store)
        companions(bases[name])
    firsts: list[tuple[Path, Path | None]] = [(base, base) for base in bases.values()]
    bases["scratch"] = folder / "base-scratch"
    unfinished(bases["scratch"])
    firsts.append((folder / "scratch" / "first", bases["scratch"]))
    shutil.copytree(bases["scratch"], firsts[-1][0])
    (folder / "weights").mkdir()
    rng = random.Random(seed)
    with Receiver(folder / "made", *firsts) as receiver:
        for turn in range(times):
            for number, forgery in enumerate(rng.sample(every_one := catalogue(), len(every_one))):
                kind = "scratch" if forgery.base == "scratch" else "caches"
                place = folder / "forged" / kind / f"cache-{turn}"
                shutil.copytree(bases[forgery.base], place)
                forgery.forge(place)
                found = receiver.receive(place, None if kind == "caches" and number % each else bases[forgery.base])
                counts[judge(forgery.name, found, forgery.sound, bytes_under(place), seed)] += 1
                counts[kind] += 1
                shutil.rmtree(folder / "forged")
            for name, make, sound in weights():
                path = folder / "weights" / name
                make(path)
                found = receiver.receive(path)
                counts[judge(name, found, sound, bytes_under(path), seed)] += 1
                counts["weights"] += 1
                path.unlink()
    assert not list(folder.rglob("hostile-was-here")) and not Path("hostile-was-here").exists(), (
        f"code ran (seed {seed})"
    )
    return counts
