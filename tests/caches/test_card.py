"""The card beside a cache: its numbers are right, its words are kept, and the cache stays as it is."""

from __future__ import annotations

import csv
import io
import json
import re
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import fsspec
import numpy as np
import pytest
from click.testing import CliRunner

from pipeline.caches.describing import PLAIN, RANDOM, _rows, entropy_and_confidence, sureness, temperatures_of
from pipeline.encodings import Dense, Encoding, TopK
from pipeline.errors import CacheCorruptError, ConfigError, MissingDependencyError, TemperatureError
from pipeline.fidelity import stored_logprobs
from pipeline.report.cards import CardConfig, run
from pipeline.store import Layout, open_cache, push
from tests.store.small import LAYOUT, files_of, index_of, logits_of, small_cache

ENCODINGS: list[Encoding] = [Dense(), Dense("int8"), TopK(3, "float16", (1.0, 4.0)), TopK(6, "float32", (2.0,))]
FILES = ["README.md", "card.json", "confidence.png", "confidence.svg", "entropy.png", "entropy.svg", "sureness.csv"]


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    small_cache(tmp_path / "a", TopK(3, "float16", (1.0, 4.0)))
    return tmp_path / "a"


def write(cache: Path | str, **more: Any) -> Any:
    return run(CardConfig(cache=str(cache), **more))


def text_of(folder: Path) -> str:
    return (folder / "README.md").read_text(encoding="utf-8")


def invoke(*arguments: str) -> Any:
    from stages.cache import command

    return CliRunner().invoke(command, ["card", *arguments])


@pytest.mark.parametrize("encoding", ENCODINGS, ids=lambda e: "-".join(map(str, e.describe().values())))
def test_entropy_and_confidence_are_those_of_the_whole_distribution(encoding: Encoding) -> None:
    logits = np.random.default_rng(0).normal(scale=3, size=(50, 6)).astype(np.float32)
    logits[0] = [100, 0, 0, 0, 0, -100]  # as good as certain
    logits[1] = 0
    soft = encoding.decode(encoding.encode(logits), 6)
    for temperature in encoding.temperatures or (1.0, 7.0):
        logprobs = stored_logprobs(soft, temperature)
        p = np.exp(logprobs)
        expected = -np.where(p > 0, p * logprobs, 0.0).sum(axis=1)
        entropy, confidence = entropy_and_confidence(soft, temperature)
        np.testing.assert_allclose(entropy, expected, atol=1e-6)
        np.testing.assert_allclose(confidence, p.max(axis=1), atol=1e-6)
        assert (entropy >= 0).all() and (confidence <= 1).all()
        assert entropy[1] == pytest.approx(np.log(6), abs=1e-2)


def test_every_number_is_right(tmp_path: Path) -> None:
    cache = small_cache(tmp_path / "a")
    found = {(one.split, one.views, one.temperature): one for one in sureness(cache, (1.0, 4.0))}
    assert list(found) == [
        (split, kind, t)
        for split, kind in (("train", PLAIN), ("train", RANDOM), ("validation", PLAIN), ("test", PLAIN))
        for t in (1.0, 4.0)
    ]
    parts = [part for part in LAYOUT.parts if part.split == "train" and part.view > 0]
    logits = np.concatenate([logits_of(part) for part in parts]).astype(np.float64)
    labels = np.concatenate([index_of(part).labels for part in parts])
    p = np.exp(logits / 4 - np.log(np.exp(logits / 4).sum(axis=1, keepdims=True)))
    entropy = -(p * np.log(p)).sum(axis=1)
    one = found["train", RANDOM, 4.0]
    assert (one.looked_at, one.of, one.labelled) == (42, 42, 28)
    assert one.entropy.mean == pytest.approx(entropy.mean(), abs=1e-6)
    assert one.entropy.q95 == pytest.approx(np.percentile(entropy, 95), abs=1e-6)
    assert one.confidence.median == pytest.approx(np.median(p.max(axis=1)), abs=1e-6)
    assert one.top1 == (logits.argmax(axis=1) == labels)[labels >= 0].mean()


def test_views_of_a_cache_without_a_plain_one_are_random(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = small_cache(tmp_path / "a")
    views = {**cache.identity["views"], "plain": False}
    monkeypatch.setattr(type(cache), "identity", property(lambda self: {**self.manifest.identity, "views": views}))
    assert {(one.split, one.views) for one in sureness(cache, (1.0,))} == {(s, RANDOM) for s in cache.splits()}


def test_tokens_have_no_hard_label_each(tmp_path: Path) -> None:
    cache = small_cache(tmp_path / "a", layout=Layout.of({"train": (5, 1)}, 4, length=3))
    (one,) = sureness(cache, (1.0,))
    assert len(one.entropies) == 15 and one.looked_at == 5 and one.top1 is None


@pytest.mark.parametrize(("count", "wanted"), [(10, 10), (10, 20), (1000, 100), (10_000, 999), (100, 99), (33, 32)])
def test_a_sample_is_spread_over_all_rows(count: int, wanted: int) -> None:
    rows = _rows(count, wanted, np.random.default_rng(0))
    assert len(set(rows.tolist())) == len(rows) and rows.min() >= 0 and rows.max() < count
    assert min(count, wanted) * 0.95 <= len(rows) <= min(count, wanted)
    tenth = np.bincount(rows * 10 // count, minlength=10)
    if wanted >= 999:
        assert tenth.min() > 0.5 * len(rows) / 10, "sorted data is met everywhere"


def test_a_sample_is_the_same_each_time_and_zero_is_all(tmp_path: Path) -> None:
    cache = small_cache(tmp_path / "a", layout=Layout.of({"train": (4000, 2), "test": (40, 1)}, 512), features=False)
    found = sureness(cache, (1.0,), 3000)
    assert [one.looked_at for one in found] == [1492, 1492, 40]
    assert [one.of for one in found] == [4000, 4000, 40]
    again = sureness(cache, (1.0,), 3000)
    np.testing.assert_array_equal(found[0].entropies, again[0].entropies)
    assert [one.looked_at for one in sureness(cache, (1.0,), 0)] == [4000, 4000, 40]
    (whole, *_) = sureness(cache, (1.0,), 0)
    assert found[0].entropy.mean == pytest.approx(whole.entropy.mean, abs=0.05)


def test_temperatures_are_those_that_the_cache_keeps(tmp_path: Path) -> None:
    dense, kept = small_cache(tmp_path / "a"), small_cache(tmp_path / "b", TopK(2, "float32", (1.0, 2.0, 8.0)))
    other = small_cache(tmp_path / "c", TopK(2, "float32", (2.0,)))
    assert temperatures_of(dense, None) == (1.0, 4.0) and temperatures_of(dense, 2.5) == (1.0, 2.5)
    assert temperatures_of(kept, None) == (1.0, 8.0) and temperatures_of(kept, 2) == (1.0, 2.0)
    assert temperatures_of(other, None) == (2.0,) and temperatures_of(dense, 1) == (1.0,)
    with pytest.raises(TemperatureError, match=r"keeps T = 2; found --temperature 1.*Name one"):
        temperatures_of(other, 1.0)
    assert len(re.findall("train", text_of(Path(write(tmp_path / "c").out)))) > 2  # one panel alone is drawn as well


def test_the_card_has_the_words_the_numbers_and_the_own_card(cache: Path) -> None:
    report = write(cache, licence="CC-BY-4.0", contact="a@b.c", not_for=("this", "that"), about="# Ours\n\nFree text.")
    folder = cache.with_name("a.card")
    assert report.out == str(folder) and sorted(p.name for p in folder.iterdir()) == FILES
    text = text_of(folder)
    for words in (
        "# a\n",
        "Free text.",
        "**Licence:** CC-BY-4.0",
        "**Contact:** a@b.c",
        "- this\n- that\n",
        "T = 1, 4",
    ):
        assert words in text
    own = (cache / "README.md").read_text()
    assert "\n## A cache of soft labels" in text and "\n### How to read it" in text
    assert [line for line in own.splitlines() if not line.startswith("#")][-40:] == [
        line for line in text.splitlines() if not line.startswith("#")
    ][-40:]
    for picture in ("entropy", "confidence"):
        assert f"]({picture}.svg)" in text
        assert ElementTree.fromstring((folder / f"{picture}.svg").read_bytes()).tag.endswith("svg")
        assert (folder / f"{picture}.png").read_bytes().startswith(b"\x89PNG")
    rows = list(csv.DictReader(io.StringIO((folder / "sureness.csv").read_text())))
    assert (
        len(rows) == 8
        and len(re.findall(r"^\| (?:train|validation|test) \| (?:plain|random)", text, re.MULTILINE)) == 8
    )
    for row, one in zip(rows, report.sureness, strict=True):
        assert float(row["entropy_mean"]) == one["entropy"]["mean"] and f"{one['confidence']['median']:.4f}" in text


def test_making_it_again_keeps_what_was_said(cache: Path) -> None:
    folder = cache.with_name("a.card")
    write(cache, licence="MIT", contact="me", not_for=("this", "that"), temperature=4.0, sample=40)
    first = files_of(folder)
    write(cache)
    assert files_of(folder) == first
    write(cache, contact="you")
    said = json.loads((folder / "card.json").read_text())
    assert (said["licence"], said["contact"], said["not_for"]) == ("MIT", "you", ["this", "that"])
    assert (said["temperature"], said["sample"]) == (4.0, 40)
    assert "you" in text_of(folder) and "MIT" in text_of(folder) and "- this" in text_of(folder)
    write(cache, not_for=("other",), licence="")
    assert "- other" in text_of(folder) and "- this" not in text_of(folder) and "not stated" in text_of(folder)
    write(cache, not_for=("",))
    assert "must not be used" not in text_of(folder) and "you" in text_of(folder)


def test_what_people_say_changes_no_byte_of_the_cache(cache: Path) -> None:
    before, times = files_of(cache), {p: p.stat().st_mtime_ns for p in cache.rglob("*")}
    write(cache, licence="MIT")
    write(cache, licence="BSD", about="more", sample=0)
    assert files_of(cache) == before and {p: p.stat().st_mtime_ns for p in cache.rglob("*")} == times


@pytest.mark.parametrize("inside", ["a", "a/card", "link/card"])
def test_a_card_in_the_cache_is_refused(cache: Path, inside: str) -> None:
    (cache.parent / "link").symlink_to(cache)
    before = files_of(cache)
    with pytest.raises(ConfigError, match="lies in the cache"):
        write(cache, out=cache.parent / inside)
    assert files_of(cache) == before


def test_what_is_somebody_elses_is_not_replaced(cache: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "README.md").write_text("mine")
    (other / "notes.txt").write_text("kept")
    with pytest.raises(ConfigError, match="not written by this command"):
        write(cache, out=other)
    assert text_of(other) == "mine"
    write(cache, out=other, overwrite=True, licence="MIT")
    assert "MIT" in text_of(other) and (other / "notes.txt").read_text() == "kept"
    small_cache(tmp_path / "b")
    with pytest.raises(ConfigError, match="holds the card of cache"):
        write(tmp_path / "b", out=other)
    write(tmp_path / "b", out=other, overwrite=True)
    assert "MIT" in text_of(other) and open_cache(tmp_path / "b").digest[:12] in text_of(other)


@pytest.mark.parametrize("said", ["{", "[]", '{"licence": 3}', '{"not_for": 3}', '{"not_for": [3]}', '{"sample": "x"}'])
def test_a_damaged_card_json_is_named(cache: Path, said: str) -> None:
    write(cache)
    path = cache.with_name("a.card") / "card.json"
    path.write_text(said)
    with pytest.raises(ConfigError, match=r"card\.json cannot be read"):
        write(cache, licence="MIT")
    assert path.read_text() == said


def test_a_url_needs_a_place(cache: Path, tmp_path: Path) -> None:
    filesystem = fsspec.filesystem("memory")
    filesystem.store.clear()
    push(cache, "memory://bucket/ours")
    with pytest.raises(ConfigError, match="--out should name a local folder"):
        write("memory://bucket/ours")
    write("memory://bucket/ours", out=tmp_path / "card")
    assert text_of(tmp_path / "card").startswith("# ours\n")
    write(cache)
    assert text_of(tmp_path / "card")[len("# ours") :] == text_of(cache.with_name("a.card"))[len("# a") :]
    filesystem.store.clear()


def test_an_own_card_that_was_edited_is_named(cache: Path) -> None:
    (cache / "README.md").write_bytes(b"x" * (cache / "README.md").stat().st_size)
    with pytest.raises(CacheCorruptError, match=r"README\.md"):
        write(cache)


def test_without_matplotlib_the_extra_is_named(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingDependencyError, match=r"softlabels\[report\]"):
        write(cache)
    assert not cache.with_name("a.card").exists()


def test_the_command(cache: Path) -> None:
    result = invoke(str(cache), "--licence", "MIT", "--not-for", "x", "--not-for", "y", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert sorted(found["files"]) == FILES and found["sureness"][0]["looked_at"] == 21
    assert "- x\n- y\n" in text_of(cache.with_name("a.card"))
    again = invoke(str(cache), "--contact", "me")
    assert "80 entries looked at" in again.stdout and "MIT" in text_of(cache.with_name("a.card"))
    wrong = invoke(str(cache), "--sample", "-1", "--temperature", "0")
    assert wrong.exit_code == 2 and "--sample" in wrong.stderr and "--temperature" in wrong.stderr
    kept = invoke(str(cache), "--temperature", "3")
    assert kept.exit_code == 1 and "keeps T = 1, 4" in kept.stderr
