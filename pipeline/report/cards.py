"""The card beside a cache: its own, what people say of it (licence, contact, limits), and how sure the teacher was.

It lies in a folder of its own: nothing here changes a byte of the cache, whose digests everybody who trains from it
holds it to. What people said is kept in ``card.json`` there, so that the card can be made again.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.caches.describing import SAMPLE, Spread, Sureness, sureness, temperatures_of
from pipeline.configuration import REQUIRED, Config, option
from pipeline.errors import ConfigError
from pipeline.identity import short
from pipeline.outputs import json_bytes
from pipeline.progress import Progress, Silent
from pipeline.references import optional
from pipeline.store import Cache, FileRecord, open_cache
from pipeline.store.card import PATH as README
from pipeline.store.card import card, sizes_of
from pipeline.workspace import write_atomic

WORDS = "card.json"
NUMBERS = "sureness.csv"
_TEXTS = ("licence", "contact", "about")


@dataclass(frozen=True, kw_only=True)
class CardConfig(Config):
    """Options of ``softlabels cache card``. None, or nothing, leaves what was said before."""

    cache: str = option(REQUIRED, "directory or URL of the cache")
    out: Path | None = option(None, "folder of the card; by default NAME.card beside a cache in a directory")
    licence: str | None = option(None, "terms under which others may use the cache; an empty text removes them")
    contact: str | None = option(None, "whom to ask; an empty text removes it")
    not_for: tuple[str, ...] = option((), "what it must not be used for; replaces what was said, an empty text removes")
    about: str | None = option(None, "free text in Markdown; an empty text removes it")
    temperature: float | None = option(None, "shown besides T = 1; by default 4, or the highest that the cache keeps")
    sample: int | None = option(None, f"entries looked at, spread over the cache; 0 is all, by default {SAMPLE:,}")
    overwrite: bool = option(False, "replace a README.md of other origin, or the card of another cache")

    def problems(self) -> Iterator[str]:
        if self.sample is not None:
            yield from self.below(sample=0)
        if self.temperature is not None and not 0 < self.temperature < float("inf"):
            yield f"--temperature should be above 0; found {self.temperature}"
        if self.out is None and _is_url(self.cache):
            yield f"--out should name a local folder for the card of {self.cache}"


@dataclass(frozen=True)
class CardReport:
    """What was written: the card's folder, its files, and the numbers in it."""

    out: str
    cache: str
    identity: str
    files: tuple[str, ...]
    sureness: tuple[dict[str, Any], ...] = field(default_factory=tuple)

    @property
    def summary(self) -> str:
        """One line for people."""
        looked = sum({(s["split"], s["views"]): int(s["looked_at"]) for s in self.sureness}.values())
        said = f"{looked:,} entries looked at; identity {short(self.identity)}"
        return f"{self.out}: {', '.join(self.files)}; {said}"

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON values."""
        return {**vars(self), "files": list(self.files), "sureness": list(self.sureness)}


def run(config: CardConfig, progress: Progress | None = None) -> CardReport:
    """Write the card of a cache into a folder beside it, or again with what is said now and was said before.

    Raises ConfigError when the folder lies in the cache or holds another's card (unless ``overwrite``),
    TemperatureError when the cache did not keep the temperature, MissingDependencyError without matplotlib.
    """
    progress = progress or Silent()
    cache = open_cache(config.cache)
    out = _folder(config)
    words = _merged(config, cache, _said_before(out, cache, config.overwrite))
    temperatures = temperatures_of(cache, words["temperature"])
    optional("matplotlib", "report", "the card")
    from pipeline.report.distributions import confidence_figure, entropy_figure  # they import matplotlib

    sample = SAMPLE if words["sample"] is None else words["sample"]
    found = sureness(cache, temperatures, sample, progress)
    drawings = [draw(found, cache.classes) for draw in (entropy_figure, confidence_figure)] if found else []
    files: dict[str, bytes] = {f"{drawing.name}.svg": drawing.svg for drawing in drawings}
    files |= {f"{drawing.name}.png": drawing.png for drawing in drawings}
    files[NUMBERS] = _csv(found).encode()
    pictures = [(drawing.name, drawing.alternative) for drawing in drawings]
    files[README] = _page(_name(config.cache), words, cache, found, pictures).encode()
    files[WORDS] = json_bytes(words)  # last: what is said is kept once it is shown
    for name, data in files.items():
        write_atomic(out / name, data)
    numbers = tuple(one.as_dict() for one in found)
    return CardReport(str(out), config.cache, cache.digest, tuple(files), numbers)


def own_card(cache: Cache) -> str:
    """The card in the cache, held to its digest; one made now where there is none."""
    record = cache.manifest.files.get(README)
    if record is None:
        others = {path: file.size for path, file in cache.manifest.files.items()}
        return card(cache.manifest, sizes_of(cache.parts, others))
    data = cache.files.read(README, record.size)
    if FileRecord.of(data) != record:
        raise cache.files.corrupt(README, "its sha256 is not the one in the manifest")
    return data.decode(errors="replace")


def _is_url(address: str) -> bool:
    return ("://" in address or "::" in address) and not address.startswith("file://")


def _name(address: str) -> str:
    """The last piece of a path or a URL."""
    text = os.path.abspath(address.removeprefix("file://")) if not _is_url(address) else address
    return text.rstrip("/").replace("\\", "/").rpartition("/")[2] or "cache"


def _folder(config: CardConfig) -> Path:
    """Where the card goes. Raises ConfigError for a place in the cache."""
    given = Path(os.path.abspath(config.cache.removeprefix("file://")))
    out = config.out if config.out is not None else given.with_name(f"{given.name}.card")
    if not _is_url(config.cache) and Path(os.path.realpath(out)).is_relative_to(os.path.realpath(given)):
        raise ConfigError(f"--out {out} lies in the cache, which nothing may change. Name a folder beside it")
    return out


def _said_before(out: Path, cache: Cache, overwrite: bool) -> dict[str, Any]:
    """What card.json in ``out`` holds; {} when there is none. Raises ConfigError when the folder is another's."""
    path = out / WORDS
    if not path.is_file():
        if (out / README).exists() and not overwrite:
            raise ConfigError(f"{out / README} was not written by this command. Name another --out, or --overwrite it")
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        texts = [found.get(name) for name in _TEXTS] + list(found.get("not_for") or [])
        numbers = [found.get(name) for name in ("temperature", "sample")]
        if not all(isinstance(text, str | None) for text in texts):
            raise ValueError("licence, contact, about and each of not_for should be texts")
        if not all(number is None or type(number) in (int, float) for number in numbers):
            raise ValueError("temperature and sample should be numbers")
    except (ValueError, AttributeError, TypeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}. Put it right, or remove it and say all again") from error
    if found.get("identity") != cache.digest and not overwrite:
        was = short(str(found.get("identity")))
        raise ConfigError(
            f"{out} holds the card of cache {was}, this one is {short(cache.digest)}. --overwrite keeps what people "
            "said and makes it this cache's card; or name another --out"
        )
    return dict(found)


def _merged(config: CardConfig, cache: Cache, before: dict[str, Any]) -> dict[str, Any]:
    """What is said now, and for the rest what was said before."""
    words: dict[str, Any] = {"identity": cache.digest}
    for name in _TEXTS:
        now = getattr(config, name)
        words[name] = (before.get(name) if now is None else now.strip()) or None
    given = [text for text in config.not_for if text.strip()] if config.not_for else list(before.get("not_for") or [])
    words["not_for"] = given
    for name in ("temperature", "sample"):
        now = getattr(config, name)
        words[name] = before.get(name) if now is None else now
    return words


def _page(
    name: str,
    words: dict[str, Any],
    cache: Cache,
    found: Sequence[Sureness],
    pictures: Sequence[tuple[str, str]],
) -> str:
    lines = [f"# {_line(name)}", ""]
    lines += [words["about"], ""] if words["about"] else []
    lines += [f"- **Licence:** {_line(words['licence'] or 'not stated')}"]
    lines += [f"- **Contact:** {_line(words['contact'] or 'not stated')}"]
    if words["not_for"]:
        lines += ["", "It must not be used for:", "", *(f"- {_line(text)}" for text in words["not_for"])]
    lines += ["", "## How sure the teacher was", "", *_table(found), ""]
    if cache.encoding.name == "topk":
        lines += ["The mass of the classes that were dropped counts as spread evenly over them.", ""]
    for picture, alternative in pictures:
        lines += [f"![{alternative}]({picture}.svg)", ""]
    return "\n".join(lines) + "\n" + _demoted(own_card(cache))


def _line(text: str) -> str:
    return " ".join(text.split())


def _demoted(markdown: str) -> str:
    """A page as a section of another: its headings one level down; what stands in fences stays."""
    lines, fenced = [], False
    for line in markdown.splitlines():
        fenced ^= line.startswith("```")
        lines.append(f"#{line}" if line.startswith("#") and not fenced else line)
    return "\n".join(lines) + "\n"


def _table(found: Sequence[Sureness]) -> Iterator[str]:
    if not found:
        yield "The cache has no entries."
        return
    looked = sum({(one.split, one.views): one.looked_at for one in found}.values())
    of = sum({(one.split, one.views): one.of for one in found}.values())
    which = f"All {of:,} entries" if looked == of else f"{looked:,} of {of:,} entries, spread over the cache,"
    yield f"{which} were looked at. Entropy is in nats; the last column is the share of examples whose most probable"
    yield "class is their hard label."
    yield ""
    quantity = ("entropy: mean", "median", "5% to 95%", "largest probability: mean", "median", "5% to 95%")
    headings = ("split", "views", "T", *quantity, "top class is the label")
    yield f"| {' | '.join(headings)} |"
    yield f"|---|---|{'--:|' * (len(headings) - 2)}"
    for one in found:
        top = "no labels" if one.top1 is None else f"{100 * one.top1:.2f}%"
        cells = (one.split, one.views, f"{one.temperature:g}", *_spread(one.entropy), *_spread(one.confidence), top)
        yield f"| {' | '.join(cells)} |"
    yield ""
    yield f"More quantiles are in [{NUMBERS}]({NUMBERS})."


def _spread(spread: Spread) -> tuple[str, str, str]:
    return f"{spread.mean:.4f}", f"{spread.median:.4f}", f"{spread.q5:.4f} to {spread.q95:.4f}"


def _csv(found: Sequence[Sureness]) -> str:
    """The numbers as a table for programs: a row for each line of the card's."""
    text = io.StringIO()
    rows = [
        {
            **{n: v for n, v in one.as_dict().items() if not isinstance(v, dict)},
            **{f"{q}_{n}": v for q in ("entropy", "confidence") for n, v in one.as_dict()[q].items()},
        }
        for one in found
    ]
    if rows:
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return text.getvalue()
