"""What is at an address where no cache is."""

from __future__ import annotations

import glob

from pipeline.errors import CacheIncompleteError, CacheNotFoundError
from pipeline.store import manifest as manifest_file
from pipeline.store import parts as parts_file
from pipeline.store.files import Files, LocalFiles
from pipeline.store.references import ReferencedFiles
from pipeline.workspace import MARK


def absent(files: Files) -> CacheNotFoundError | CacheIncompleteError:
    """The error for an address without a manifest, which may hold a dump that has not finished."""
    where = files.address
    unfinished = CacheIncompleteError(
        f"{where} has no {manifest_file.PATH}: its dump has not finished. Run the same dump again: it resumes"
    )
    if isinstance(files, ReferencedFiles):
        what = f"{files.where(manifest_file.PATH)} is not there"
        return CacheNotFoundError(f"{what}. Has its owner pushed the cache, and may you read it?")
    if not isinstance(files, LocalFiles):
        return CacheNotFoundError(f"{where} is not a cache: it has no {manifest_file.PATH}")
    root = files.root
    if (root / "journal").is_dir() or any((root / name).exists() for name in (parts_file.PATH, "index")):
        return unfinished
    scratch = root.parent.glob(f".{glob.escape(root.name)}{MARK}*")
    if any(p.is_dir() and not p.name.endswith(f"{MARK}old") for p in scratch):
        return unfinished
    if not root.exists():
        return CacheNotFoundError(f"there is no cache at {where}. Dump one there, or fetch it (dvc pull)")
    return CacheNotFoundError(
        f"{where} is not a cache: it has no {manifest_file.PATH}. Name a folder that a dump wrote"
    )
