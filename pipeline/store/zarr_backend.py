"""Arrays in a zarr v3 group, one shard of each array per part."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.encodings import KEPT, Arrays, ArraySpec
from pipeline.errors import CacheFormatError
from pipeline.store.backend import Backend
from pipeline.store.files import Files
from pipeline.store.layout import Part
from pipeline.store.parts import PartRecord
from pipeline.store.shard_reader import Shard
from pipeline.store.shards import ShardPlan, group_metadata
from pipeline.store.spans import expand


class ZarrBackend(Backend):
    """The arrays ``plans`` of the zarr group ``folder``; those named in ``kept`` have a row for each kept class."""

    def __init__(self, folder: str, plans: Mapping[str, ShardPlan], kept: frozenset[str] = frozenset()) -> None:
        self.folder = folder
        self.plans = dict(plans)
        self.kept = kept

    @classmethod
    def create(cls, folder: str, specs: Mapping[str, ArraySpec], shards: int, capacity: int) -> ZarrBackend:
        """The backend that the writer makes for ``specs``."""
        return cls(folder, {name: ShardPlan.of(spec, shards, capacity) for name, spec in specs.items()}, _kept(specs))

    @classmethod
    def load(
        cls, folder: str, specs: Mapping[str, ArraySpec], shards: int, capacity: int, metadata: Mapping[str, bytes]
    ) -> ZarrBackend:
        """The backend that ``metadata`` (the ``zarr.json`` of each array) describes, found to hold ``specs``.

        Raises CacheFormatError when it holds something else.
        """
        plans: dict[str, ShardPlan] = {}
        for name, spec in specs.items():
            where = f"{folder}/{name}/zarr.json"
            plan = ShardPlan.parse(metadata[name], where)
            found = (plan.trailing, plan.dtype, plan.shards, plan.capacity)
            wanted = (spec.shape, spec.dtype, shards, capacity * spec.most)
            if found != wanted:
                raise CacheFormatError(
                    f"{where} should describe (shape, dtype, shards, rows of a shard) = {wanted}, as the "
                    f"manifest says; found {found}"
                )
            plans[name] = plan
        return cls(folder, plans, _kept(specs))

    def static(self) -> dict[str, bytes]:
        arrays = {f"{self.folder}/{name}/zarr.json": plan.metadata() for name, plan in self.plans.items()}
        return {f"{self.folder}/zarr.json": group_metadata(), **arrays}

    def paths(self, number: int) -> dict[str, str]:
        return {name: f"{self.folder}/{name}/{plan.key(number)}" for name, plan in self.plans.items()}

    def shapes(self) -> dict[str, tuple[tuple[int, ...], str]]:
        return {name: (plan.trailing, plan.dtype) for name, plan in self.plans.items()}

    def encode(self, part: Part, arrays: Arrays) -> dict[str, bytes]:
        paths = self.paths(part.number)
        return {paths[name]: plan.encode(arrays[name]) for name, plan in self.plans.items()}

    def seals(self, files: Files, part: Part, sizes: Mapping[str, int], kept: int = 0) -> dict[str, int]:
        return {
            path: Shard(self.plans[name], files, path, sizes[path], self._rows(part, name, kept)).sealed()
            for name, path in self.paths(part.number).items()
        }

    def _rows(self, part: Part, name: str, kept: int) -> int:
        return kept if name in self.kept else part.positions

    def read(
        self, files: Files, part: PartRecord, out: Arrays | None = None, names: tuple[str, ...] | None = None
    ) -> dict[str, npt.NDArray[Any]]:
        names = tuple(self.plans) if names is None else names
        return {name: self._shard(files, part, name).read(None if out is None else out[name]) for name in names}

    def read_rows(
        self,
        files: Files,
        part: PartRecord,
        rows: npt.NDArray[np.int64],
        names: tuple[str, ...] | None = None,
        bounds: npt.NDArray[np.int64] | None = None,
    ) -> dict[str, npt.NDArray[Any]]:
        names = tuple(self.plans) if names is None else names
        # Where there are no bounds, only arrays of positions are asked for.
        kept = rows if bounds is None else expand(bounds[rows], bounds[rows + 1] - bounds[rows])
        return {n: self._shard(files, part, n).read_rows(kept if n in self.kept else rows) for n in names}

    def _shard(self, files: Files, part: PartRecord, name: str) -> Shard:
        plan = self.plans[name]
        path = f"{self.folder}/{name}/{plan.key(part.number)}"
        rows = self._rows(part, name, part.kept)
        return Shard(plan, files, path, part.files[path].size, rows, part.seals.get(path))


def _kept(specs: Mapping[str, ArraySpec]) -> frozenset[str]:
    return frozenset(name for name, spec in specs.items() if spec.axis == KEPT)
