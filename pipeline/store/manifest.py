"""manifest.json: the commit record of a cache, written last. Without it a directory is no cache."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

from pipeline import encodings
from pipeline.encodings import ArraySpec, Encoding
from pipeline.errors import CacheCorruptError, CacheFormatError, CacheIncompleteError, EncodingError, some
from pipeline.identity import SPLITS, digest
from pipeline.store.files import safe_name
from pipeline.store.layout import Layout
from pipeline.store.parts import LEAST_BYTES, FileRecord, parse_files
from pipeline.store.parts import PATH as PARTS

PATH = "manifest.json"
FORMAT = 1
STORES = ("zarr", "parquet")

MAX_BYTES = 256 * 1024 * 1024
"""No manifest is larger: vocabularies of a few hundred thousand names take some megabytes."""

MOST_CLASSES, MOST_ENTRIES, MOST_PARTS = 2**31 - 1, 2**48, 10_000_000
"""Beyond these a manifest is taken for damaged, before memory is asked for."""

MOST_DEPTH = 64
"""Deeper JSON is refused: what is read near the limit of recursion cannot be written or printed again."""

_FREE_PARTS = 2048
"""So many parts take no memory worth a check."""

T = TypeVar("T")


@dataclass(frozen=True)
class FeatureSpec:
    """A named intermediate activation: ``shape`` after the position axis, ``dtype`` float16."""

    shape: tuple[int, ...]
    dtype: str = "float16"

    def __post_init__(self) -> None:
        if self.dtype != "float16":
            raise ValueError(f"features are kept as float16; found {self.dtype!r}")

    @property
    def array(self) -> ArraySpec:
        """How the feature is stored."""
        return ArraySpec(tuple(self.shape), self.dtype, "none")


@dataclass(frozen=True)
class Manifest:
    """What a cache says of itself.

    - ``identity``: the one combination of teacher, data, views and encoding that it belongs to, with its digest;
    - ``layout``: splits, views and parts; ``bound``: the declared bound of the encoding over all rows;
    - ``class_names``: C names in the order of the logits, or none; ``fidelity``: what was measured at dump time;
    - ``replay``: the path of a few views as they were seen, or None;
    - ``files``: every file that belongs to no part.
    """

    identity: Mapping[str, Any]
    layout: Layout
    encoding: Encoding
    bound: float
    classes: int
    class_names: tuple[str, ...]
    features: Mapping[str, FeatureSpec] = field(default_factory=dict)
    fidelity: Mapping[str, Any] = field(default_factory=dict)
    replay: str | None = None
    files: Mapping[str, FileRecord] = field(default_factory=dict)

    @property
    def store(self) -> str:
        """The backend of the label arrays: zarr or parquet."""
        return str(self.identity["store"])

    @property
    def temperatures(self) -> tuple[float, ...]:
        """The declared temperatures; () when any will do."""
        return tuple(self.encoding.temperatures)

    @property
    def counts(self) -> dict[str, Any]:
        """Entries, positions and parts, and the examples and views of each split."""
        splits = {s: {"examples": e, "views": v} for s, (e, v) in self.layout.splits().items()}
        return {
            "entries": self.layout.entries,
            "positions": self.layout.positions,
            "parts": len(self.layout.parts),
            "splits": splits,
        }

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON, as it stands in the file, with the digest of all the rest."""
        body = {
            "format": FORMAT,
            "identity": dict(self.identity),
            "counts": self.counts,
            "encoding": self.encoding.describe(),
            "bound": self.bound,
            "temperatures": list(self.temperatures),
            "classes": self.classes,
            "class_names": list(self.class_names),
            "features": {n: {"shape": list(f.shape), "dtype": f.dtype} for n, f in self.features.items()},
            "fidelity": dict(self.fidelity),
            "replay": self.replay,
            "files": {path: asdict(record) for path, record in self.files.items()},
        }
        return {**body, "digest": digest(body)}

    def to_json(self) -> bytes:
        """The bytes of the file: one spelling for one content."""
        text = json.dumps(self.as_dict(), sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False)
        return f"{text}\n".encode()

    @classmethod
    def from_json(cls, data: bytes, where: str, parts_bytes: int | None = None) -> Manifest:
        """The manifest in ``data``; ``where`` is its name, for messages.

        ``parts_bytes`` is the size of ``parts.parquet`` as it was found (0 when it is missing): no more parts are
        believed than it could hold. None takes the manifest's word for it.

        Raises CacheFormatError for another format version or an encoding that this release does not know,
        CacheCorruptError when the digest differs or a field is missing, impossible or contradicted by another.
        """
        try:
            found = json.loads(data, object_pairs_hook=_once)
            _check_depth(found)
        except (ValueError, RecursionError) as error:
            raise CacheCorruptError(f"{where} is not JSON: {error}. Fetch the cache again") from error
        if not isinstance(found, dict) or "format" not in found:
            raise CacheCorruptError(f"{where} is no manifest of a cache: it has no format version")
        if found["format"] != FORMAT or type(found["format"]) is not int:
            raise CacheFormatError(
                f"{where} has format version {_shown(found['format'])}; this release reads version {FORMAT}. "
                "Upgrade softlabels, or dump again with this release"
            )
        stated = found.pop("digest", None)
        try:
            actual = digest(found)
        except (ValueError, RecursionError) as error:
            raise CacheCorruptError(f"{where} holds values that no manifest holds: {error}") from error
        if stated != actual:
            raise CacheCorruptError(
                f"{where} does not have its own digest: it says {_shown(stated)}, its content has {actual!r}. "
                "Fetch the cache again, or dump again; a manifest is not edited by hand"
            )
        return _parse(found, where, parts_bytes)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON. A key that stands there twice means one thing to us and another to the next reader."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("an object in it has the same key twice")
    return found


def _check_depth(found: Any) -> None:
    level = [found]
    for _ in range(MOST_DEPTH):
        held = [item for item in level if isinstance(item, (dict, list))]
        level = [inner for item in held for inner in (item.values() if isinstance(item, dict) else item)]
        if not level:
            return
    raise ValueError(f"it is nested more than {MOST_DEPTH} deep")


def _shown(value: Any) -> str:
    """A value for a message, however long it is."""
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


class _Reader:
    """Takes values out of a manifest, and says what is wrong with those that cannot be."""

    def __init__(self, where: str) -> None:
        self.where = where

    def fail(self, what: str) -> CacheCorruptError:
        """The error for a manifest that cannot be right."""
        return CacheCorruptError(f"{self.where} contradicts itself: {what}. Fetch the cache again, or dump again")

    def get(self, place: Mapping[str, Any], name: str, wanted: type[T]) -> T:
        """``place[name]``, found to be a ``wanted``."""
        value = place.get(name)
        if not isinstance(value, wanted) or isinstance(value, bool):
            raise self.fail(f"{name} should be of type {wanted.__name__}; found {_shown(value)}")
        return value

    def count(self, place: Mapping[str, Any], name: str, least: int, most: int) -> int:
        """A whole number of a sensible size."""
        value = self.get(place, name, int)
        if not least <= value <= most:
            raise self.fail(f"{name} should lie between {least:,} and {most:,}; found {_shown(value)}")
        return value


def _parse(found: dict[str, Any], where: str, parts_bytes: int | None) -> Manifest:
    reader = _Reader(where)
    fail, get = reader.fail, reader.get
    wanted = set(Manifest.__dataclass_fields__) - {"layout"} | {"counts", "temperatures", "format"}
    if found.keys() != wanted:
        odd = some([_shown(name) for name in sorted(found.keys() ^ wanted)], 20)
        raise CacheFormatError(f"{where} lacks, or has and should not, {odd}. Read it with the release that wrote it")
    identity = get(found, "identity", dict)
    store = get(identity, "store", str)
    if store not in STORES:
        raise CacheFormatError(f"{where} has its labels in {_shown(store)}; this release reads {' and '.join(STORES)}")
    if len(get(identity, "digest", str)) != 64:
        raise fail(f"the digest of the identity should be a sha256; found {_shown(identity['digest'])}")
    _check_identity(reader, identity)
    classes = reader.count(found, "classes", 1, MOST_CLASSES)
    description = get(found, "encoding", dict)
    try:
        encoding = encodings.parse(description)
        encoding.specs(classes)
    except (EncodingError, OverflowError) as error:
        raise CacheFormatError(f"{where}: {str(error)[:1000]}") from error
    if found["temperatures"] != list(encoding.temperatures) or identity.get("encoding", description) != description:
        raise fail("temperatures and identity should be those of the encoding")
    names = get(found, "class_names", list)
    if len(names) not in (0, classes) or not all(isinstance(n, str) for n in names):
        raise fail(f"there should be {classes} class names or none; found {len(names)}")
    bound = found["bound"]
    if type(bound) not in (int, float) or not 0 <= bound <= sys.float_info.max:
        raise fail(f"bound should be a number of at least 0; found {_shown(bound)}")
    files = parse_files(get(found, "files", dict), where)
    fidelity = get(found, "fidelity", dict)
    if not isinstance(fidelity.get("kl", {}), dict):
        raise fail(f"kl should be an object by temperature; found {_shown(fidelity['kl'])}")
    replay = found["replay"]
    if replay is not None and (not isinstance(replay, str) or replay not in files):
        raise fail(f"the replayed views {_shown(replay)} are not among the files")
    return Manifest(
        identity=identity,
        layout=_layout(reader, found, files, parts_bytes),
        encoding=encoding,
        bound=float(bound),
        classes=classes,
        class_names=tuple(names),
        features=_features(reader, found, identity),
        fidelity=fidelity,
        replay=replay,
        files=files,
    )


def _check_identity(reader: _Reader, identity: Mapping[str, Any]) -> None:
    """What everybody who uses a cache asks of its identity is there."""
    teacher, data, views = (reader.get(identity, name, dict) for name in ("teacher", "data", "views"))
    texts = ((identity, "preprocessing"), (teacher, "reference"), (teacher, "state"), (data, "digest"))
    for place, name in (*texts, (views, "transform")):
        reader.get(place, name, str)
    if not isinstance(teacher.get("args", {}), dict):
        raise reader.fail(f"the teacher's args should be an object; found {_shown(teacher['args'])}")
    reader.count(data, "examples", 0, MOST_ENTRIES)
    reader.count(views, "count", 1, MOST_PARTS)
    reader.get(views, "seed", int)


def _features(reader: _Reader, found: dict[str, Any], identity: Mapping[str, Any]) -> dict[str, FeatureSpec]:
    features = {name: _feature(reader, name, f) for name, f in reader.get(found, "features", dict).items()}
    made = identity.get("features", features)
    if not isinstance(made, dict) or not features.keys() <= made.keys():
        raise reader.fail(f"the identity should say what each feature is; found {_shown(made)}")
    return features


def _feature(reader: _Reader, name: str, found: Any) -> FeatureSpec:
    if not isinstance(found, dict) or not safe_name(name):
        raise reader.fail(
            f"feature {_shown(name)} should have a plain name, a shape and a dtype; found {_shown(found)}"
        )
    shape = reader.get(found, "shape", list)
    if len(shape) > 16 or not all(type(n) is int and 1 <= n <= MOST_CLASSES for n in shape):
        raise reader.fail(f"feature {name} has the shape {_shown(shape)}")
    if found.get("dtype") != "float16":
        raise CacheFormatError(f"{reader.where}: feature {name} should be float16; found {_shown(found.get('dtype'))}")
    return FeatureSpec(tuple(shape))


def _layout(reader: _Reader, found: dict[str, Any], files: Mapping[str, FileRecord], parts_bytes: int | None) -> Layout:
    """The layout that the counts describe, made only once it is known to be of a sensible size."""
    counts = reader.get(found, "counts", dict)
    entries = reader.count(counts, "entries", 0, MOST_ENTRIES)
    positions = reader.count(counts, "positions", 0, MOST_ENTRIES)
    parts = reader.count(counts, "parts", 0, MOST_PARTS)
    part_size = reader.count(found["identity"], "part_size", 1, MOST_ENTRIES)
    splits: dict[str, tuple[int, int]] = {}
    for split, numbers in reader.get(counts, "splits", dict).items():
        if split not in SPLITS or not isinstance(numbers, dict):
            raise reader.fail(f"splits are {', '.join(SPLITS)}; found {_shown(split)}")
        examples = reader.count(numbers, "examples", 1, MOST_ENTRIES)
        splits[split] = (examples, reader.count(numbers, "views", 1, MOST_PARTS))
    length = positions // entries if entries else 1
    expected = (
        sum(examples * views for examples, views in splits.values()),
        entries * length,
        sum(-(-examples // part_size) * views for examples, views in splits.values()),
    )
    if (entries, positions, parts) != expected or length < 1:
        raise reader.fail(
            f"entries, positions and parts are {(entries, positions, parts)}, its splits come to {expected}"
        )
    if parts > _FREE_PARTS:
        stated = files[PARTS].size if PARTS in files else 0
        held = stated if parts_bytes is None else parts_bytes
        if not held:
            raise CacheIncompleteError(
                f"{reader.where} counts {parts:,} parts and {PARTS}, which says where they are, is missing. Fetch the "
                "cache again, or dump again to restore it"
            )
        if parts * LEAST_BYTES > held:
            raise reader.fail(f"{parts:,} parts cannot be listed in the {held:,} bytes of {PARTS}")
    return Layout.of(splits, part_size, length)
