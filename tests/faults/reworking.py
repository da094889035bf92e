"""What the verbs that make caches out of caches do with a stranger's cache or scratch: refused, or no more than it was.

Each step works into a folder of its own, the one place where the watch lets it write. A cache that comes out is held
to the rules of ``held``; a report, to being finite.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from pipeline.caches import difference, merge, subset, transcode
from pipeline.caches.catalog import COMPLETE, catalog
from pipeline.caches.describing import sureness, temperatures_of
from pipeline.dump import finalize
from pipeline.store import Cache, open_cache, verify
from stages.verbs.cataloguing import table
from tests.store.small import files_of

Step = tuple[str, Callable[[], bool]]
COMPANIONS = {"twin": "", "other views": "-seed", "other examples": "-others"}
"""Sound caches beside the sound one that a forgery was made from, by what is added to its name."""


def rework(folder: Path, sound: Path, out: Path) -> Iterator[Step]:
    """Every verb over the cache at ``folder``, alone and with ``sound`` ones of its kind, into ``out``."""
    cache, beside = str(folder), {name: f"{sound}{end}" for name, end in COMPANIONS.items()}
    other = "parquet" if "zarr" in (sound / "manifest.json").read_text().partition('"store"')[2][:10] else "zarr"

    def listed() -> bool:
        rows = list(catalog(folder.parent))
        lines = "\n".join(table(rows)).encode()
        text = json.dumps([row.as_dict() for row in rows], allow_nan=False)
        mine = [row for row in rows if row.address == cache]
        return bool(lines and text) and len(mine) == 1 and mine[0].state == COMPLETE

    def compared(one: str, two: str) -> bool:
        report = difference.run(difference.DiffConfig(one=one, other=two, entries=0))
        list(report.lines())
        return bool(json.dumps(report.as_dict(), allow_nan=False))

    def described() -> bool:
        found = open_cache(folder)
        numbers = sureness(found, temperatures_of(found, None), sample=0)
        return bool(json.dumps([each.as_dict() for each in numbers], allow_nan=False)) and len(numbers) > 0

    def transcoded(name: str, **options: object) -> bool:
        transcode.run(transcode.TranscodeConfig(cache=cache, out=out / name, **options))  # type: ignore[arg-type]
        return held(out / name, [folder], same_examples=True, same_rows="store" in options)

    def chosen() -> bool:
        subset.run(subset.SubsetConfig(cache=cache, out=out / "less", first=5))
        return held(out / "less", [folder], same_rows=True)

    def merged(name: str, *caches: str) -> bool:
        made = out / name.replace(" ", "-")
        merge.run(merge.MergeConfig(caches=caches, out=made))
        return held(made, [Path(cache) for cache in caches])

    yield "catalog", listed
    yield "diff", lambda: compared(cache, beside["twin"])
    yield "diff, second", lambda: compared(beside["twin"], cache)
    yield "card", described
    yield "transcode", lambda: transcoded("again", store=other)
    if json.loads((sound / "manifest.json").read_bytes())["encoding"]["name"] != "sampled":  # draws stay draws
        yield (
            "transcode to topk",
            lambda: transcoded("topk", encoding="topk", k=2, temperature=(1.0,), labels_only=True),
        )
    yield "subset", chosen
    for name, path in beside.items():
        yield f"merge with {name}", lambda n=name, p=path: merged(n, cache, p)
        yield f"merge into {name}", lambda n=name, p=path: merged(f"{n} first", p, cache)


def finish(folder: Path, sound: Path, out: Path) -> Iterator[Step]:
    """What is done with the scratch that an unfinished dump left beside ``folder``/cache; ``sound`` holds another."""
    ours, theirs = str(folder / "cache"), str(sound / "cache")

    def joined(name: str, *caches: str) -> bool:
        merge.run(merge.MergeConfig(caches=caches, out=out / name))
        return verify(open_cache(out / name)).ok

    yield "merge", lambda: joined("one", ours, theirs)
    yield "merge, second", lambda: joined("two", theirs, ours)
    yield "finalize", lambda: verify(finalize(folder / "cache")).ok


def held(made: Path, sources: Sequence[Path], *, same_examples: bool = False, same_rows: bool = False) -> bool:
    """Whether a cache is sound. AssertionError when it claims more than the caches that it was made from."""
    if any(files_of(made) == _files_of(source) for source in sources):
        return verify(open_cache(made)).ok  # parts of one cache: that cache, whatever it is
    found, froms = open_cache(made), [open_cache(source) for source in sources]
    report = verify(found)
    assert report.ok, f"a cache was made that is not sound: {report.summary}"
    mine, theirs = found.manifest, [each.manifest for each in froms]
    assert mine.bound >= max(each.bound for each in theirs) or mine.encoding != theirs[0].encoding, "a better bound"
    assert set(mine.unknown) >= set(theirs[0].unknown), f"it knows more: {mine.unknown}"
    assert mine.classes == theirs[0].classes and mine.class_names == theirs[0].class_names, "other classes"
    assert mine.counts["entries"] <= sum(each.counts["entries"] for each in theirs), "more entries"
    assert not same_examples or mine.counts["splits"] == theirs[0].counts["splits"], "other examples"
    assert [step["identity"] for step in mine.lineage[-1]["from"]] == [each.digest for each in froms], "other sources"
    said = mine.fidelity
    assert said["entries_compared"] <= mine.counts["positions"], (
        f"it was compared more often than it has labels: {said}"
    )
    assert 0 <= (said["top1_agreement"] or 0) <= 1, f"it agrees too well: {said}"
    assert all(0 <= share <= 1 for share in said["teacher_accuracy"].values()), f"its teacher is too good: {said}"
    assert all(0 <= kl["mean"] <= kl["max"] + 1e-9 for kl in said["kl"].values()), f"no KL: {said}"
    if same_rows:
        _check_rows(found, froms[0])
    return True


def _check_rows(made: Cache, source: Cache) -> None:
    for split in made.splits():
        place = {example_id: n for n, example_id in enumerate(source.ids(split))}
        rows = np.array([place[example_id] for example_id in made.ids(split)])
        for view in made.views(split):
            ours, theirs = made.read_rows(split, view, np.arange(len(rows))), source.read_rows(split, view, rows)
            for name, values in theirs.items():
                np.testing.assert_array_equal(ours[name], values)


def _files_of(folder: Path) -> dict[str, bytes]:
    """Regular files alone: what a forged one leads to may have no end."""
    found = (path for path in sorted(folder.rglob("*")) if not path.is_symlink() and path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}
