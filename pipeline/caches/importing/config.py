"""The options of an import."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.caches.importing.full import KINDS
from pipeline.configuration import REQUIRED, Config, option
from pipeline.identity import SPLITS
from pipeline.store import STORES

SEQUENCES = ("top-logprobs", "distillkit")
"""Formats whose examples are token sequences, with a distribution for each position."""

FORMATS = ("auto", "tinyvit", "fkd", "npy", "npz", "parquet", *SEQUENCES)
ID = "{id}"
K = 10


@dataclass(frozen=True, kw_only=True)
class ImportConfig(Config):
    """Options of ``softlabels cache import``. ``source``: a file, a folder or a glob of files."""

    source: str = option(REQUIRED, "a file, a folder, or a glob of files in quotes")
    out: Path = option(REQUIRED, "directory of the cache")
    format: str = option("auto", "of the source; auto goes by names", choices=FORMATS)
    classes: int = option(0, "number of classes, where the source does not say; 0: as the source or --class-names says")
    class_names: Path | None = option(None, "declare the classes: a file, a name a line, in the order of the logits")
    teacher: str | None = option(None, "declare which teacher made the labels, in your words")
    preprocessing: str | None = option(
        None, "declare how inputs were prepared, in the words of the dataset that will be trained on"
    )
    plain: bool = option(False, "declare that the labels are of the plain images (view 0, where there are several)")
    ids: str | None = option(None, "of .npy and files without ids: a file, an id a line or .npy; or row, its number")
    id_template: str = option(
        ID, "an example's id here, made of the source's: {id}.JPEG adds the suffix that FKD leaves out"
    )
    kind: str | None = option(None, "what the numbers of plain files are, where no name says so", choices=KINDS)
    data: str | None = option(None, "of token sequences: the packing contract that was sent, tokens:FOLDER")
    tokens_out: Path | None = option(
        None, "of token sequences without --data: write a packing contract of them there; needs --tokenizer"
    )
    tokenizer: str | None = option(
        None, "of token sequences without --data: the teacher's tokenizer.json, a folder with one, a name on the hub"
    )
    end_token: str | None = option(None, "with --tokens-out: the token that ends a document; the usual ones are known")
    compression_config: Path | None = option(
        None, "of distillkit: its configuration; compression_config.yaml in the source's folder unless given"
    )
    made_at: float | None = option(None, "declare the temperature at which the source's probabilities were made")
    split: str = option("train", "of the examples, where the source does not say", choices=SPLITS)
    views: int = option(0, "only the first so many views (epochs, crops) of the source; 0 takes all")
    encoding: str | None = option(
        None,
        "how distributions are kept; default: dense, and topk where the source has the largest only",
        choices=("dense", "topk"),
    )
    dtype: str = option(
        "float32", "of the kept logits; int4 is of topk", choices=("float32", "float16", "int8", "int4")
    )
    k: int = option(
        0, f"classes that topk keeps; 0: {K} of a source that has them all, as many as every position has of sequences"
    )
    temperature: tuple[float, ...] = option(
        (1.0, 4.0), "temperatures at which topk keeps the dropped mass, of a source that has all classes"
    )
    store: str = option("zarr", "file format of the labels", choices=STORES)
    part_size: int = option(0, "entries per part, the unit of resume and download; 0 chooses about 32 MiB")
    overwrite: bool = option(False, "replace a cache of another identity at --out")

    def problems(self) -> Iterator[str]:
        yield from self.below(classes=0, views=0, part_size=0, k=0)
        if self.made_at is not None and not 0 < self.made_at < float("inf"):
            yield f"--made-at should be a temperature above 0; found {self.made_at}"
        if ID not in self.id_template:
            yield f"--id-template should have {ID} in it, where the source's id goes; found {self.id_template!r}"
        if not self.temperature or not min(self.temperature) > 0:
            yield f"--temperature should be above 0, at least one; found {self.temperature}"
        if self.data is not None and (named := self.given("tokens_out", "tokenizer", "class_names", "preprocessing")):
            options = " and ".join(f"--{name.replace('_', '-')}" for name in named)
            yield f"--data says what {options} would say: leave it out, or --data"
        if self.tokens_out is not None and self.tokenizer is None:
            yield "--tokens-out needs the --tokenizer that the ids are of: a packing contract names its tokens"
        if self.end_token is not None and self.tokens_out is None:
            yield "--end-token is of --tokens-out"
        if self.encoding == "dense" and self.dtype == "int4":
            yield "--dtype int4 is of --encoding topk; dense keeps float32, float16 or int8"
        for name in ("k", "temperature"):
            if self.encoding == "dense" and getattr(self, name) != getattr(type(self), name):
                yield f"--{name} is of --encoding topk; dense keeps all classes, for any temperature"
