"""``softlabels cache noise``: the mean of several teachers' labels with Gaussian noise, and what may be claimed of it.

The new cache holds nothing else that was computed from the teachers' answers. Its identity names what is public of the
sources (data, views, classes, the kind of model) and is put together from that, field by field: digests of weights, and
of caches that hold them, are exact functions of the training data; so are measured fidelity and bounds.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.caches.building import BuildReport, Contents, build, finished, identify
from pipeline.caches.noising import Bytes, bytes_for, logits_of, onto_simplex, with_noise
from pipeline.caches.origins import Origins, accuracy, check_ids, everything, gather, gather_index
from pipeline.caches.plan import Plan
from pipeline.caches.subset import opened, recorded_table
from pipeline.configuration import REQUIRED, Config, option
from pipeline.encodings import Arrays, Dense
from pipeline.errors import CacheMismatchError, ConfigError, TemperatureError
from pipeline.fidelity import stored_logprobs
from pipeline.identity import digest, short
from pipeline.privacy import Account
from pipeline.progress import Progress
from pipeline.softlabels import is_kept
from pipeline.store import Cache, Layout, Part, part_size_for, replay_file
from pipeline.workspace import Workspace, user_cache, write_atomic

VERB = "noise"
ENCODING = Dense()
BLOCK_BYTES = 32 << 20
"""So many bytes of labels, as float64, are worked on at a time."""


@dataclass(frozen=True, kw_only=True)
class NoiseConfig(Config):
    """Options of ``softlabels cache noise``."""

    caches: tuple[str, ...] = option(REQUIRED, "directories or URLs of the caches, one for each teacher")
    out: Path = option(REQUIRED, "directory of the new cache")
    epsilon: float | None = option(None, "privacy that the noise should give; or --sigma")
    delta: float = option(1e-5, "chance left open beside epsilon: well below one over the number of training records")
    sigma: float | None = option(None, "standard deviation of the noise in each probability, instead of --epsilon")
    disjoint: bool = option(False, "declare that no training record was used for two of the teachers")
    temperature: float = option(1.0, "of the probabilities that are averaged; train with the same")
    seed: int | None = option(None, "make the noise from this number, for tests: VOIDS every claim of privacy")
    store: str = option("zarr", "file format of the labels", choices=("zarr", "parquet"))
    part_size: int = option(0, "entries per part; 0 chooses about 32 MiB")
    overwrite: bool = option(False, "replace a cache of another identity at --out")

    def problems(self) -> Iterator[str]:
        yield from self.below(part_size=0)
        if not self.caches:
            yield "name at least one cache"
        if len(set(self.caches)) < len(self.caches):
            yield "a cache is named twice"
        if (self.epsilon is None) == (self.sigma is None):
            yield "give --epsilon or --sigma, one of the two"
        for name in ("epsilon", "sigma", "temperature"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                yield f"--{name} should be a number above 0; found {value}"
        if not 0 < self.delta < 1:
            yield f"--delta should lie between 0 and 1; found {self.delta}"
        if self.disjoint and len(self.caches) == 1:
            yield "--disjoint is about several teachers; here is one cache, whose teacher is protected as a whole"
        if self.seed is not None and self.seed < 0:
            yield f"--seed should be at least 0; found {self.seed}"


@dataclass(frozen=True)
class NoiseReport:
    """What was made, and what may be claimed of it."""

    built: BuildReport
    account: Account

    @property
    def summary(self) -> str:
        """What was made, and the account in words."""
        return "\n".join([self.built.summary, self.account.claim, self.account.basis, self.account.LIMITS])

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON values."""
        return {**asdict(self.built), "account": self.account.as_dict()}


def run(config: NoiseConfig, progress: Progress | None = None) -> NoiseReport:
    """Write the noisy mean of the caches at ``out``.

    Run again with the same options it goes on, or finds its cache: it does not draw twice for one result. Raises
    CacheMismatchError when the caches are not of the same data, views and classes, ConfigError when one is noisy, or
    teachers said to be disjoint are one, TemperatureError when a top-k cache did not keep the temperature, and the
    errors of ``build``.
    """
    caches = [opened(address) for address in config.caches]
    _check(caches, config)
    first = caches[0]
    old = first.manifest.layout
    account = Account.of(
        teachers=len(caches),
        disjoint=config.disjoint,
        rows=old.positions,
        delta=config.delta,
        epsilon=config.epsilon,
        sigma=config.sigma,
        seed=config.seed,
    )
    size = config.part_size or part_size_for(4 * first.classes, old.groups, old.mean_length)
    origins = [everything(cache) for cache in caches]
    description = {
        **_public(caches),
        "encoding": ENCODING.describe(),
        "store": config.store,
        "part_size": size,
        "lineage": [_step(account, config.temperature)],
    }
    table = recorded_table(first)
    plan = Plan(
        identity=_identity(description, [cache.digest for cache in caches], config),
        layout=origins[0].layout(size),
        classes=first.classes,
        class_names=first.class_names,
        features={},
        replay=None if table is None else replay_file(table.replace_schema_metadata(None).combine_chunks()),
    )
    built = build(
        plan,
        config.out,
        lambda part: _noisy(origins, part, account.sigma, config.temperature, bytes_for(part.number, config.seed)),
        verb=VERB,
        sources=[cache.address for cache in caches],
        overwrite=config.overwrite,
        progress=progress,
        unknown=[name for name in first.manifest.unknown if name != "teacher"],
    )
    return NoiseReport(built, account)


def _check(caches: Sequence[Cache], config: NoiseConfig) -> None:
    first = caches[0]
    check_ids(first)
    for cache in caches:
        if any(step["verb"] == VERB for step in cache.manifest.lineage):
            raise ConfigError(
                f"{cache.address} is noisy already, and what is claimed of it holds for whatever is made of it. Name "
                "caches that hold the teachers' own labels"
            )
        if cache.encoding.draws:
            raise ConfigError(
                f"{cache.address} keeps draws from the teacher's distributions, which say more than a noisy mean of "
                "these would: name caches that hold these (dense or topk)"
            )
        kept = cache.encoding.temperatures
        if kept and not is_kept(config.temperature, kept):
            raise TemperatureError(
                f"{cache.address} keeps T = {', '.join(f'{t:g}' for t in kept)}; found --temperature "
                f"{config.temperature:g}. Name one of those"
            )
    for cache in caches[1:]:
        if differing := list(_differences(first, cache)):
            raise CacheMismatchError(
                f"{first.address} and {cache.address} are of other {', other '.join(differing)}: there is no mean of "
                "them. Dump all teachers over the same data, with the same --views, --transform and --seed, or bring "
                "the caches to what they share: softlabels cache subset"
            )
    owner: dict[str, str] = {}
    for cache in caches if config.disjoint else ():
        state = cache.identity["teacher"]["state"]
        if state is not None and owner.setdefault(state, cache.address) != cache.address:
            raise ConfigError(
                f"{owner[state]} and {cache.address} were made by one teacher, {short(state)}: its training data is "
                "not disjoint from itself. Name one of them, or leave --disjoint out"
            )


def _differences(first: Cache, other: Cache) -> Iterator[str]:
    """What keeps two caches from having a mean. What one of them does not know of itself counts as equal."""
    ours, theirs = first.manifest, other.manifest
    if ours.classes != theirs.classes or (
        ours.class_names and theirs.class_names and ours.class_names != theirs.class_names
    ):
        yield "classes"
    prepared = {cache.identity["preprocessing"] for cache in (first, other)} - {None}
    if len(prepared) > 1:
        yield "preprocessing"
    if ours.layout.splits() != theirs.layout.splits():
        yield "splits or numbers of views"
        return
    if _views(first, ours.layout) != _views(other, ours.layout):
        yield "views"
    for split in first.splits():
        if first.ids(split) != other.ids(split):
            yield f"examples, or another order of them, in {split}"
        elif not np.array_equal(first.lengths(split), other.lengths(split)):
            yield f"positions of an entry in {split}"
        elif ours.knows_content and theirs.knows_content and first.input_digests(split) != other.input_digests(split):
            yield f"content of the examples in {split}"


_OF_VIEWS = ("transform", "seed", "count", "merged", "plain")


def _views(cache: Cache, layout: Layout) -> dict[str, Any]:
    """What tells the images of a cache; how random views would be made matters where there are some."""
    views = {name: value for name, value in cache.identity["views"].items() if name in _OF_VIEWS}
    random = any(group.view for group in layout.groups)
    return views if random else {"plain": views.get("plain", True)}


def _public(caches: Sequence[Cache]) -> dict[str, Any]:
    """The identity of the noisy labels, but for what is the same for all: named here or left out.

    Of the teachers it keeps what kind they are, where they are of one kind. ``state``, a digest of weights, would let
    anybody who can train a teacher again tell whether it was this one.
    """
    first = caches[0].identity
    teacher: dict[str, Any] = {"reference": None, "state": None, "args": {}}
    for name in ("reference", "args", "precision"):
        said = [cache.identity["teacher"].get(name) for cache in caches]
        if said[0] is not None and all(each == said[0] for each in said):
            teacher[name] = said[0]
    views = {name: value for name, value in first["views"].items() if name in _OF_VIEWS}
    return {
        "teacher": teacher,
        "data": {"digest": first["data"]["digest"], "examples": first["data"]["examples"]},
        "preprocessing": first["preprocessing"],
        "class_names": list(caches[0].class_names),
        "views": views,
        "splits": list(caches[0].splits()),
        "features": {},
    }


def _step(account: Account, temperature: float) -> dict[str, Any]:
    """The step of lineage: the figures, and what they mean in words. It does not say which caches were read."""
    said = account.as_dict()
    words = {name: said.pop(name) for name in ("claim", "basis", "limits")}
    return {"verb": VERB, "from": [], "options": {**said, "temperature": temperature}, "account": words}


def _identity(description: Mapping[str, Any], sources: Sequence[str], config: NoiseConfig) -> dict[str, Any]:
    """The identity with its ``draw``, which tells one making of the noise from another and says nothing of it.

    With a seed it follows from the seed and the sources. Without one it is random, and noted on this machine together
    with the sources, which the cache itself must not name: the same command then finds what it made, or began to make.
    """

    def drawn(draw: str) -> dict[str, Any]:
        (step,) = description["lineage"]
        return identify({**description, "lineage": [{**step, "options": {**step["options"], "draw": draw}}]})

    if config.seed is not None:
        return drawn(digest([config.seed, sources])[:32])
    asked = digest([description, sources])
    place = user_cache(VERB) / f"{digest(os.path.realpath(config.out))}.json"
    noted = _noted(place)
    if noted.get("asked") == asked and isinstance(noted.get("draw"), str):
        identity = drawn(noted["draw"])
        there = finished(config.out)
        begun = Workspace(config.out, identity["digest"]).path.is_dir()
        if begun or (there is not None and there.digest == identity["digest"]):
            return identity
    draw = secrets.token_hex(16)
    write_atomic(place, json.dumps({"asked": asked, "draw": draw}).encode())
    return drawn(draw)


def _noted(place: Path) -> dict[str, Any]:
    try:
        found = json.loads(place.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _noisy(origins: Sequence[Origins], part: Part, sigma: float, temperature: float, draw: Bytes) -> Contents:
    """A part: the mean of the probabilities, noise, back onto the simplex, logits. Block by block.

    Its statistics are of the noisy labels.
    """
    first = origins[0].caches[0]
    classes = first.classes
    made: list[Arrays] = []
    step = max(1, int(BLOCK_BYTES // (8 * classes * first.manifest.layout.mean_length)))
    for begin in range(0, part.entries, step):
        entries = min(step, part.entries - begin)
        block = replace(part, first=part.first + begin, entries=entries)
        total: Any = 0.0
        for origin in origins:
            arrays, _ = gather(origin, block, ())
            total = total + np.exp(stored_logprobs(origin.caches[0].decode(arrays), temperature))
        noisy = with_noise(total / len(origins), sigma, draw)
        made.append(ENCODING.encode(logits_of(onto_simplex(noisy), temperature)))
    arrays = {name: np.concatenate([each[name] for each in made]) for name in made[0]}
    index = gather_index(origins[0], part)
    statistics = accuracy(ENCODING.decode(arrays, classes), index.labels, ENCODING)
    return Contents(arrays, index, {}, {**statistics, "bound": 0.0})
