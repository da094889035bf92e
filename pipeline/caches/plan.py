"""What is known of a cache before its first part: enough to write parts in any process, and to finish it in another.

A dump that several processes share leaves it in the scratch directory, so that ``softlabels cache finalize`` needs
neither the teacher nor the data.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import encodings
from pipeline.encodings import Encoding
from pipeline.errors import CacheIncompleteError, SoftlabelsError
from pipeline.fidelity import summarise
from pipeline.identity import canonical_json, digest
from pipeline.store import CacheWriter, FeatureSpec, Layout, Manifest
from pipeline.workspace import write_atomic

PATH = "plan.json"
REPLAY = "plan-views.parquet"


@dataclass(frozen=True)
class Plan:
    """Identity, layout and encoding of a cache.

    ``class_names``: C names, () when unknown; ``replay``: its views.parquet, a few views as they were seen;
    ``measured_against``: what its fidelity was measured against, when that was not the teacher.
    """

    identity: Mapping[str, Any]
    layout: Layout
    classes: int
    class_names: tuple[str, ...]
    features: Mapping[str, FeatureSpec]
    replay: bytes | None
    measured_against: str | None = None

    @property
    def digest(self) -> str:
        """The cache's identity."""
        return str(self.identity["digest"])

    @property
    def encoding(self) -> Encoding:
        """How distributions are kept."""
        return encodings.parse(self.identity["encoding"])

    def writer(self, folder: Path) -> CacheWriter:
        """A writer of this cache's parts into its scratch directory."""
        return CacheWriter(
            folder,
            self.layout,
            self.encoding,
            classes=self.classes,
            store=str(self.identity["store"]),
            features=self.features,
            identity=self.digest,
        )

    def finalise(self, writer: CacheWriter) -> Manifest:
        """Turn finished parts into a cache. Raises CacheIncompleteError when some are missing."""
        return writer.finalise(
            {
                "identity": self.identity,
                "class_names": self.class_names,
                "fidelity": self._fidelity(writer),
                "replay": self.replay,
            }
        )

    def _fidelity(self, writer: CacheWriter) -> dict[str, Any]:
        found = summarise((record.split, record.statistics) for record in writer.records)
        return found if self.measured_against is None else {**found, "measured_against": self.measured_against}

    def save(self, folder: Path) -> None:
        """Leave the plan in a scratch directory. Every process that shares a dump writes the same."""
        body = {
            "identity": dict(self.identity),
            "classes": self.classes,
            "class_names": list(self.class_names),
            "splits": {split: list(numbers) for split, numbers in self.layout.splits().items()},
            "length": self.layout.length,
            "features": {name: list(spec.shape) for name, spec in self.features.items()},
            "replay": self.replay is not None,
        }
        if self.replay is not None:
            write_atomic(folder / REPLAY, self.replay)
        write_atomic(folder / PATH, canonical_json({**body, "digest": digest(body)}))

    @classmethod
    def load(cls, folder: Path) -> Plan:
        """The plan in a scratch directory. Raises CacheIncompleteError when there is none that can be read."""
        try:
            body = json.loads((folder / PATH).read_bytes())
            stated = body.pop("digest")
            if stated != digest(body):
                raise ValueError("it does not have its own digest")
            splits = {split: (int(e), int(v)) for split, (e, v) in body["splits"].items()}
            return cls(
                identity=body["identity"],
                layout=Layout.of(splits, int(body["identity"]["part_size"]), int(body["length"])),
                classes=int(body["classes"]),
                class_names=tuple(body["class_names"]),
                features={name: FeatureSpec(tuple(shape)) for name, shape in body["features"].items()},
                replay=(folder / REPLAY).read_bytes() if body["replay"] else None,
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError, SoftlabelsError) as error:
            raise CacheIncompleteError(
                f"{folder / PATH} cannot be read ({error}). Run the dump again with the same options: it goes on from "
                "the parts that are there"
            ) from error
