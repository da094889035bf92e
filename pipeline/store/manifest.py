"""manifest.json: the commit record of a cache, written last. Without it a directory is no cache."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from pipeline import encodings
from pipeline.encodings import ArraySpec, Encoding
from pipeline.errors import CacheCorruptError, CacheFormatError, EncodingError, some
from pipeline.identity import digest
from pipeline.store.counts import counts_of, is_third, least_format
from pipeline.store.counts import parse as parse_counts
from pipeline.store.fields import MOST_CLASSES, Fields, shown
from pipeline.store.files import safe_name
from pipeline.store.identity_fields import check_identity
from pipeline.store.layout import Layout
from pipeline.store.parts import IS_DIGEST, FileRecord, parse_files
from pipeline.store.parts import PATH as PARTS

PATH = "manifest.json"
FORMAT = 3
"""The newest version that this release reads. A cache is written as the lowest one that can say what it is."""

STORES = ("zarr", "parquet")

MAX_BYTES = 256 * 1024 * 1024
"""No manifest is larger: vocabularies of a few hundred thousand names take some megabytes."""

MOST_DEPTH = 64
"""Deeper JSON is refused: what is read near the limit of recursion cannot be written or printed again."""


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
    def format(self) -> int:
        """The lowest format version that can say what this cache is."""
        return least_format(self.identity, ragged=self.layout.is_ragged, encoding=self.encoding, classes=self.classes)

    @property
    def lineage(self) -> tuple[Mapping[str, Any], ...]:
        """How the cache came about when no dump made it: one step after another, the oldest first."""
        return tuple(self.identity.get("lineage", ()))

    @property
    def unknown(self) -> tuple[str, ...]:
        """What the cache does not know of itself: the fields of its identity that are null, and names of classes."""
        identity = self.identity
        places = {
            "teacher": identity["teacher"].get("state"),
            "preprocessing": identity.get("preprocessing"),
            "data": identity["data"]["digest"],
            "views": None if None in (identity["views"]["transform"], identity["views"]["seed"]) else "",
            "class names": self.class_names or None,
        }
        return tuple(name for name, value in places.items() if value is None)

    @property
    def knows_content(self) -> bool:
        """Whether the index holds a digest of each example's stored bytes."""
        return self.identity["data"]["digest"] is not None

    @property
    def temperatures(self) -> tuple[float, ...]:
        """The declared temperatures; () when any will do."""
        return tuple(self.encoding.temperatures)

    @property
    def counts(self) -> dict[str, Any]:
        """Entries, positions and parts, and the examples and views of each split."""
        return counts_of(self.layout)

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON, as it stands in the file, with the digest of all the rest."""
        body = {
            "format": self.format,
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
            found = json_of(data)
        except (ValueError, RecursionError) as error:
            raise CacheCorruptError(f"{where} is not JSON: {error}. Fetch the cache again") from error
        if not isinstance(found, dict) or "format" not in found:
            raise CacheCorruptError(f"{where} is no manifest of a cache: it has no format version")
        if type(found["format"]) is not int or not 1 <= found["format"] <= FORMAT:
            raise CacheFormatError(
                f"{where} has format version {shown(found['format'])}; this release reads versions 1 to {FORMAT}. "
                "Upgrade softlabels, or dump again with this release"
            )
        stated = found.pop("digest", None)
        try:
            actual = digest(found)
        except (ValueError, RecursionError) as error:
            raise CacheCorruptError(f"{where} holds values that no manifest holds: {error}") from error
        if stated != actual:
            raise CacheCorruptError(
                f"{where} does not have its own digest: it says {shown(stated)}, its content has {actual!r}. "
                "Fetch the cache again, or dump again; a manifest is not edited by hand"
            )
        return parse(found, where, parts_bytes)


def json_of(data: bytes) -> Any:
    """The JSON in ``data``. Raises ValueError or RecursionError for a key that stands there twice, and deep nesting."""
    found = json.loads(data, object_pairs_hook=_once)
    _check_depth(found)
    return found


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


def parse(found: dict[str, Any], where: str, parts_bytes: int | None) -> Manifest:
    """The manifest of these fields, the digest apart. See ``Manifest.from_json``."""
    reader = Fields(where)
    fail, get = reader.fail, reader.get
    wanted = set(Manifest.__dataclass_fields__) - {"layout"} | {"counts", "temperatures", "format"}
    if found.keys() != wanted:
        odd = some([shown(name) for name in sorted(found.keys() ^ wanted)], 20)
        raise CacheFormatError(f"{where} lacks, or has and should not, {odd}. Read it with the release that wrote it")
    identity = get(found, "identity", dict)
    store = get(identity, "store", str)
    if store not in STORES:
        raise CacheFormatError(f"{where} has its labels in {shown(store)}; this release reads {' and '.join(STORES)}")
    if not IS_DIGEST.fullmatch(get(identity, "digest", str)):  # scratch folders are named after it
        raise fail(f"the digest of the identity should be a sha256; found {shown(identity['digest'])}")
    classes = reader.count(found, "classes", 1, MOST_CLASSES)
    description = get(found, "encoding", dict)
    try:
        encoding = encodings.parse(description)
        encoding.specs(classes)
    except (EncodingError, OverflowError) as error:
        raise CacheFormatError(f"{where}: {str(error)[:1000]}") from error
    if found["temperatures"] != list(encoding.temperatures) or identity.get("encoding", description) != description:
        raise fail("temperatures and identity should be those of the encoding")
    files = parse_files(get(found, "files", dict), where)
    stated = files[PARTS].size if PARTS in files else 0
    layout = parse_counts(reader, found, stated if parts_bytes is None else parts_bytes)
    check_identity(reader, identity, found["format"], third=is_third(layout.is_ragged, encoding, classes))
    names = get(found, "class_names", list)
    if len(names) not in (0, classes) or not all(isinstance(n, str) for n in names):
        raise fail(f"there should be {classes} class names or none; found {len(names)}")
    bound = found["bound"]
    if type(bound) not in (int, float) or not 0 <= bound <= sys.float_info.max:
        raise fail(f"bound should be a number of at least 0; found {shown(bound)}")
    fidelity = get(found, "fidelity", dict)
    if not isinstance(fidelity.get("kl", {}), dict):
        raise fail(f"kl should be an object by temperature; found {shown(fidelity['kl'])}")
    replay = found["replay"]
    if replay is not None and (not isinstance(replay, str) or replay not in files):
        raise fail(f"the replayed views {shown(replay)} are not among the files")
    return Manifest(
        identity=identity,
        layout=layout,
        encoding=encoding,
        bound=float(bound),
        classes=classes,
        class_names=tuple(names),
        features=_features(reader, found, identity),
        fidelity=fidelity,
        replay=replay,
        files=files,
    )


def _features(reader: Fields, found: dict[str, Any], identity: Mapping[str, Any]) -> dict[str, FeatureSpec]:
    features = {name: _feature(reader, name, f) for name, f in reader.get(found, "features", dict).items()}
    made = identity.get("features", features)
    if not isinstance(made, dict) or not features.keys() <= made.keys():
        raise reader.fail(f"the identity should say what each feature is; found {shown(made)}")
    return features


def _feature(reader: Fields, name: str, found: Any) -> FeatureSpec:
    if not isinstance(found, dict) or not safe_name(name):
        raise reader.fail(f"feature {shown(name)} should have a plain name, a shape and a dtype; found {shown(found)}")
    shape = reader.get(found, "shape", list)
    if len(shape) > 16 or not all(type(n) is int and 1 <= n <= MOST_CLASSES for n in shape):
        raise reader.fail(f"feature {name} has the shape {shown(shape)}")
    if found.get("dtype") != "float16":
        raise CacheFormatError(f"{reader.where}: feature {name} should be float16; found {shown(found.get('dtype'))}")
    return FeatureSpec(tuple(shape))
