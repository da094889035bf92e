"""The cache on disk, format versions 1 to 3 (docs/format.md): written once, verified, read by anybody.

    layout -> writer -> manifest.json, index/, labels.zarr/ or labels/, features.zarr/ -> reader -> verify

Nothing here imports torch: a cache can be inspected, verified and read on a machine without it.
"""

from __future__ import annotations

from pipeline.store.index import IndexRows
from pipeline.store.layout import Group, Layout, Part, groups_of, part_size_for
from pipeline.store.manifest import FORMAT, STORES, FeatureSpec, Manifest
from pipeline.store.opening import open_cache
from pipeline.store.parts import FileRecord, PartRecord
from pipeline.store.reader import Cache
from pipeline.store.transfer import TransferReport, pull, push
from pipeline.store.verify import Problem, VerifyReport, verify
from pipeline.store.writer import CacheWriter, replay_file

__all__ = [
    "FORMAT",
    "STORES",
    "Cache",
    "CacheWriter",
    "FeatureSpec",
    "FileRecord",
    "Group",
    "IndexRows",
    "Layout",
    "Manifest",
    "Part",
    "PartRecord",
    "Problem",
    "TransferReport",
    "VerifyReport",
    "groups_of",
    "open_cache",
    "part_size_for",
    "pull",
    "push",
    "replay_file",
    "verify",
]
