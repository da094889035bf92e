"""Which files a source consists of, and which format reads them."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from pathlib import Path

from pipeline.caches.importing.config import FORMATS, ImportConfig
from pipeline.caches.importing.fkd import FKD
from pipeline.caches.importing.numpy_tables import NumpyTable, read_ids
from pipeline.caches.importing.parquet_tables import ParquetTable
from pipeline.caches.importing.plain import Plain, Table
from pipeline.caches.importing.source import Source
from pipeline.caches.importing.tinyvit import EPOCH, TinyViT
from pipeline.errors import ConfigError, DataError

TABLES = ("npy", "npz", "parquet")


def open_source(config: ImportConfig, classes: int | None) -> tuple[str, Source]:
    """The format of a source and its reader; ``classes`` is their number where it was said.

    Raises ConfigError for options that the format has no use for, DataError for files that are not of it.
    """
    paths = _paths(config.source)
    name = config.format if config.format != "auto" else _format(config.source, paths)
    _check_options(config, name)
    if name in TABLES:
        return name, _plain(config, name, paths)
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
            if not found and any(path.rglob("*.tar")):
                found.add("fkd")
        elif path.suffix[1:] in TABLES:
            found.add(path.suffix[1:])
    if len(found) != 1:
        there = f"it holds {' and '.join(sorted(found))}" if found else "nothing in it is known by its name"
        raise DataError(f"{source}: {there}. Say --format {', '.join(FORMATS[1:])}")
    return found.pop()


def _check_options(config: ImportConfig, name: str) -> None:
    problems = []
    for option in ("ids", "kind"):
        if name not in TABLES and getattr(config, option) is not None:
            problems.append(f"--{option} is for plain files ({', '.join(TABLES)}); {name} says that itself")
    if config.plain and name not in TABLES:
        problems.append(f"--plain: the labels of {name} are of augmented images, all of them")
    if config.made_at is not None and name == "tinyvit":
        problems.append("--made-at: TinyViT's probabilities are made at temperature 1")
    if problems:
        raise ConfigError(problems)


def _plain(config: ImportConfig, name: str, paths: Sequence[Path]) -> Plain:
    folders = [path for path in paths if path.is_dir()]
    files = sorted({*(p for p in paths if p not in folders), *(p for f in folders for p in f.glob(f"*.{name}"))})
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
    folder = folders[0] if len(folders) == len(paths) == 1 else _common(files)
    return Plain(
        folder,
        tables,
        ids=None if config.ids is None else read_ids(config.ids, sum(table.rows for table in tables)),
        split=config.split,
        views=config.views,
        temperature=config.made_at or 1.0,
    )


def _common(files: Sequence[Path]) -> Path:
    """The deepest folder that all files lie in."""
    parents = files[0].parents
    return next(parent for parent in parents if all(parent in file.parents for file in files))
