"""Opening a cache: at a path, a URL, or through a reference file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.store.copies import DEFAULT_BYTES, CopiedFiles
from pipeline.store.files import Files, LocalFiles, RemoteFiles
from pipeline.store.reader import Cache
from pipeline.store.references import ReferencedFiles, is_reference
from pipeline.store.remote import PatientFiles


def open_cache(
    address: str | Path,
    *,
    cache_dir: str | Path | None = None,
    cache_bytes: int = DEFAULT_BYTES,
    **storage_options: Any,
) -> Cache:
    """The cache at a path or an fsspec URL (``s3://``, ``memory://``, ...), with the options of its filesystem.

    A reference file, whose name ends in ``.refs.json``, stands for the cache that it refers to.

    With ``cache_dir``, parts of a cache at a URL are copied there as they are read, up to ``cache_bytes`` of the least
    recently used; requests that fail in passing are tried again.

    Raises CacheNotFoundError when nothing is there, CacheIncompleteError when a dump has not finished,
    CacheFormatError for a version or field that this release does not know, CacheCorruptError when the metadata is
    not what was committed.
    """
    text = str(address)
    if is_reference(text):
        referred = ReferencedFiles(text, storage_options)
        return Cache(referred) if cache_dir is None or referred.local else _copied(referred, cache_dir, cache_bytes)
    if "://" in text or "::" in text:
        local = text.removeprefix("file://") if text.startswith("file://") else None
        if local is None and cache_dir is not None:
            return _copied(PatientFiles(text, storage_options), cache_dir, cache_bytes)
        files: Files = LocalFiles(Path(local)) if local else RemoteFiles(text, storage_options)
    else:
        files = LocalFiles(Path(text))
    return Cache(files)


def _copied(remote: PatientFiles, cache_dir: str | Path, cache_bytes: int) -> Cache:
    cache = Cache(remote)
    cache.files = CopiedFiles(remote, cache.file_records(), Path(cache_dir), cache_bytes)
    return cache
