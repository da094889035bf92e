"""Caches made out of caches or files, killed with SIGKILL (see killing.py).

python -m tests.faults.rewriting_kills rewriting --folder /tmp/kills --times 100 --seed 0
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline import dump
from pipeline.caches import building, importing, merge, subset, transcode
from pipeline.caches.importing import config as importing_config
from pipeline.dump import DumpConfig, extend, parts, prepare, reuse
from pipeline.dump.parts import EntryRows
from pipeline.models import build_model, save_weights
from pipeline.store import Cache, CacheWriter, open_cache, parquet_backend, verify, writer, zarr_backend
from pipeline.views import input_loader
from tests.faults.counts import Counts
from tests.faults.dying import Watch, complete, scratch
from tests.faults.killing import Asked, Kinds, Trial, Work, apart, main
from tests.store.small import files_of

VERBS: dict[str, tuple[type[Any], Callable[..., Any]]] = {
    "transcode": (transcode.TranscodeConfig, transcode.run),
    "subset": (subset.SubsetConfig, subset.run),
    "merge": (merge.MergeConfig, merge.run),
    "extend": (extend.ExtendConfig, extend.run),
    "import": (importing_config.ImportConfig, importing.run),
    "dump --reuse": (DumpConfig, dump.run),
}
importing_run = sys.modules["pipeline.caches.importing.run"]  # hidden by a function of its name
CLASSES, SHAPE = 5, (1, 8, 8)


def rewriting_kills(folder: Path, times: int = 100, seed: int = 0) -> Counts:
    """Kill them ``times`` times: the same bytes in the end, no journalled part made again, no source touched."""
    return apart("rewriting_kills", "rewriting", folder, times, seed)


class RewritingWork(Work):
    """One verb over small caches. Pieces are parts, then the entries that may meet the teacher; done are parts."""

    phases = ("teacher", "read", "encode", "write", "rename", "journal", "finalise", "commit")
    early = phases[:6]

    def __init__(self, folder: Path, options: dict[str, Any], counts: Counts) -> None:
        self.verb, self.sources = options.pop("verb"), options.pop("sources")
        replacing = options.pop("replacing", None)
        first = folder / "first"
        complete(lambda: self._run(options, first))
        complete(lambda: _check(first))
        body = json.loads((first / "manifest.json").read_bytes())
        self.digest, self.parts = body["identity"]["digest"], body["counts"]["parts"]
        self.known: dict[bytes, int] = {}
        self.part_of = np.arange(self.parts)
        if self.verb == "extend":
            self._know_entries(options, first)
        if replacing is not None:
            shutil.copytree(replacing, folder / "before")
            options = {**options, "overwrite": True}
        self.kept = files_of(self.sources)
        super().__init__(folder, options, counts, len(self.part_of), None if replacing is None else folder / "before")
        assert files_of(first) == self.whole, f"{self.verb} {options}: another place, other bytes"

    def _run(self, options: dict[str, Any], out: Path) -> Any:
        config, run = VERBS[self.verb]
        return run(config(**options, out=out))

    def _know_entries(self, options: dict[str, Any], first: Path) -> None:
        """What the teacher is shown says which entry it is. Entry e is piece ``parts + e``."""
        cache = open_cache(options["cache"])
        job = prepare(extend._as_dumped(extend.ExtendConfig(**options, out=first), cache))
        rows = EntryRows(job.dataset)
        held = [(int(row), part.view, part.number) for part in job.layout.parts for row in rows.of(part)]
        shown = input_loader(job.dataset, job.views, [[entry[:2]] for entry in held])
        self.known = {batch[0].numpy().tobytes(): self.parts + e for e, batch in enumerate(shown)}
        assert len(self.known) == len(held), "every entry should look different to the teacher"
        self.part_of = np.concatenate([self.part_of, [part for *_, part in held]])

    def start(self, out: Path, watch: Watch) -> None:
        def build(plan: Any, out: Path, contents: Callable[[Any], Any], **named: Any) -> building.BuildReport:
            def counted(part: Any) -> Any:
                watch.asked[part.number] += 1
                return contents(part)

            return building.build(plan, out, counted, **named)

        def asking(job: Any, inputs: torch.Tensor, *more: Any) -> Any:
            watch.asked[[self.known[row.numpy().tobytes()] for row in inputs]] += 1
            return ask(job, inputs, *more)

        def adopting(self: CacheWriter, record: Any, source: Path) -> None:
            watch.asked[record.number] += 1
            adopt(self, record, source)

        ask, adopt, write = extend.ask, CacheWriter.adopt, writer.write_atomic
        for module in (transcode, subset, merge, extend, importing_run):
            module.build = build
        parts.ask = asking  # of a dump that should have found its cache: it knows no entry, and fails
        reuse.pull = watch.around("write", reuse.pull)
        extend.ask, CacheWriter.adopt = watch.around("teacher", asking), adopting
        for name in ("read_rows", "read_feature_rows", "index"):
            setattr(Cache, name, watch.around("read", getattr(Cache, name)))
        writer.sha256_of = watch.around("read", writer.sha256_of)
        importing_run.contents_of = watch.around("read", importing_run.contents_of)
        transcode.recode = watch.around("encode", transcode.recode)
        for backend in (zarr_backend.ZarrBackend, parquet_backend.ParquetBackend):
            backend.encode = watch.around("encode", backend.encode)
        write_file, write_journal = watch.around("write", write), watch.around("journal", write, cover=True)
        writer.write_atomic = lambda path, data: (write_journal if path.parent.name == writer.JOURNAL else write_file)(
            path, data
        )
        writer.link = watch.around("write", writer.link)
        for name in ("finalise", "finalise_as"):
            setattr(CacheWriter, name, watch.around("finalise", getattr(CacheWriter, name), cover=True))
        watch.files()
        watch.resumed[0] = self._run(self.options, out).resumed

    def done(self, out: Path) -> set[int]:
        for manifest in [out / "manifest.json", *(path / "manifest.json" for path in scratch(out))]:
            if manifest.is_file() and json.loads(manifest.read_bytes())["identity"]["digest"] == self.digest:
                return set(range(self.parts))
        journals = (entry for path in scratch(out) for entry in path.glob(f"{writer.JOURNAL}/part-*.json"))
        return {int(entry.stem.removeprefix("part-")) for entry in journals}

    def judge(self, trial: Trial, asked: Asked, done: set[int], killed: bool) -> None:
        touched = set(self.part_of[asked > 0].tolist())
        again, lost = touched & trial.done, touched - done
        trial.expect(not again, f"parts {sorted(again)} were journalled, and were made or asked about again")
        trial.expect(asked.max() <= 1, "a part was made twice, or an entry asked about twice, in one run")
        trial.expect(len(lost) <= killed, f"a kill should lose the part in hand; lost {sorted(lost)}")
        trial.expect(files_of(self.sources) == self.kept, "a source has changed")
        found = int(trial.watch.resumed[0])
        if not killed and self.verb != "dump --reuse":  # which makes no part
            trial.expect(found == len(trial.done), f"{len(trial.done)} parts were journalled, it found {found}")
        if trial.name == "undisturbed":
            return
        if killed:
            self.counts[f"{self.verb}: kills"] += 1
            self.counts["parts lost to kills"] += len(lost)
            self.counts["teacher passes lost to kills (entries)"] += int(
                asked[self.parts :][np.isin(self.part_of[self.parts :], [*lost])].sum()
            )
        if len(trial.history) > 1:
            self.counts["parts found finished when taken up again"] += len(trial.done)

    def left(self, trial: Trial) -> float:
        return 1 - len(trial.done) / self.parts


def _check(cache: Path) -> None:
    report = verify(open_cache(cache))
    assert report.ok, report.summary


def _data(folder: Path, name: str, numbers: range) -> str:
    """Images of these numbers; number n is always the same image under the same id."""
    images = [np.random.default_rng(n).normal(size=SHAPE).astype(np.float32) for n in numbers]
    np.savez(
        folder / f"{name}.npz",
        x=np.stack(images),
        y=np.array([n % CLASSES for n in numbers]),
        ids=np.array([f"n{n}" for n in numbers]),
        split=np.array(["test" if n % 4 == 3 else "train" for n in numbers]),
        classes=np.array([f"class {n}" for n in range(CLASSES)]),
    )
    return f"arrays:{folder / name}.npz"


def _rewritings(folder: Path) -> list[dict[str, Any]]:
    """Every verb, over a few dumps of one teacher; parts of one dump are left as two machines would leave them."""
    sources = folder / "sources"
    sources.mkdir()
    torch.manual_seed(0)
    save_weights(sources / "teacher.safetensors", build_model("mlp-8", {}, classes=CLASSES, input_shape=SHAPE), {})
    teacher = {
        "teacher": "tests.faults.kills:slow_teacher",
        "weights": sources / "teacher.safetensors",
        "batch_size": 7,
        "device": "cpu",
    }
    data, grown = _data(sources, "data", range(48)), _data(sources, "grown", range(66, 8, -1))
    base = {**teacher, "data": data, "views": 2, "transform": "affine:degrees=20", "part_size": 9}
    hint = {"features": ("hint=hidden",)}
    dumps: dict[str, dict[str, Any]] = {
        "dense": {**base, **hint},
        "seed-7": {**base, **hint, "seed": 7},
        "others": {**base, **hint, "data": grown},
        "topk": {**base, **hint, "store": "parquet", "encoding": "topk", "k": 3},
        "one-machine": {**base, "dtype": "float16", "parts": "0/2"},
        "another": {**base, "dtype": "float16", "parts": "1/2"},
        "committed": {**base, "dtype": "int8"},
    }
    for name, options in dumps.items():
        complete(lambda options=options, name=name: dump.run(DumpConfig(**options, out=sources / name)))
    shutil.copytree(sources / "committed", sources / "the-rest")
    for place, number in (("committed", 2), ("the-rest", 5)):
        (sources / place / f"labels.zarr/values/c.{number}.0").unlink()
    np.save(sources / "logits.npy", np.random.default_rng(1).normal(size=(70, CLASSES)).astype(np.float32))
    there = {name: str(sources / name) for name in (*dumps, "the-rest")}
    found: list[dict[str, Any]] = [
        {"verb": "extend", "cache": there["topk"], "data": grown, **teacher},
        {"verb": "transcode", "cache": there["dense"], "encoding": "topk", "k": 2, "store": "parquet", "part_size": 6},
        {"verb": "merge", "caches": (there["one-machine"], there["another"])},
        {"verb": "subset", "cache": there["topk"], "classes": ("class 1", "class 3", "class 4"), "views": 2},
        {"verb": "merge", "caches": (there["dense"], there["seed-7"])},
        {"verb": "import", "source": str(sources / "logits.npy"), "kind": "logits", "ids": "row", "part_size": 8},
        {"verb": "merge", "caches": (there["committed"], there["the-rest"]), "replacing": there["topk"]},
        {"verb": "merge", "caches": (there["others"], there["dense"])},
        {
            "verb": "transcode",
            "cache": there["topk"],
            "store": "zarr",
            "labels_only": True,
            "replacing": there["dense"],
        },
        {"verb": "dump --reuse", **dumps["dense"], "reuse": (str(sources),)},
        {"verb": "extend", "cache": there["dense"], "data": grown, **teacher},
    ]
    return [{**options, "sources": sources} for options in found]


KINDS: Kinds = {"rewriting": (RewritingWork, _rewritings)}


if __name__ == "__main__":
    main(KINDS)
