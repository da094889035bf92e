"""``softlabels cache transcode``: the same labels in another encoding, another store or parts of another size."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import encodings
from pipeline.caches.building import BuildReport, Contents, build, derived, row_bytes
from pipeline.caches.origins import check_ids, contents_of, entry_lengths, everything, gather, gather_index, top_class
from pipeline.caches.plan import Plan
from pipeline.caches.recoding import carried_bound, check_recoding, lost, recode
from pipeline.caches.subset import chosen_features, opened
from pipeline.configuration import REQUIRED, Config, option
from pipeline.encodings import Arrays, Encoding, Sampled, TopK
from pipeline.errors import ConfigError, EncodingError
from pipeline.fidelity import Fidelity
from pipeline.identity import short
from pipeline.progress import Progress
from pipeline.store import Cache, Part, part_size_for
from pipeline.store.spans import bounds_of

SAMPLED_ENTRIES_PER_PART = 64
BLOCK_BYTES = 32 << 20
"""So many bytes of soft labels are decoded at a time."""

SAME = "same"


@dataclass(frozen=True, kw_only=True)
class TranscodeConfig(Config):
    """Options of ``softlabels cache transcode``."""

    cache: str = option(REQUIRED, "directory or URL of the cache")
    out: Path = option(REQUIRED, "directory of the new cache")
    encoding: str = option(SAME, "how a distribution is kept", choices=(SAME, *encodings.NAMES))
    dtype: str = option(SAME, "of the kept logits", choices=(SAME, "float32", "float16", "int8", "int4"))
    k: int = option(0, "classes that topk keeps; 0: as many as before, or 10")
    draws: int = option(0, "draws of each position for sampled; 0: 50")
    temperature: tuple[float, ...] = option(
        (), "temperatures at which topk keeps the dropped mass [default: 1 and 4], or the one of sampled [default: 1]"
    )
    store: str = option(SAME, "file format of the labels", choices=(SAME, "zarr", "parquet"))
    features: tuple[str, ...] = option((), "features to keep  [default: all]")
    labels_only: bool = option(False, "keep no features")
    part_size: int = option(0, "entries per part; 0 keeps it, or chooses about 32 MiB for another encoding")
    overwrite: bool = option(False, "replace a cache of another identity at --out")

    def problems(self) -> Iterator[str]:
        yield from self.below(k=0, draws=0, part_size=0)
        if self.features and self.labels_only:
            yield "--labels-only keeps no features, and --features names some: give one of the two"
        if self.temperature and min(self.temperature) <= 0:
            yield f"--temperature should be above 0; found {min(self.temperature):g}"


def run(config: TranscodeConfig, progress: Progress | None = None) -> BuildReport:
    """Write the cache again as the options say.

    Raises ConfigError for an encoding that cannot be had from what is there, EncodingError naming the entry that it
    cannot hold, and the errors of ``build``.
    """
    source = opened(config.cache)
    check_ids(source)
    encoding = _encoding(config, source)
    check_recoding(source.encoding, encoding, source.classes, source.address)
    features = chosen_features(source, config.features, config.labels_only)
    store = source.manifest.store if config.store == SAME else config.store
    specs = {name: source.manifest.features[name] for name in features}
    old = source.manifest.layout
    same = encoding == source.encoding and len(features) == len(source.feature_names)
    size = config.part_size or (
        old.part_size
        if same
        else part_size_for(row_bytes(encoding, source.classes, specs), old.groups, old.mean_length)
    )
    origins = everything(source)
    changes = {
        "encoding": encoding.describe(),
        "store": store,
        "part_size": size,
        "features": {name: source.identity.get("features", {}).get(name, "unknown") for name in features},
    }
    options = {**changes, "features": list(features)}
    plan = Plan(
        identity=derived([source], "transcode", options, changes),
        layout=origins.layout(size),
        classes=source.classes,
        class_names=source.class_names,
        features=specs,
        replay=source.replay_bytes(),
        measured_against=_against(source) if encoding != source.encoding else None,
    )

    def contents(part: Part) -> Contents:
        if encoding == source.encoding:
            return contents_of(origins, part, encoding, source.classes, features=features)
        return _recoded(source, part, encoding, features)

    return build(
        plan,
        config.out,
        contents,
        verb="transcode",
        sources=[source.address],
        overwrite=config.overwrite,
        progress=progress,
        unknown=source.manifest.unknown,
    )


def _against(source: Cache) -> str | None:
    """What a second encoding is measured against: the teacher where the first one lost nothing, else the first one."""
    noisy = any(step["verb"] == "noise" for step in source.manifest.lineage)
    if source.manifest.bound == 0 and not source.encoding.temperatures and not noisy:
        return None
    return f"the labels of cache {short(source.digest)}, not the teacher"


def _encoding(config: TranscodeConfig, source: Cache) -> Encoding:
    """The encoding that the options name; what they leave out is as it was."""
    was = source.encoding
    described: dict[str, Any] = was.describe()
    name = described["name"] if config.encoding == SAME else config.encoding
    kept = isinstance(was, TopK)
    given = config.k or config.temperature or config.draws or config.dtype != SAME
    if isinstance(was, Sampled) and name == was.name and not given:
        return was
    if config.draws and name != Sampled.name:
        raise ConfigError("--draws is of --encoding sampled")
    if name == Sampled.name:
        if config.k or config.dtype != SAME or len(config.temperature) > 1:
            raise ConfigError("--encoding sampled has no --k and no --dtype, and is at one --temperature")
        try:
            return Sampled(config.draws or 50, temperature=config.temperature[0] if config.temperature else 1.0)
        except EncodingError as error:
            raise ConfigError(str(error)) from None
    if name != TopK.name and (config.k or config.temperature):
        raise ConfigError("--k and --temperature are of --encoding topk; dense keeps all classes, for any temperature")
    dtype = described.get("dtype", "float32") if config.dtype == SAME else config.dtype
    if name == TopK.name and not kept and config.dtype == SAME and dtype == "int8":
        dtype = "float16"
    k = config.k or (was.k if isinstance(was, TopK) else min(10, source.classes))
    temperatures = config.temperature or (tuple(was.temperatures) if kept else (1.0, 4.0))
    try:
        return encodings.make(name, dtype=dtype, k=k, temperatures=temperatures)
    except EncodingError as error:
        raise ConfigError(str(error)) from None


def _recoded(source: Cache, part: Part, encoding: Encoding, features: tuple[str, ...]) -> Contents:
    """A part in another encoding, with what the second encoding costs measured on some of its rows.

    Block by block: a part of the new cache can be many of the old one, which are never held decoded.
    """
    origins = everything(source)
    index = gather_index(origins, part)
    bounds = bounds_of(entry_lengths(origins, part))
    compared = Fidelity(encoding, source.classes)
    stride = max(1, part.positions // SAMPLED_ENTRIES_PER_PART)
    made: list[tuple[Arrays, Arrays]] = []
    own = 0.0
    step = max(1, int(BLOCK_BYTES // (4 * source.classes * source.manifest.layout.mean_length)))
    for first in range(0, part.entries, step):
        entries = min(step, part.entries - first)
        seen, end = int(bounds[first]), int(bounds[first + entries])
        block = replace(part, first=part.first + first, entries=entries, positions=end - seen)
        old, kept = gather(origins, block, features)
        soft = source.decode(old)
        ids = index.example_ids[first : first + entries]
        lengths = np.diff(bounds[first : first + entries + 1]).tolist()
        keys = encodings.keys_of(ids, part.view, lengths) if encoding.draws else None
        try:
            arrays = recode(soft, encoding, source.classes, keys)
        except EncodingError as error:
            entry = int(np.searchsorted(bounds, seen + (error.row or 0), side="right")) - 1
            where = f"example {index.example_ids[entry]}, view {part.view}"
            raise EncodingError(f"{where}: {error}", error.row) from None
        own = max(own, lost(soft, encoding, arrays, source.classes))
        sample = slice(-seen % stride, None, stride)
        compared.compare(soft.select(sample), encoding.decode(arrays, source.classes).select(sample))
        if end - seen == entries:
            compared.count(top_class(soft), index.labels[first : first + entries])
        made.append((arrays, kept))
    statistics = {
        **compared.totals(),
        "bound": carried_bound(source.manifest.bound, source.encoding, encoding, own),
    }
    arrays = {name: np.concatenate([each[name] for each, _ in made]) for name in made[0][0]}
    return Contents(arrays, index, {n: np.concatenate([kept[n] for _, kept in made]) for n in features}, statistics)
