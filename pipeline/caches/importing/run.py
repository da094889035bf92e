"""Import: published labels into a cache that says what is known of them, and what is not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import encodings
from pipeline.caches.building import BuildReport, Contents, build, identify, row_bytes
from pipeline.caches.importing import kept
from pipeline.caches.importing.config import ImportConfig, K
from pipeline.caches.importing.contents import contents_of
from pipeline.caches.importing.expected import Expected
from pipeline.caches.importing.opening import open_source
from pipeline.caches.importing.source import Facts
from pipeline.caches.importing.vocabulary import Vocabulary
from pipeline.caches.plan import Plan
from pipeline.encodings import Encoding, TopK
from pipeline.errors import ConfigError
from pipeline.identity import SPLITS
from pipeline.progress import Progress, Silent
from pipeline.store import Layout, Part, part_size_for

VERB = "import"
PLAIN_VIEWS = "none"
"""The description of views that are the plain images."""

DECLARED = ("teacher", "preprocessing", "plain", "made_at", "kind", "ids", "id_template", "split", "views")
"""Options that the lineage records: what the importer said of the source."""


@dataclass(frozen=True)
class Known:
    """What other files say of token sequences: ``pipeline.importing`` opens them.

    ``expected``: the packing contract of --data; ``vocabulary``: of --tokenizer, or the contract's, where it was read;
    ``class_names``: the V tokens of --tokenizer; ``digest``: of the tokenizer.
    """

    expected: Expected | None = None
    vocabulary: Vocabulary | None = None
    class_names: tuple[str, ...] = ()
    digest: str | None = None


def run(config: ImportConfig, progress: Progress | None = None, known: Known | None = None) -> BuildReport:
    """Import, or resume, or find the same cache finished.

    Raises ConfigError for options that do not fit the source, DataError for a source that is not what it should be,
    EncodingError naming the example that could not be kept, and as ``building.build`` does.
    """
    progress = progress or Silent()
    if known is None:
        if named := config.given("data", "tokens_out", "tokenizer"):
            raise ConfigError(f"--{named[0].replace('_', '-')}: call pipeline.importing.run, which opens it")
        known = Known()
    names = _class_names(config.class_names)
    said = config.classes or len(names) or None
    if names and said != len(names):
        raise ConfigError(f"--class-names names {len(names):,} classes; --classes says {said:,}")
    form, source = open_source(config, said, known.expected, known.vocabulary)
    try:
        files = source.scan(progress)
        facts = source.facts()
        names = names or facts.class_names or known.class_names
        classes = _classes(form, said, names, facts)
        encoding = _encoding(config, facts)
        specs = {name: spec for name, (_, spec) in facts.features.items()}
        layout = _layout(config, facts, row_bytes(encoding, classes, specs))
        unknown = _unknown(config, facts, names)
        step = {
            "verb": VERB,
            "format": form,
            "files": files,
            "options": _said(config, names, known),
            "source": dict(facts.notes),
            "unknown": list(unknown),
        }
        identity = _identity(config, facts, encoding, layout, names, step)
        plan = Plan(identity, layout, classes, names, specs, None)

        def contents(part: Part) -> Contents:
            return contents_of(config, source, encoding, classes, part, facts)

        return build(
            plan,
            config.out,
            contents,
            verb=VERB,
            sources=[config.source],
            overwrite=config.overwrite,
            progress=progress,
            unknown=unknown,
        )
    finally:
        source.close()


def _class_names(path: Path | None) -> tuple[str, ...]:
    if path is None:
        return ()
    try:
        names = tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines())
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--class-names {path} cannot be read: {error}") from error
    if not names or "" in names:
        raise ConfigError(f"--class-names {path} should hold a name a line, none of them empty")
    return names


def _classes(form: str, said: int | None, names: tuple[str, ...], facts: Facts) -> int:
    counts = {"--classes or --class-names": said, "the names of its classes": len(names) or None}
    if facts.classes is None and said is None and not names:
        raise ConfigError(f"{form} files do not say how many classes there are: give --classes, or --class-names")
    count = facts.classes or said or len(names)
    for what, number in counts.items():
        if number not in (None, count):
            raise ConfigError(f"the source has {count:,} classes; {what} come to {number:,}")
    return count


def _layout(config: ImportConfig, facts: Facts, position_bytes: int) -> Layout:
    groups = Layout.of(facts.splits, 1).groups
    if facts.lengths is None:
        return Layout(groups, config.part_size or part_size_for(position_bytes, groups))
    mean = float(np.concatenate(list(facts.lengths.values())).mean())
    part_size = config.part_size or part_size_for(position_bytes, groups, mean)
    return Layout.ragged(
        {split: (lengths, facts.splits[split][1]) for split, lengths in facts.lengths.items()}, part_size
    )


def _encoding(config: ImportConfig, facts: Facts) -> Encoding:
    """How the labels are kept. Raises ConfigError where the source lacks what the options ask for."""
    if facts.kept is None:
        name = config.encoding or "dense"
        if name == "dense" and config.dtype == "int4":
            raise ConfigError(
                "--dtype int4 needs --encoding topk: this source has all classes, and dense is the default"
            )
        return encodings.make(name, dtype=config.dtype, k=config.k or K, temperatures=config.temperature)
    problems = [
        f"--{name} is of a source that has all classes: this one has the {facts.kept} largest, at one temperature"
        for name in ("k", "temperature")
        if getattr(config, name) not in (getattr(type(config), name), facts.kept)
    ]
    if config.encoding == "dense":
        problems.append(f"--encoding dense needs all classes; this source has the {facts.kept} largest")
    if problems:
        raise ConfigError(problems)
    return TopK(facts.kept, config.dtype, (config.made_at or 1.0,))


def _unknown(config: ImportConfig, facts: Facts, names: tuple[str, ...]) -> tuple[str, ...]:
    """What neither the source nor the importer says."""
    several = max(views for _, views in facts.splits.values()) > 1
    found = {
        "teacher": config.teacher is None,
        "weights": True,
        "preprocessing": config.preprocessing is None and facts.preprocessing is None,
        "class names": not names,
        "content of the examples": facts.content is None,
        "views": facts.lengths is None and (not config.plain or several),
        "seeds of the views": (several or facts.augmented) and not facts.seeded,
        "temperature (taken as 1)": facts.probabilities and config.made_at is None and not facts.at_one,
    }
    residual = []
    if facts.kept is not None:
        residual = [f"residual (known to within {kept.residual_known_to(facts.precision, facts.kept):.1g})"]
    return (*(name for name, is_unknown in found.items() if is_unknown), *residual, *facts.unknown)


def _said(config: ImportConfig, names: tuple[str, ...], known: Known) -> dict[str, Any]:
    """The options that say something of the source, those that were given."""
    values = config.as_dict()
    given = {name: values[name] for name in DECLARED if values[name] != getattr(type(config), name)}
    if config.ids not in (None, "row"):
        given["ids"] = "a file"  # whose ids are in the cache, and whose place concerns nobody
    if known.expected is not None:
        given["data"] = known.expected.digest
    if known.digest is not None:
        given["tokenizer"] = known.digest
    return {**given, **({"class_names": list(names)} if config.class_names else {})}


def _identity(
    config: ImportConfig,
    facts: Facts,
    encoding: Encoding,
    layout: Layout,
    names: tuple[str, ...],
    step: Mapping[str, Any],
) -> dict[str, Any]:
    """The identity of a dump, with null for what is unknown."""
    count = max(views for _, views in facts.splits.values())
    known = facts.lengths is not None or (config.plain and count == 1)
    views = {
        "transform": PLAIN_VIEWS if known else None,
        "seed": 0 if known else None,
        "count": count,
        "plain": facts.lengths is not None or config.plain,
    }
    return identify(
        {
            "teacher": {"reference": config.teacher, "args": {}, "state": None, "precision": None},
            "data": {"digest": facts.content, "examples": sum(examples for examples, _ in facts.splits.values())},
            "preprocessing": config.preprocessing if facts.preprocessing is None else facts.preprocessing,
            "class_names": list(names),
            "views": views,
            "splits": [split for split in SPLITS if split in facts.splits],
            "encoding": encoding.describe(),
            "features": {name: what for name, (what, _) in facts.features.items()},
            "store": config.store,
            "part_size": layout.part_size,
            "lineage": [dict(step)],
        }
    )
