"""Documents: texts with a stable id each, from files, folders, globs, and the standard library's own sources.

Sources yield them in an order that depends on names alone. Tables (JSONL, Parquet, Hugging Face) are in ``tables.py``.
"""

from __future__ import annotations

import glob
import os
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import ConfigError, DataError

TEXT_SUFFIXES = (".txt", ".md", ".rst", ".py")
"""What a folder's texts end in. A file that is named by itself, or matches a glob, may end in anything."""

STDLIB = "stdlib"

NOT_IN_STDLIB = frozenset(
    {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "turtledemo", "ensurepip", "encodings",
     "pydoc_data"}
)  # fmt: skip
"""Folders of the standard library that are no prose of it: installed packages, tests, applications, bundled wheels, and
tables that a program wrote (character sets, the texts of ``help``)."""


@dataclass(frozen=True)
class Document:
    """A text to learn from; ``prompt`` stands before it and is not scored. ``split``: the source's own, or None."""

    id: str
    text: str
    prompt: str = ""
    split: str | None = None


@dataclass
class LeftOut:
    """How many documents were not taken, by reason."""

    not_utf8: int = 0
    empty: int = 0


Table = Callable[[Path, str, LeftOut], Iterator[Document]]
"""Reads the documents of one file: (path, its name within ids, what is left out)."""


def read_paths(pattern: str, tables: dict[str, Table], left_out: LeftOut) -> Iterator[Document]:
    """The documents of a file, of a folder (all below it, but for hidden ones) or of a glob (``**`` is deep).

    A file is a document, unless ``tables`` has a reader for its suffix. Ids are paths from the named folder, or from
    the fixed part of the glob, with the folder's name first: they stay when the whole folder moves.

    Raises ConfigError when nothing is there.
    """
    root, paths = _found(pattern, (*TEXT_SUFFIXES, *tables))
    if not paths:
        raise ConfigError(
            f"--text {pattern}: there is no such file, and nothing there that ends in "
            f"{', '.join((*TEXT_SUFFIXES, *tables))}. Name a file, a folder, a glob, {STDLIB} or hf:NAME"
        )
    for path in paths:
        name = f"{root.name}/{path.relative_to(root).as_posix()}" if root.name and path != root else path.name
        if (table := tables.get(path.suffix.lower())) is not None:
            yield from table(path, name, left_out)
        elif (text := read_utf8(path, left_out)) is not None:
            yield Document(name, text)


def _found(pattern: str, suffixes: tuple[str, ...]) -> tuple[Path, list[Path]]:
    """The folder that ids begin at, and the files in order."""
    path = Path(pattern).expanduser().absolute()
    if path.is_file():
        return path, [path]
    if path.is_dir():
        files = (p for p in path.rglob("*") if p.suffix.lower() in suffixes)
        visible = (p for p in files if not any(part.startswith(".") for part in p.relative_to(path).parts))
        return path, _in_order(visible)
    fixed = [part for part in path.parts[: next((n for n, p in enumerate(path.parts) if glob.has_magic(p)), 0)]]
    return Path(*fixed), _in_order(Path(p) for p in glob.iglob(str(path), recursive=True)) if fixed else []


def _in_order(paths: Iterable[Path]) -> list[Path]:
    return sorted((path for path in paths if path.is_file()), key=lambda path: path.as_posix())


def read_stdlib(left_out: LeftOut) -> Iterator[Document]:
    """The sources of the standard library of the Python that runs, without NOT_IN_STDLIB and build settings.

    Another patch version of Python has other sources, and so other digests.
    """
    root = Path(sysconfig.get_path("stdlib"))
    for path in _in_order(root.rglob("*.py")):
        inside = path.relative_to(root)
        built = path.name.startswith("_sysconfigdata") or inside.parts[0].startswith("config-")
        if built or not NOT_IN_STDLIB.isdisjoint(inside.parts[:-1]):
            continue
        if (text := read_utf8(path, left_out)) is not None:
            yield Document(f"{STDLIB}/{inside.as_posix()}", text)


def read_utf8(path: Path, left_out: LeftOut) -> str | None:
    """A file's text with its line ends as they are; None, and counted, where it is no UTF-8 or there is none.

    Raises DataError when the file cannot be read.
    """
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError:
        left_out.not_utf8 += 1
        return None
    except OSError as error:
        raise DataError(f"{os.fspath(path)} cannot be read: {error.strerror or error}") from error
    if not text:
        left_out.empty += 1
    return text or None
