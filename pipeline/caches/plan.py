"""What is known of a cache before its first part: enough to write parts in any process, and to finish it in another.

A dump that several processes share leaves it in the scratch directory, so that ``softlabels cache finalize`` needs
neither the teacher nor the data.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import encodings
from pipeline.encodings import Encoding
from pipeline.errors import CacheCorruptError, CacheError, CacheIncompleteError, ConfigError
from pipeline.fidelity import possible, summarise
from pipeline.identity import canonical_json, digest
from pipeline.store import CacheWriter, FeatureSpec, Layout, Manifest
from pipeline.store.counts import RAGGED, least_format
from pipeline.store.files import LocalFiles
from pipeline.store.manifest import MAX_BYTES, json_of, parse
from pipeline.store.parts import LEAST_BYTES
from pipeline.workspace import write_atomic

PATH = "plan.json"
REPLAY = "plan-views.parquet"

MOST_PARTS = 500_000
"""Of a plan that is left for other processes: more would take them memory that nothing on disk speaks for."""


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
        for record in writer.records:
            if not possible(record.statistics, record.positions):
                raise CacheCorruptError(
                    f"{writer.folder}: part {record.number} has statistics that cannot be: {record.statistics}. "
                    "Dump it again"
                )
        found = summarise((record.split, record.statistics) for record in writer.records)
        return found if self.measured_against is None else {**found, "measured_against": self.measured_against}

    def save(self, folder: Path) -> None:
        """Leave the plan in a scratch directory. Every process that shares a dump writes the same.

        Raises ConfigError for more than MOST_PARTS parts.
        """
        if len(self.layout.parts) > MOST_PARTS:
            raise ConfigError(
                f"several processes share at most {MOST_PARTS:,} parts; here are {len(self.layout.parts):,}. Choose a "
                "larger --part-size"
            )
        body = {
            "identity": dict(self.identity),
            "classes": self.classes,
            "class_names": list(self.class_names),
            "splits": {split: list(numbers) for split, numbers in self.layout.splits().items()},
            **({"length": self.layout.length} if self.layout.counts is None else {RAGGED: list(self.layout.counts)}),
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
            files = LocalFiles(folder)
            body = json_of(files.read(PATH, limit=MAX_BYTES))
            stated = body.pop("digest")
            if stated != digest(body):
                raise ValueError("it does not have its own digest")
            planned = _planned(body, str(folder / PATH))
            return cls(
                identity=planned.identity,
                layout=planned.layout,
                classes=planned.classes,
                class_names=planned.class_names,
                features=planned.features,
                replay=files.read(REPLAY, limit=MAX_BYTES) if body["replay"] else None,
            )
        except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError, RecursionError, CacheError) as error:
            raise CacheIncompleteError(
                f"{folder / PATH} cannot be read ({error}). Run the dump again with the same options: it goes on from "
                "the parts that are there"
            ) from error


def _planned(body: dict[str, Any], where: str) -> Manifest:
    """What a plan says, held to all that a manifest may say."""
    identity, part_size = body["identity"], body["identity"]["part_size"]
    splits = {split: (examples, views) for split, (examples, views) in body["splits"].items()}
    if not all(type(n) is int and n >= 1 for n in (part_size, *(n for numbers in splits.values() for n in numbers))):
        raise ValueError(f"it counts splits as {str(splits)[:200]}, in parts of {str(part_size)[:200]}")
    parts = sum(-(-examples // part_size) * views for examples, views in splits.values())
    if parts > MOST_PARTS:
        raise ValueError(f"it counts {parts:,} parts, and {MOST_PARTS:,} are the most that is sensible")
    entries = sum(examples * views for examples, views in splits.values())
    each = body.get(RAGGED)
    counts = {
        "entries": entries,
        "positions": entries * body["length"] if each is None else sum(each),
        "parts": parts,
        "splits": {split: {"examples": examples, "views": views} for split, (examples, views) in splits.items()},
        **({} if each is None else {RAGGED: each}),
    }
    encoding = encodings.parse(identity["encoding"])
    fields = {
        "format": least_format(identity, ragged=each is not None, encoding=encoding, classes=body["classes"]),
        "identity": identity,
        "counts": counts,
        "encoding": identity["encoding"],
        "bound": 0,
        "temperatures": list(encoding.temperatures),
        "classes": body["classes"],
        "class_names": body["class_names"],
        "features": {name: {"shape": shape, "dtype": "float16"} for name, shape in body["features"].items()},
        "fidelity": {},
        "replay": None,
        "files": {},
    }
    return parse(fields, where, MOST_PARTS * LEAST_BYTES)
