"""The options of a dump and the report of what it did."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline import encodings
from pipeline.configuration import REQUIRED, Config, option, parse_arguments, url_of
from pipeline.devices import PRECISIONS
from pipeline.encodings import NAMES, Encoding
from pipeline.encodings.drawing import SCHEMES
from pipeline.errors import ConfigError, EncodingError
from pipeline.identity import SPLITS, short
from pipeline.models import parse_features, untrained

OF_SAMPLED = ("draws", "proposal", "scheme")


@dataclass(frozen=True, kw_only=True)
class DumpConfig(Config):
    """Options of ``softlabels dump``."""

    OUT_AT_URL = True

    data: str = option(
        "digits",
        "dataset: digits, arrays:FILE.npz, images:FOLDER, tokens:FOLDER (of softlabels tokenize), module:factory, "
        "torchvision:NAME, hf:PATH, munge:BASE (synthetic examples made from BASE's)",
    )
    data_args: tuple[str, ...] = option((), "key=value arguments for the dataset")
    teacher: str = option(
        "cnn-32",
        "model: a built-in (cnn-WIDTH, resnet-WIDTH, mlp-WIDTH, gpt-WIDTH), module:factory, timm:NAME, hf:PATH",
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
    seed: int = option(0, "seed of the views, and of what sampled labels draw")
    splits: tuple[str, ...] = option(SPLITS, "splits to dump; only train gets random views", choices=SPLITS)
    encoding: str = option(
        "dense",
        "how a distribution is kept: all of it (dense), the largest classes and the mass of the rest (topk), or draws "
        "from it that are right on average (sampled), for large vocabularies",
        choices=NAMES,
    )
    dtype: str = option(
        "float32",
        "of the kept logits; float32 is exact, int4 is of topk alone",
        choices=("float32", "float16", "int8", "int4"),
    )
    k: int = option(10, "classes that topk keeps")
    draws: int = option(50, "draws of sampled labels for each position; several may hit one class, which is kept once")
    proposal: float = option(
        1.0, "sampled labels are drawn from the distribution to this power, and weighed to be right on average"
    )
    scheme: str = option(
        "systematic", "how sampled labels are drawn: evenly spread, or each on its own", choices=SCHEMES
    )
    temperature: tuple[float, ...] = option(
        (1.0, 4.0), "temperatures at which topk keeps the dropped mass; the one that sampled labels are drawn at (1)"
    )
    features: tuple[str, ...] = option((), "NAME=MODULE: keep the output of a named submodule, as float16")
    store: str = option("zarr", "file format of the labels", choices=("zarr", "parquet"))
    part_size: int = option(0, "entries per part, the unit of resume and download; 0 chooses about 32 MiB")
    batch_size: int = option(
        0, "entries per forward pass; 0 chooses: 256, or token sequences of about 8,192 tokens together"
    )
    workers: int = option(0, "processes that load and transform examples; 0 does it in this one")
    device: str = option("auto", "auto, cpu, cuda, cuda:N, mps")
    precision: str = option("float32", "of the forward pass; part of the cache's identity", choices=PRECISIONS)
    compile: bool = option(False, "compile the teacher with torch.compile: other rounding, as on another device")
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
        yield from self.below(batch_size=0, part_size=0, workers=0, threads=0)
        if self.reuse and url_of(self.out) is not None:
            yield "--reuse brings a cache to a local --out; to have one at another URL, push it there"
        if self.reuse and self.parts is not None:
            yield "--reuse brings a whole cache, and --parts makes some of one: leave out one of the two"
        if self.compile and self.features:
            yield "--features are read out of the teacher's own modules, which --compile takes apart: leave out one"
        try:
            parse_features(self.features)
        except ConfigError as error:
            yield from error.problems
        yield from self._encoding_problems()

    def _encoding_problems(self) -> Iterator[str]:
        of = {"k": ("topk",), "temperature": ("topk", "sampled"), **dict.fromkeys(OF_SAMPLED, ("sampled",))}
        for name in self.given(*of):
            if self.encoding not in of[name]:
                why = {"dense": "keeps all classes, for any temperature", "topk": "draws nothing", "sampled": "draws"}
                yield f"--{name} is of --encoding {' or '.join(of[name])}; {self.encoding} {why[self.encoding]}"
        if self.encoding == "topk" and self.k < 1:
            yield f"--k should be at least 1; found {self.k}"
        if self.encoding == "dense" and self.dtype == "int4":
            yield "--dtype int4 is of --encoding topk; dense keeps float32, float16 or int8"
        if self.encoding == "sampled" and self.given("dtype"):
            yield "--dtype is of logits; sampled labels keep none"
        if self.encoding != "dense" and (not self.temperature or min(self.temperature) <= 0):
            yield f"--temperature should be above 0, at least one; found {self.temperature}"
        elif self.encoding == "sampled" and self.given("temperature") and len(self.temperature) > 1:
            found = ", ".join(f"{t:g}" for t in self.temperature)
            yield f"--temperature of sampled labels is one, that they are drawn at; found {found}"
        elif self.encoding == "sampled":
            try:
                self.kept()
            except EncodingError as error:
                yield str(error)

    def kept(self) -> Encoding:
        """The encoding that the options name. Raises EncodingError for one that cannot be."""
        if self.encoding == "sampled":
            at = self.temperature[0] if self.given("temperature") else 1.0
            drawing: dict[str, Any] = {"n": self.draws, "proposal": self.proposal, "scheme": self.scheme}
            return encodings.make("sampled", **drawing, temperature=at, seed=self.seed)
        return encodings.make(self.encoding, dtype=self.dtype, k=self.k, temperatures=self.temperature)

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
    """What a dump did. Times are in seconds; ``resumed`` parts were found finished; ``positions``: as many as entries,
    but of token sequences.

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
    positions: int = 0

    @property
    def summary(self) -> str:
        """One line for people."""
        tokens = self.positions > self.entries
        what = f"{self.entries:,} entries of {self.positions:,} positions" if tokens else f"{self.entries:,} entries"
        each = (
            f"{self.bytes / self.positions:.1f} B per position" if tokens else f"{self.bytes_per_entry:.0f} B per entry"
        )
        again = f", {self.resumed} of {self.parts} parts found finished" if self.resumed else ""
        again += f", reused from {self.reused}, teacher not run" if self.reused else ""
        plural = "" if self.parts == 1 else "s"
        return (
            f"{self.out}: {what} in {self.parts} part{plural}, {self.bytes / 1e6:.1f} MB ({each}), "
            f"{self.seconds:.1f} s{again}; identity {short(self.identity)}"
        )

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON values."""
        return dict(vars(self))
