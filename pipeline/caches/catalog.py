"""The caches in some place, by identity: so that a dump that exists already is found before a teacher runs.

Manifests, the lists of parts and the sizes of files are read, one cache after another; no label is. What is wrong with
a cache stands in its row and stops nothing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.errors import (
    CacheCorruptError,
    CacheError,
    CacheFormatError,
    CacheIncompleteError,
    CacheNotFoundError,
    some,
)
from pipeline.store.files import Files, LocalFiles
from pipeline.store.manifest import MAX_BYTES, Manifest
from pipeline.store.manifest import PATH as MANIFEST
from pipeline.store.parts import PATH as PARTS
from pipeline.store.parts import FileRecord, decode
from pipeline.store.remote import Patience, PatientFiles
from pipeline.workspace import MARK

COMPLETE, MISSING, DAMAGED, NO_MANIFEST, OTHER_FORMAT = (
    "complete",
    "parts missing",
    "damaged",
    "damaged manifest",
    "unknown format",
)
STATES = (COMPLETE, MISSING, DAMAGED, NO_MANIFEST, OTHER_FORMAT)

MOST_DEPTH = 64
"""Folders deeper than this below a place are not looked into."""


@dataclass(frozen=True)
class Listed:
    """One cache in a catalogue.

    - ``state``: one of STATES, or "" when nobody looked; ``problem``: what is wrong, in a sentence;
    - ``identity``, ``weights``, ``data``: whole digests, "" where unknown;
    - ``bytes``: what its files should have; ``description``: its identity, as the manifest holds it.
    """

    address: str
    state: str
    problem: str = ""
    identity: str = ""
    teacher: str = ""
    weights: str = ""
    data: str = ""
    classes: int = 0
    entries: int = 0
    encoding: str = ""
    bytes: int = 0
    description: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON, without ``description``."""
        return {name: value for name, value in vars(self).items() if name != "description"}


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """Which caches to list: by the first characters of the identity, of the data's digest, and by the teacher.

    A teacher is meant by a piece of its reference or the first characters of its weights' digest.
    """

    identity: str = ""
    teacher: str = ""
    data: str = ""

    def holds(self, row: Listed) -> bool:
        """Whether a cache is one of them."""
        teacher = not self.teacher or self.teacher in row.teacher or row.weights.startswith(self.teacher)
        return teacher and row.identity.startswith(self.identity) and row.data.startswith(self.data)


def catalog(
    place: str | Path,
    *,
    wanted: Wanted | None = None,
    weighed: Wanted | None = None,
    options: Mapping[str, Any] | None = None,
    patience: Patience | None = None,
) -> Iterator[Listed]:
    """The caches under a folder or an fsspec URL, at any depth, in the order of their names.

    Only those ``wanted`` are listed, and only the files of those ``weighed`` (by default of all listed) looked at.
    ``options`` are those of the URL's filesystem. Hidden folders and scratch of running work are left out, and so is
    what lies in a cache. Links to folders are followed only where they lead to a cache. Raises CacheNotFoundError when
    there is no such place, CacheError when it is not reached.
    """
    wanted = wanted or Wanted()
    text = str(place)
    text = text.removeprefix("file://")
    if "://" in text or "::" in text:
        yield from _below_url(text, wanted, weighed or wanted, options, patience)
    else:
        yield from _below(Path(text), wanted, weighed or wanted)


def _below(root: Path, wanted: Wanted, weighed: Wanted) -> Iterator[Listed]:
    if not root.is_dir():
        raise CacheNotFoundError(f"there is no folder {root}. Name one that holds caches, at any depth, or a URL")
    stack = [(root, 0, False)]
    while stack:
        folder, depth, linked = stack.pop()
        found, folders = _contents(folder)
        if found:
            row = look(LocalFiles(folder), weighed)
            if row is not None:
                if wanted.holds(row):
                    yield row
                continue
        if not linked and depth < MOST_DEPTH:
            stack += [(path, depth + 1, path.is_symlink()) for path in sorted(folders, reverse=True)]


def _contents(folder: Path) -> tuple[bool, list[Path]]:
    """Whether a manifest lies in ``folder``, and the folders in it that are looked into."""
    found, folders = False, list[Path]()
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name == MANIFEST:
                    found = not entry.is_dir()
                elif not _skipped(entry.name) and entry.is_dir():
                    path = Path(entry.path)
                    folders += [path] if not entry.is_symlink() or (path / MANIFEST).is_file() else []
    except OSError:  # a folder that may not be read, or has just gone: nothing is known of it
        return found, folders
    return found, folders


def _skipped(name: str) -> bool:
    return name.startswith(".") or MARK in name


def _below_url(
    url: str, wanted: Wanted, weighed: Wanted, options: Mapping[str, Any] | None, patience: Patience | None
) -> Iterator[Listed]:
    place = PatientFiles(url, options, patience)
    stack = [("", 0)]
    while stack:
        path, depth = stack.pop()
        found, folders = _contents_at(place, path)
        if found:
            row = look(PatientFiles(_joined(url, path), options, patience), weighed)
            if row is not None:
                if wanted.holds(row):
                    yield row
                continue
        if depth < MOST_DEPTH:
            stack += [(folder, depth + 1) for folder in sorted(folders, reverse=True)]


def _contents_at(place: PatientFiles, path: str) -> tuple[bool, list[str]]:
    """As ``_contents``, of the folder ``path`` below a URL; paths are relative to that URL."""
    root = f"{place.root}/{path}".rstrip("/")
    try:
        listed = place.attempt(path, lambda: place.filesystem.ls(root, detail=True))
    except FileNotFoundError as error:
        if path:
            return False, []
        raise CacheNotFoundError(f"there is nothing at {place.address}. Name a URL that holds caches") from error
    place.filesystem.invalidate_cache()  # what it remembers would grow with the place
    found, folders = False, list[str]()
    for item in listed:
        name = str(item["name"]).rstrip("/")
        last = name.rpartition("/")[2]
        if name != f"{root}/{last}" or _skipped(last):
            continue
        if item.get("type") == "directory":
            folders.append(f"{path}/{last}".lstrip("/"))
        elif last == MANIFEST:
            found = True
    return found, folders


def _joined(url: str, path: str) -> str:
    """The URL of ``path`` below ``url``, which may be a chain of URLs.

    >>> _joined("s3://b/caches/", "a"), _joined("zip://in::s3://b/x.zip", "a"), _joined("memory://b", "")
    ('s3://b/caches/a', 'zip://in/a::s3://b/x.zip', 'memory://b')
    """
    if not path:
        return url
    links = url.split("::")
    number = next((n for n, link in enumerate(links) if "://" in link), 0)
    links[number] = f"{links[number].rstrip('/')}/{path}"
    return "::".join(links)


def look(files: Files, weighed: Wanted | None = None) -> Listed | None:
    """The row of the cache that ``files`` are; None for a manifest.json of something else.

    The files of a cache that is not to be ``weighed`` are not looked at: its state and bytes are left open.
    """
    try:
        data = files.read(MANIFEST, limit=MAX_BYTES)
        manifest = Manifest.from_json(data, files.where(MANIFEST), files.size(PARTS) or 0)
    except CacheFormatError as error:
        return Listed(files.address, OTHER_FORMAT, str(error))
    except CacheIncompleteError as error:
        return Listed(files.address, MISSING, str(error))
    except CacheError as error:
        return None if _foreign(files) else Listed(files.address, NO_MANIFEST, str(error))
    row = _described(files.address, manifest)
    if weighed is not None and not weighed.holds(row):
        return row
    try:
        state, problem, size = _state(files, manifest)
    except CacheIncompleteError as error:
        state, problem, size = MISSING, str(error), 0
    except CacheError as error:
        state, problem, size = DAMAGED, str(error), 0
    return Listed(**{**vars(row), "state": state, "problem": problem, "bytes": size + len(data) if size else 0})


def _foreign(files: Files) -> bool:
    """Whether a manifest.json is sound JSON of some other program, with nothing of a cache beside it."""
    try:
        found = json.loads(files.read(MANIFEST, limit=MAX_BYTES))
        return not (isinstance(found, dict) and {"format", "identity"} & found.keys()) and files.size(PARTS) is None
    except (ValueError, RecursionError, CacheError):
        return False


def _described(address: str, manifest: Manifest) -> Listed:
    identity = manifest.identity
    teacher, data = identity["teacher"], identity["data"]
    return Listed(
        address=address,
        state="",
        identity=str(identity["digest"]),
        teacher=teacher["reference"] or "",
        weights=teacher["state"] or "",
        data=data["digest"] or "",
        classes=manifest.classes,
        entries=manifest.counts["entries"],
        encoding=encoding_words(manifest),
        description=dict(identity),
    )


def encoding_words(manifest: Manifest) -> str:
    """The encoding in a few words: ``dense float16``, ``topk k=10 float16 T=1,4``."""
    found = dict(manifest.encoding.describe())
    words = [str(found.pop("name"))]
    words += [f"k={found.pop('k')}"] if "k" in found else []
    words += [str(found.pop("dtype"))] if "dtype" in found else []
    words += [f"T={','.join(f'{t:g}' for t in manifest.temperatures)}"] if manifest.temperatures else []
    return " ".join(words)


def _state(files: Files, manifest: Manifest) -> tuple[str, str, int]:
    """The state of a cache by the sizes of its files, what is wrong, and the bytes that they should have."""
    listed = manifest.files.get(PARTS)
    if listed is None:
        raise CacheCorruptError(f"{files.where(MANIFEST)} does not list {PARTS}")
    table = files.read(PARTS, listed.size)
    if FileRecord.of(table) != listed:
        raise files.corrupt(PARTS, "its sha256 is not the one in the manifest")
    parts = decode(table, manifest.counts["parts"], files.where(PARTS))
    expected = {path: record.size for path, record in manifest.files.items()}
    expected |= {path: record.size for part in parts for path, record in part.files.items()}
    there = files.sizes() if isinstance(files, PatientFiles) else {path: files.size(path) for path in expected}
    missing = [path for path in expected if there.get(path) is None]
    other = [path for path in expected if there.get(path) not in (None, expected[path])]
    total = sum(expected.values())
    if other:
        return DAMAGED, f"{len(other):,} of {len(expected):,} files have another size: {some(other)}", total
    if missing:
        return MISSING, f"{len(missing):,} of {len(expected):,} files are missing: {some(missing)}", total
    return COMPLETE, "", total
