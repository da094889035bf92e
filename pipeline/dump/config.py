"""The options of a dump and the report of what it did."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.configuration import REQUIRED, Config, option, parse_arguments, url_of
from pipeline.devices import PRECISIONS
from pipeline.errors import ConfigError
from pipeline.identity import SPLITS, short
from pipeline.models import parse_features, untrained


@dataclass(frozen=True, kw_only=True)
class DumpConfig(Config):
    """Options of ``softlabels dump``."""

    OUT_AT_URL = True

    data: str = option(
        "digits",
        "dataset: digits, arrays:FILE.npz, images:FOLDER, module:factory, torchvision:NAME, hf:PATH, munge:BASE "
        "(synthetic examples made from BASE's)",
    )
    data_args: tuple[str, ...] = option((), "key=value arguments for the dataset")
    teacher: str = option(
        "cnn-32", "model: a built-in (cnn-WIDTH, resnet-WIDTH, mlp-WIDTH), module:factory, timm:NAME, hf:PATH"
    )
    teacher_args: tuple[str, ...] = option((), "key=value arguments for the teacher's factory")
    weights: Path | None = option(
        None, "the teacher's weights: safetensors, or a checkpoint that loads with weights_only"
    )
    run: Path | None = option(
        None, "instead of --teacher and --weights: the model that a finished run of train or fit-teacher left there"
    )
    run_seed: int | None = option(None, "with --run: which of its students; the one with the lowest seed unless given")
    allow: tuple[str, ...] = option((), "module:factory that --run names and may be imported: your own code")
    classes: tuple[str, ...] = option(
        (), "the classes that the teacher's outputs stand for, in its order, where it knows some of the dataset's alone"
    )
    out: Path = option(REQUIRED, "directory of the cache, or a URL: s3://BUCKET/NAME, gs://...")
    views: int = option(0, "random views of each training example, besides the plain one")
    transform: str | None = option(
        None,
        "random view: built-ins joined by '+' (affine:degrees=15,translate=0.1; mixup or cutmix at the end), or "
        "module:factory",
    )
    seed: int = option(0, "seed of the views")
    splits: tuple[str, ...] = option(SPLITS, "splits to dump; only train gets random views", choices=SPLITS)
    encoding: str = option("dense", "how a distribution is kept", choices=("dense", "topk"))
    dtype: str = option("float32", "of the kept logits; float32 is exact", choices=("float32", "float16", "int8"))
    k: int = option(10, "classes that topk keeps")
    temperature: tuple[float, ...] = option((1.0, 4.0), "temperatures at which topk keeps the dropped mass")
    features: tuple[str, ...] = option((), "NAME=MODULE: keep the output of a named submodule, as float16")
    store: str = option("zarr", "file format of the labels", choices=("zarr", "parquet"))
    part_size: int = option(0, "entries per part, the unit of resume and download; 0 chooses about 32 MiB")
    batch_size: int = option(256, "entries per forward pass")
    workers: int = option(0, "processes that load and transform examples; 0 does it in this one")
    device: str = option("auto", "auto, cpu, cuda, cuda:N, mps")
    precision: str = option("float32", "of the forward pass; part of the cache's identity", choices=PRECISIONS)
    threads: int = option(0, "CPU threads of the forward pass; 0 leaves torch's choice")
    overwrite: bool = option(False, "replace a cache of another identity at --out")
    reuse: tuple[str, ...] = option(
        (), "folder or URL of caches: one of this very identity is brought to --out, and the teacher does not run"
    )
    parts: str | None = option(
        None,
        "make only these parts, FIRST:END or I/N (every N-th from I on, I from 0), beside others who make the rest; "
        "then `softlabels cache finalize`",
    )

    def problems(self) -> Iterator[str]:
        if self.views < 0:
            yield f"--views should be 0 or more; found {self.views}"
        if self.views and self.transform is None:
            yield "--views needs a --transform, for example affine:degrees=15,translate=0.1"
        if self.transform is not None and not self.views:
            yield "--transform needs --views: how many random views of each training example to keep"
        try:
            arguments = parse_arguments(self.teacher_args, "--teacher-args")
            if self.weights is None and self.run is None:
                yield from untrained(self.teacher, arguments)
        except ConfigError as error:
            yield from error.problems
        yield from self._run_problems()
        if not self.splits:
            yield "--splits should name at least one split"
        yield from self.below(batch_size=1, part_size=0, workers=0, threads=0)
        if self.reuse and url_of(self.out) is not None:
            yield "--reuse brings a cache to a local --out; to have one at another URL, push it there"
        if self.reuse and self.parts is not None:
            yield "--reuse brings a whole cache, and --parts makes some of one: leave out one of the two"
        try:
            parse_features(self.features)
        except ConfigError as error:
            yield from error.problems
        for name in ("k", "temperature"):
            if self.encoding != "topk" and getattr(self, name) != getattr(type(self), name):
                yield f"--{name} is of --encoding topk; {self.encoding} keeps all classes, for any temperature"
        if self.encoding == "topk" and self.k < 1:
            yield f"--k should be at least 1; found {self.k}"
        if self.encoding == "topk" and self.dtype == "int8":
            yield "--dtype int8 is for dense labels; topk keeps float32 or float16"
        if self.encoding == "topk" and (not self.temperature or min(self.temperature) <= 0):
            yield f"--temperature should be above 0, at least one; found {self.temperature}"

    def _run_problems(self) -> Iterator[str]:
        given = self.given("teacher", "teacher_args", "weights")
        if self.run is not None and given:
            flags = ", ".join(f"--{name.replace('_', '-')}" for name in given)
            yield f"--run says which teacher, with its arguments and weights: leave {flags} out, or --run"
        if self.run is None and (self.run_seed is not None or self.allow):
            yield "--run-seed and --allow are of the run that --run names"


@dataclass(frozen=True)
class PartialReport:
    """What one of several processes knows when its share of a dump is made: ``there`` of ``parts`` are written."""

    out: str
    identity: str
    parts: int
    there: int
    seconds: float
    teacher_seconds: float
    device: str

    @property
    def summary(self) -> str:
        """One line for people."""
        then = (
            f"finish with `softlabels cache finalize {self.out}`, if nobody else does"
            if self.there == self.parts
            else f"{self.parts - self.there} are still to be made"
        )
        return f"{self.out}: {self.there} of {self.parts} parts are there, {self.seconds:.1f} s; {then}"

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON values."""
        return dict(vars(self))


@dataclass(frozen=True)
class DumpReport:
    """What a dump did. Times are in seconds; ``resumed`` parts were found finished.

    ``reused`` is the address of the cache that was brought to ``out`` instead; "" when the teacher ran.
    """

    out: str
    identity: str
    entries: int
    parts: int
    resumed: int
    bytes: int
    bytes_per_entry: float
    seconds: float
    teacher_seconds: float
    device: str
    reused: str = ""
    fidelity: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def summary(self) -> str:
        """One line for people."""
        again = f", {self.resumed} of {self.parts} parts found finished" if self.resumed else ""
        again += f", reused from {self.reused}, teacher not run" if self.reused else ""
        plural = "" if self.parts == 1 else "s"
        return (
            f"{self.out}: {self.entries:,} entries in {self.parts} part{plural}, {self.bytes / 1e6:.1f} MB "
            f"({self.bytes_per_entry:.0f} B per entry), {self.seconds:.1f} s{again}; identity {short(self.identity)}"
        )

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON values."""
        return dict(vars(self))
