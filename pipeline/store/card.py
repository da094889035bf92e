"""The cache card: README.md of a cache, made from what it is alone, so that equal caches have equal cards.

What people add (licence, contact, plots) lies beside the cache: see ``pipeline/report/cards.py``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pipeline.identity import short
from pipeline.store.card_code import reading
from pipeline.store.manifest import Manifest
from pipeline.store.parts import PartRecord

PATH = "README.md"
UNKNOWN = "unknown"

_MOST_NAMES, _MOST_NAME, _MOST_CELL = 20, 32, 500
_STEPS = 20


def sizes_of(records: Iterable[PartRecord], others: Mapping[str, int]) -> dict[str, int]:
    """Bytes of ``labels``, ``index``, ``features`` and the ``rest`` of a cache, its card and manifest left out.

    ``others`` holds the files that belong to no part, by path.
    """
    found = dict.fromkeys(("labels", "index", "features", "rest"), 0)
    for record in records:
        for path, file in record.files.items():
            found[path.partition("/")[0].removesuffix(".zarr")] += file.size
    found["rest"] = sum(size for path, size in others.items() if path not in (PATH, "manifest.json"))
    return found


def card(manifest: Manifest, sizes: Mapping[str, int]) -> str:
    """Markdown: what the cache is, where it comes from, how faithful it is, how to read it.

    ``sizes`` are those of ``sizes_of``.
    """
    counts = manifest.counts
    lines = [
        "# A cache of soft labels",
        "",
        f"What a teacher said about {_number(counts['entries'], 'entry', 'entries')}, one distribution over "
        f"{_number(manifest.classes, 'class', 'classes')} for each of {_number(counts['positions'], 'position')}. "
        f"Written by Softlabels, format version {manifest.format}.",
        "",
        "| | |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in _rows(manifest, sizes)),
        "",
        *_lineage(manifest.identity.get("lineage")),
        *_account(manifest),
        "## How faithful",
        "",
        *_faithful(manifest),
        "",
        *reading(manifest),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _rows(manifest: Manifest, sizes: Mapping[str, int]) -> Iterator[tuple[str, str]]:
    """The table: a name and what stands beside it."""
    identity = manifest.identity
    teacher, data = _mapping(identity.get("teacher")), _mapping(identity.get("data"))
    yield "identity", _cell(short(str(identity["digest"])))
    said = [_cell(teacher.get("reference")), *(f"{_cell(f'{k}={v}')}" for k, v in _arguments(teacher))]
    yield "teacher", ", ".join([*said, f"weights {_digest(teacher.get('state'))}", *_precision(teacher)])
    yield "data", f"{_number(data.get('examples'), 'example')}, {_digest(data.get('digest'))}"
    yield "classes", f"{manifest.classes:,}: {_names(manifest.class_names)}"
    yield "preprocessing", _cell(identity.get("preprocessing"))
    yield "views", _views(_mapping(identity.get("views")))
    for split, n in manifest.counts["splits"].items():
        yield split, f"{_number(n['examples'], 'example')}, {_number(n['views'], 'view')}"
    if manifest.layout.length != 1:
        each = manifest.layout.mean_length
        average = " on average" if manifest.layout.is_ragged else ""
        yield "positions", f"{manifest.layout.positions:,}, {each:,.1f} of an entry{average}"
    yield "encoding", _encoding(manifest)
    shapes = (f"{_cell(name)} {tuple(f.shape)} {f.dtype}" for name, f in manifest.features.items())
    yield "features", ", ".join(shapes) or "none"
    yield "parts", f"{_number(manifest.counts['parts'], 'part')} of up to {manifest.layout.part_size:,} entries"
    yield from _sizes(manifest, sizes)


def _sizes(manifest: Manifest, sizes: Mapping[str, int]) -> Iterator[tuple[str, str]]:
    positions = manifest.counts["positions"]
    each = f", {sizes['labels'] / positions:,.1f} for each label" if positions else ""
    more = f"features {sizes['features']:,}, " if manifest.features else ""
    yield "bytes", f"labels {sizes['labels']:,}{each}; index {sizes['index']:,}, {more}other files {sizes['rest']:,}"
    yield "in all", f"{sum(sizes.values()):,} bytes, without this card and the manifest"


def _arguments(teacher: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return sorted(_mapping(teacher.get("args")).items())


def _precision(teacher: Mapping[str, Any]) -> list[str]:
    return [f"forward pass in {_cell(teacher['precision'])}"] if teacher.get("precision") else []


def _views(views: Mapping[str, Any]) -> str:
    count, plain = views.get("count"), views.get("plain", True)
    if count == 1 and plain:
        return "the plain one alone"
    random = count - 1 if plain and isinstance(count, int) else count
    seed = f"seed {_cell(views['seed'])}" if views.get("seed") is not None else f"seed {UNKNOWN}"
    if "merged" in views:
        seed = f"of several dumps, {_cell(views['merged'])}"
    beside = "besides the plain one" if plain else "and no plain one"
    return f"{_cell(views.get('transform'))}, {seed}; {_number(random, 'random view')} of an example {beside}"


def _encoding(manifest: Manifest) -> str:
    found = dict(manifest.encoding.describe())
    name = found.pop("name")
    if name == "topk":
        at = ", ".join(f"{t:g}" for t in manifest.temperatures)
        kept = f"the {found['k']:,} largest logits of each position, and the mass of the others at T = {at}"
        return f"`topk`, {found['dtype']}: {kept}; in {manifest.store}"
    if name == "dense":
        return f"`dense`, {found['dtype']}: all logits, for any temperature; in {manifest.store}"
    if name == "sampled":
        from_what = "" if found["proposal"] == 1 else f" from p^{found['proposal']:g}"
        drawn = f"{found['n']:,} draws{from_what} at each position, at T = {found['temperature']:g}"
        return f"`sampled`, {_cell(found['scheme'])}, seed {found['seed']}: {drawn}; in {manifest.store}"
    return f"{_cell({'name': name, **found})}; in {manifest.store}"


def _names(names: tuple[str, ...]) -> str:
    if not names:
        return f"names {UNKNOWN}"
    shown = ", ".join(_cell(n if len(n) <= _MOST_NAME else f"{n[:_MOST_NAME]}...") for n in names[:_MOST_NAMES])
    return f"{shown}, ..." if len(names) > _MOST_NAMES else shown


def _lineage(steps: Any) -> Iterator[str]:
    """How the cache came about, when no dump made it as it is."""
    if not isinstance(steps, (list, tuple)) or not steps:
        return
    yield from ("## Where it comes from", "")
    if len(steps) > _STEPS:
        yield f"The last {_STEPS} of {len(steps):,} steps:"
        yield ""
    for number, step in enumerate(steps[-_STEPS:], 1):
        step = _mapping(step)
        given = [_digest(_mapping(source).get("identity")) for source in step.get("from", ())]
        if "format" in step:
            files = _mapping(step.get("files"))
            given.append(f"{_number(files.get('number'), 'file')} of {_cell(step['format'])}")
        of = f" of {', '.join(given[:_MOST_NAMES])}{', ...' * (len(given) > _MOST_NAMES)}" if given else ""
        others = step.get("options")
        unknown = step.get("unknown")
        yield (
            f"{number}. {_cell(step.get('verb'))}{of}{f', with {_cell(others)}' if others else ''}"
            f"{f'. Unknown: {_cell(unknown)}' if unknown else ''}"
        )
    yield ""


def _noise(manifest: Manifest) -> Mapping[str, Any] | None:
    """The step that added noise, None without one."""
    return next((step for step in manifest.lineage if step["verb"] == "noise"), None)


def _account(manifest: Manifest) -> Iterator[str]:
    """What the noise lets its makers claim, in their words."""
    if (step := _noise(manifest)) is None:
        return
    yield from ("## What it gives away", "")
    yield from (f"- {_cell(name)}: {_cell(said)}" for name, said in _mapping(step.get("account")).items())
    yield ""


def _faithful(manifest: Manifest) -> Iterator[str]:
    yield _bound(manifest)
    found = dict(manifest.fidelity)
    points = [
        *_compared(found),
        *_accuracy(found, "The teacher's" if _noise(manifest) is None else "The noisy label's"),
    ]
    points += [f"{_cell(name)}: {_cell(value)}" for name, value in sorted(found.items())]
    if points:
        yield ""
        yield from (f"- {point}" for point in points)


def _bound(manifest: Manifest) -> str:
    imported = any(step["verb"] == "import" for step in manifest.lineage)
    whose = "those that were imported" if imported else "those of the teacher"
    noise = _noise(manifest)
    if noise is not None:
        about = _cell(_mapping(noise.get("options")).get("temperature"))
        off = "to the bit" if manifest.bound == 0 else f"to within {manifest.bound:.3g}"
        return (
            f"Not what a teacher said: noise was added at T = {about}, and no bound holds for any one label. The noisy "
            f"labels are kept {off}."
        )
    if manifest.encoding.draws:
        at = ", ".join(f"{t:g}" for t in manifest.temperatures)
        return (
            f"Drawn at random from the teacher's distribution at T = {at}: on average over the draws the labels are "
            "that distribution, and no bound holds for any one of them."
        )
    if manifest.bound == 0:
        return f"Exact: the logits are {whose}, to the bit."
    if manifest.temperatures:
        at = ", ".join(f"{t:g}" for t in manifest.temperatures)
        what = f"No probability at a declared temperature (T = {at})"
    else:
        what = "No logit, less the mean of its row,"
    return f"{what} is off by more than {manifest.bound:.3g} from {whose}."


def _compared(found: dict[str, Any]) -> Iterator[str]:
    """What was measured against the teacher itself; taken out of ``found``, unless it is of another form."""
    entries, agreed, kl = (found.get(name) for name in ("entries_compared", "top1_agreement", "kl"))
    if not (type(entries) is int and entries and isinstance(agreed, float)):
        return
    for name in ("entries_compared", "top1_agreement"):
        del found[name]
    against = found.pop("measured_against", None)
    whom = "the teacher while dumping" if against is None else _cell(against)
    yield (
        f"Held against {whom}, on {_number(entries, 'entry', 'entries')}: the most probable class "
        f"is the same in {_share(agreed)}."
    )
    draws = found.get("draws")
    names = ("classes", "weight", "error")
    if isinstance(draws, dict) and all(isinstance(draws.get(name), (int, float)) for name in names):
        del found["draws"]
        found.pop("kl", None)
        yield (
            f"On average a position keeps {draws['classes']:.1f} classes, whose weights come to {draws['weight']:.4g}; "
            f"the squared error of the weights is {draws['error']:.2g}, summed over the classes."
        )
    known = all(isinstance(v, dict) and {"mean", "max"} <= v.keys() for v in kl.values()) if kl else False
    if kl and known and all(isinstance(v[n], (int, float)) for v in kl.values() for n in ("mean", "max")):
        del found["kl"]
        at = "; ".join(f"{v['mean']:.2g} (at most {v['max']:.2g}) at T = {_cell(t)}" for t, v in kl.items())
        yield f"KL divergence of the stored distributions from the teacher's, in nats, on average: {at}."


def _accuracy(found: dict[str, Any], whose: str) -> Iterator[str]:
    """How often the teacher is right; taken out of ``found``, unless it is of another form."""
    shares = found.get("teacher_accuracy")
    if isinstance(shares, dict) and shares and all(isinstance(share, (int, float)) for share in shares.values()):
        del found["teacher_accuracy"]
        said = ", ".join(f"{_share(share)} of {_cell(split)}" for split, share in shares.items())
        yield f"{whose} most probable class is the hard label in {said} (all views, labelled entries)."


def _share(value: float) -> str:
    """A share in per cent; never 100 when something is missing.

    >>> _share(1.0), _share(0.99999), _share(0.975)
    ('100%', '99.99%', '97.50%')
    """
    return "100%" if value == 1 else f"{int(value * 10_000) / 100:.2f}%"


def _number(value: Any, noun: str, plural: str = "") -> str:
    """A number with its noun, or that it is unknown."""
    if type(value) is not int:
        return f"{UNKNOWN} number of {plural or noun + 's'}"
    return f"{value:,} {noun if value == 1 else plural or noun + 's'}"


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _digest(value: Any) -> str:
    """The first characters of a digest."""
    return _cell(short(value) if isinstance(value, str) else value)


def _cell(value: Any) -> str:
    """A value in one table cell: nothing in it can break the table or the page."""
    if value is None or value == "":
        return UNKNOWN
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True, ensure_ascii=False)
    plain = _plain(text)
    return f"`{plain}`" if plain else UNKNOWN


def _plain(text: str) -> str:
    """``text`` in one line, without what Markdown or a terminal would act upon.

    >>> _plain("a\\n|b` c")
    "a /b' c"
    """
    joined = " ".join(text.split())
    shown = joined if len(joined) <= _MOST_CELL else f"{joined[:_MOST_CELL]}..."
    safe = "".join(c if c.isprintable() else "?" for c in shown)
    return safe.replace("`", "'").replace("|", "/")
