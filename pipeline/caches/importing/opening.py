"""Which files a source consists of, and which format reads them."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from pathlib import Path

from pipeline.caches.importing.config import FORMATS, SEQUENCES, ImportConfig
from pipeline.caches.importing.distillkit_config import Compression
from pipeline.caches.importing.expected import Expected
from pipeline.caches.importing.fkd import FKD
from pipeline.caches.importing.numpy_tables import NumpyTable, read_ids
from pipeline.caches.importing.parquet_tables import ParquetTable
from pipeline.caches.importing.plain import Plain, Table
from pipeline.caches.importing.sequence_files import DistillKitFiles, TopLogprobsFiles
from pipeline.caches.importing.sequences import Sequences
from pipeline.caches.importing.source import Source
from pipeline.caches.importing.tinyvit import EPOCH, TinyViT
from pipeline.caches.importing.vocabulary import Vocabulary
from pipeline.errors import ConfigError, DataError

TABLES = ("npy", "npz", "parquet")
LINES = ("jsonl", "ndjson")
COMPRESSION = "compression_config.yaml"


def open_source(
    config: ImportConfig,
    classes: int | None,
    expected: Expected | None = None,
    vocabulary: Vocabulary | None = None,
) -> tuple[str, Source]:
    """The format of a source and its reader; ``classes`` is their number where it was said.

    ``expected``, ``vocabulary``: of token sequences, what they are held against, and the ids of tokens by name.

    Raises ConfigError for options that the format has no use for, DataError for files that are not of it.
    """
    paths = _paths(config.source)
    name = config.format if config.format != "auto" else _format(config.source, paths)
    _check_options(config, name)
    if name in TABLES:
        return name, _plain(config, name, paths)
    if name in SEQUENCES:
        return name, _sequences(config, name, paths, expected, vocabulary)
    folder = paths[0]
    if len(paths) > 1 or not folder.is_dir():
        raise DataError(f"{config.source} should be one folder, as {name} makes it")
    if name == "tinyvit":
        return name, TinyViT(folder, split=config.split, views=config.views)
    source = FKD(
        folder,
        aside=config.out.absolute().parent,
        classes=classes,
        split=config.split,
        views=config.views,
        temperature=config.made_at or 1.0,
    )
    return name, source


def _paths(source: str) -> list[Path]:
    path = Path(source).expanduser()
    found = [path] if path.exists() else sorted(Path(match) for match in glob.glob(str(path)))
    if not found:
        raise DataError(f"there is no file, folder or glob of files {source}")
    return found


def _format(source: str, paths: Sequence[Path]) -> str:
    """The format that the names speak for. Raises DataError when they speak for none, or for several."""
    found: set[str] = set()
    for path in paths:
        if path.is_dir():
            if EPOCH.fullmatch(path.name) or any(EPOCH.fullmatch(inner.name) for inner in path.iterdir()):
                found.add("tinyvit")
            found |= {name for name in TABLES if any(path.glob(f"*.{name}"))}
            if any(any(path.glob(f"*.{suffix}")) for suffix in LINES):
                found.add("top-logprobs")
            if not found and any(path.rglob("*.tar")):
                found.add("fkd")
        elif path.suffix[1:] in TABLES:
            found.add(path.suffix[1:])
        elif path.suffix[1:] in LINES:
            found.add("top-logprobs")
    if found == {"parquet"} and (_folder(paths) / COMPRESSION).is_file():
        found = {"distillkit"}
    if len(found) != 1:
        there = f"it holds {' and '.join(sorted(found))}" if found else "nothing in it is known by its name"
        raise DataError(f"{source}: {there}. Say --format {', '.join(FORMATS[1:])}")
    return found.pop()


def _check_options(config: ImportConfig, name: str) -> None:
    problems = []
    for option in ("ids", "kind"):
        if name not in TABLES and getattr(config, option) is not None:
            problems.append(f"--{option} is for plain files ({', '.join(TABLES)}); {name} says that itself")
    if name not in SEQUENCES:
        of_tokens = config.given("data", "tokens_out", "tokenizer", "end_token")
        problems += [f"--{o.replace('_', '-')} is of token sequences ({', '.join(SEQUENCES)})" for o in of_tokens]
    elif config.plain:
        problems.append(f"--plain: token sequences have no other views; the labels of {name} are plain")
    if config.compression_config is not None and name != "distillkit":
        problems.append(f"--compression-config is of distillkit; {name} has none")
    if config.plain and name not in (*TABLES, *SEQUENCES):
        problems.append(f"--plain: the labels of {name} are of augmented images, all of them")
    if config.made_at is not None and name == "tinyvit":
        problems.append("--made-at: TinyViT's probabilities are made at temperature 1")
    if problems:
        raise ConfigError(problems)


def _plain(config: ImportConfig, name: str, paths: Sequence[Path]) -> Plain:
    files = _files(paths, (name,))
    if config.ids is not None:  # a file of ids may lie among them
        files = [path for path in files if path.absolute() != Path(config.ids).absolute()]
    if not files:
        raise DataError(f"{config.source} holds no .{name} files")
    aside = config.out.absolute().parent
    tables: list[Table] = [
        ParquetTable(path, kind=config.kind) if name == "parquet" else NumpyTable(path, kind=config.kind, aside=aside)
        for path in files
    ]
    if config.made_at is not None and tables[0].kind == "logits":
        raise ConfigError("--made-at is for probabilities; these files hold logits, which have no temperature")
    return Plain(
        _folder(paths) if len(paths) == 1 and paths[0].is_dir() else _common(files),
        tables,
        ids=None if config.ids is None else read_ids(config.ids, sum(table.rows for table in tables)),
        split=config.split,
        views=config.views,
        temperature=config.made_at or 1.0,
    )


def _sequences(
    config: ImportConfig, name: str, paths: Sequence[Path], expected: Expected | None, vocabulary: Vocabulary | None
) -> Sequences:
    suffixes = LINES if name == "top-logprobs" else ("parquet",)
    files = _files(paths, suffixes)
    if not files:
        raise DataError(f"{config.source} holds no {' or '.join(f'.{suffix}' for suffix in suffixes)} files")
    folder = _folder(paths)
    folder = folder if all(folder in file.parents for file in files) else _common(files)
    if name == "top-logprobs":
        return TopLogprobsFiles(
            folder,
            files,
            vocabulary=vocabulary,
            k=config.k,
            split=config.split,
            template=config.id_template,
            expected=expected,
        )
    described = config.compression_config or _folder(paths) / COMPRESSION
    if not described.is_file():
        raise ConfigError(
            f"there is no {described}, which says how DistillKit's bytes are to be read. Name it: --compression-config"
        )
    return DistillKitFiles(
        folder,
        files,
        compression=Compression.read(described),
        k=config.k,
        split=config.split,
        template=config.id_template,
        expected=expected,
    )


def _files(paths: Sequence[Path], suffixes: Sequence[str]) -> list[Path]:
    """The files that are named, and those of the folders that are named."""
    folders = [path for path in paths if path.is_dir()]
    inside = (found for folder in folders for suffix in suffixes for found in folder.glob(f"*.{suffix}"))
    return sorted({*(path for path in paths if path not in folders), *inside})


def _folder(paths: Sequence[Path]) -> Path:
    """The folder that is named, or that of the first file."""
    return paths[0] if paths[0].is_dir() else paths[0].parent


def _common(files: Sequence[Path]) -> Path:
    """The deepest folder that all files lie in."""
    parents = files[0].parents
    return next(parent for parent in parents if all(parent in file.parents for file in files))
