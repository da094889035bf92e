"""The card in a cache: true, deterministic, readable whatever a name holds, and its code runs as it stands."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.encodings import Dense, Encoding, Sampled, TopK
from pipeline.store import Cache, Manifest, open_cache
from pipeline.store.card import card, sizes_of
from tests.store.small import FEW, ragged_layout, small_cache

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"```python\n(.*?)```", re.DOTALL)
FEW_RAGGED = ragged_layout({"train": (11, 2)}, 8)
KINDS: dict[str, Encoding] = {
    "dense": Dense("float16"),
    "exact": Dense(),
    "int8": Dense("int8"),
    "topk": TopK(3, "float16", (1.0, 4.0)),
    "topk-one": TopK(2, "float32", (2.0,)),
    "topk-bits": TopK(3, "int4", (1.0, 4.0)),
    "topk-bytes": TopK(4, "int8", (2.0,)),
    "draws": Sampled(5, temperature=2.0),
    "draws-many": Sampled(20, scheme="independent"),
    "draws-weights": Sampled(4, proposal=0.5),
}


@pytest.fixture(scope="module")
def caches(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cards")
    for name, encoding in KINDS.items():
        for store in ("zarr", "parquet"):
            layout = FEW_RAGGED if encoding.draws else FEW
            small_cache(folder / f"{name}-{store}", encoding, store, layout, features=name != "exact")
    return folder


@pytest.mark.parametrize("store", ["zarr", "parquet"])
@pytest.mark.parametrize("name", KINDS)
def test_every_block_runs_in_the_folder_of_the_cache(caches: Path, name: str, store: str) -> None:
    folder = caches / f"{name}-{store}"
    blocks = BLOCK.findall((folder / "README.md").read_text(encoding="utf-8"))
    tools = {re.search(r"^(?:import|from) (pipeline|zarr|pyarrow|duckdb)", b, re.MULTILINE)[1] for b in blocks}  # type: ignore[index]
    assert tools >= {"pipeline", "duckdb", "zarr" if store == "zarr" else "pyarrow"}
    # One interpreter for all of them, each in a namespace of its own, as if it were run alone.
    runner = f"import sys\nsys.path.append({str(ROOT)!r})\nfor block in {blocks!r}: exec(block, {{}}); print('--')"
    done = subprocess.run([sys.executable, "-c", runner], cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    printed = [text.strip() for text in done.stdout.split("--\n")[:-1]]
    assert len(printed) == len(blocks) and all(printed)


def stock_block(cache: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The names that the card's block for stock readers leaves behind, run in the folder of its cache."""
    monkeypatch.chdir(cache)
    (block,) = [b for b in BLOCK.findall(Path("README.md").read_text()) if "probs = " in b]
    found: dict[str, Any] = {}
    exec(block, found)
    return found


@pytest.mark.parametrize(
    "name",
    [
        "dense-zarr",
        "int8-parquet",
        "topk-parquet",
        "topk-one-zarr",
        "topk-bits-zarr",
        "topk-bits-parquet",
        "topk-bytes-zarr",
    ],
)
def test_the_stock_block_finds_the_probabilities_of_our_reader(
    caches: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.fidelity import stored_logprobs

    cache = open_cache(caches / name)
    found = stock_block(caches / name, monkeypatch)
    temperature = cache.manifest.temperatures[0] if cache.manifest.temperatures else 1.0
    expected = np.exp(stored_logprobs(cache.decode(cache.read_part(0)), temperature))
    if "ids" in found:
        expected = np.take_along_axis(expected, found["ids"], axis=1)
        np.testing.assert_allclose(found["probs"].sum(axis=1) + found["rest"], 1, rtol=1e-3)
    np.testing.assert_allclose(found["probs"], expected, rtol=1e-5)


@pytest.mark.parametrize("name", [f"{n}-{s}" for n in KINDS if "draws" in n for s in ("zarr", "parquet")])
def test_the_stock_block_finds_the_draws_of_our_reader(
    caches: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = open_cache(caches / name)
    found = stock_block(caches / name, monkeypatch)
    soft = cache.decode(cache.read_part(0)).select(np.arange(8))
    np.testing.assert_array_equal(found["ids"], soft.ids)
    np.testing.assert_allclose(found["probs"], soft.weights, rtol=1e-6)


def test_a_card_says_what_is_uneven_and_claims_no_bound_for_draws(caches: Path) -> None:
    text = (caches / "draws-many-zarr" / "README.md").read_text()
    mean = f"{FEW_RAGGED.positions:,}, {FEW_RAGGED.positions / 22:,.1f} of an entry on average"
    for words in (
        f"| positions | {mean} |",
        "20 draws at each position, at T = 1",
        "Drawn at random",
    ):
        assert words in text
    assert "Exact:" not in text and "is off by more" not in text


def test_its_bytes_are_those_on_disk(caches: Path) -> None:
    folder = caches / "topk-zarr"
    text = (folder / "README.md").read_text()
    names = ("labels.zarr", "index", "features.zarr")
    # The arrays' zarr.json belong to no part.
    on_disk = {
        n: sum(p.stat().st_size for p in (folder / n).rglob("*") if p.is_file() and p.name != "zarr.json")
        for n in names
    }
    assert f"labels {on_disk['labels.zarr']:,}, {on_disk['labels.zarr'] / FEW.positions:,.1f} for each label" in text
    assert f"index {on_disk['index']:,}, features {on_disk['features.zarr']:,}" in text
    own = sum((folder / name).stat().st_size for name in ("README.md", "manifest.json"))
    assert f"{sum(p.stat().st_size for p in folder.rglob('*') if p.is_file()) - own:,} bytes, without" in text


def test_equal_caches_have_equal_cards(caches: Path, tmp_path: Path) -> None:
    small_cache(tmp_path / "again", KINDS["topk"], "zarr", FEW)
    assert (tmp_path / "again" / "README.md").read_bytes() == (caches / "topk-zarr" / "README.md").read_bytes()


@pytest.fixture
def manifest(caches: Path) -> Manifest:
    return open_cache(caches / "dense-zarr").manifest


def text_of(manifest: Manifest, **identity: Any) -> str:
    return card(replace(manifest, identity={**manifest.identity, **identity}), sizes_of((), {}))


def test_what_an_imported_cache_does_not_know_is_said_to_be_unknown(manifest: Manifest) -> None:
    text = text_of(
        replace(manifest, class_names=()),
        teacher={"reference": None, "args": {}, "state": None},
        data={"digest": None, "examples": 11},
        preprocessing=None,
        views={"transform": None, "seed": None, "count": 2, "plain": False},
    )
    for words in (
        "| teacher | unknown, weights unknown |",
        "| data | 11 examples, unknown |",
        "| classes | 6: names unknown |",
        "| preprocessing | unknown |",
        "| views | unknown, seed unknown; 2 random views of an example and no plain one |",
    ):
        assert words in text
    assert "None" not in text and "null" not in text


def test_lineage_is_a_section_when_it_is_there(manifest: Manifest) -> None:
    assert "Where it comes from" not in text_of(manifest)
    steps = [
        {"verb": "import", "format": "fkd", "files": {"number": 3, "bytes": 9, "sha256": "x"}, "unknown": ["views"]},
        {"verb": "merge", "from": [{"identity": "ab" * 32}, {"identity": "cd" * 32}], "options": {"k": 3}},
    ]
    text = text_of(replace(manifest, bound=0.0), lineage=steps)
    assert '## Where it comes from\n\n1. `import` of 3 files of `fkd`. Unknown: `["views"]`\n2. `merge` of' in text
    assert 'of `abababababab`, `cdcdcdcdcdcd`, with `{"k": 3}`' in text
    assert "those that were imported" in text and "those of the teacher, to the bit" not in text


def test_what_a_second_encoding_was_measured_against(manifest: Manifest) -> None:
    measured = {
        "entries_compared": 9,
        "top1_agreement": 1.0,
        "measured_against": "the labels of cache abc, not the teacher",
    }
    text = text_of(replace(manifest, fidelity=measured))
    assert "Held against `the labels of cache abc, not the teacher`, on 9 entries" in text


def test_fidelity_is_in_words(manifest: Manifest) -> None:
    measured = {
        "entries_compared": 1234,
        "top1_agreement": 0.99996,
        "kl": {"1": {"mean": 1e-5, "max": 0.002}, "4": {"mean": 0.0, "max": 0.0}},
        "teacher_accuracy": {"train": 1.0, "test": 0.975},
        "another": 3,
    }
    text = text_of(replace(manifest, fidelity=measured))
    for words in ("on 1,234 entries", "same in 99.99%", "1e-05 (at most 0.002) at T = `1`; 0 (at most 0) at T = `4`"):
        assert words in text
    assert "hard label in 100% of `train`, 97.50% of `test`" in text and "`another`: `3`" in text


@pytest.mark.parametrize(
    "measured",
    [
        {"entries_compared": 0, "top1_agreement": None, "kl": {}, "teacher_accuracy": {}},
        {"entries_compared": 5, "top1_agreement": 1.0, "kl": {"1": 3}, "teacher_accuracy": "good"},
        {"entries_compared": "many", "kl": {"1": {"mean": "x", "max": 0}}},
    ],
)
def test_fidelity_of_another_form_is_shown_as_it_is(manifest: Manifest, measured: dict[str, Any]) -> None:
    assert "## How to read it" in text_of(replace(manifest, fidelity=measured))


def test_no_name_can_break_the_page(manifest: Manifest) -> None:
    evil = "x` | y\n\n## Not a heading\n```python\nimport os\n```\x1b[2J <script>alert(1)</script> \u202e"
    names = tuple(evil if n == 1 else "a" * 1000 for n in range(6))
    text = text_of(
        replace(manifest, class_names=names, fidelity={evil: evil, "teacher_accuracy": {evil: 1.0}}),
        teacher={"reference": evil, "args": {evil: evil}, "state": evil, "precision": evil},
        views={"transform": evil, "seed": 0, "count": 2, "merged": [{"seed": evil, "count": evil}]},
        preprocessing=evil,
        lineage=[{"verb": evil, "from": [evil], "options": {evil: evil}}],
    )
    assert "\n## Not" not in text and "\x1b" not in text and "\u202e" not in text
    assert text.count("```") == text_of(manifest).count("```")
    start = text.index("| | |")
    table = text[start : text.index("\n\n", start)].splitlines()
    assert all(line.count("|") == 3 and line.count("`") % 2 == 0 for line in table)
    outside = re.sub(r"`[^`]*`", "", text)
    assert "<script>" not in outside
    assert max(map(len, table)) < 4000


def test_many_classes_are_shortened(manifest: Manifest) -> None:
    (line,) = [
        line
        for line in text_of(replace(manifest, class_names=tuple(map(str, range(50_000))))).splitlines()
        if line.startswith("| classes")
    ]
    assert line.endswith("`19`, ... |")


def test_golden_and_new_cards_are_both_read(caches: Path) -> None:
    cache: Cache = open_cache(caches / "dense-zarr")
    sizes = sizes_of(cache.parts, {path: file.size for path, file in cache.manifest.files.items()})
    assert card(cache.manifest, sizes) == (caches / "dense-zarr" / "README.md").read_text()
