"""Plain files of logits with ids: what is in them comes out under the right example, whatever its order."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.caches.importing import ImportConfig, run
from pipeline.errors import ConfigError, DataError, EncodingError, SoftlabelsError
from pipeline.metrics import log_softmax
from pipeline.softlabels import Dense, TopK
from pipeline.store import Cache, open_cache, verify

N, C = 11, 6
IDS = [f"pictures/{n}.png" for n in range(N)]


def logits_of(seed: int = 0, rows: int = N, scale: float = 4.0) -> npt.NDArray[np.float32]:
    return (np.random.default_rng(seed).standard_normal((rows, C)) * scale).astype(np.float32)


def imported(source: Path | str, out: Path, **options: Any) -> Cache:
    run(ImportConfig(source=str(source), out=out, **options))
    return open_cache(out)


def stored(cache: Cache, split: str = "train", view: int = 0) -> dict[str, npt.NDArray[Any]]:
    """Logits by example id."""
    soft = cache.decode(cache.read_rows(split, view, np.arange(cache.examples(split))))
    assert isinstance(soft, Dense)
    return dict(zip(cache.ids(split), soft.logits, strict=True))


def write_npz(path: Path, **arrays: Any) -> Path:
    np.savez(path, **{"logits": logits_of(), "ids": np.array(IDS), **arrays})
    return path


def write_parquet(path: Path, values: Any, columns: dict[str, Any], name: str = "logits", **options: Any) -> Path:
    lists = (
        values if isinstance(values, pa.Array) else pa.array([row.tolist() for row in values], pa.list_(pa.float32()))
    )
    pq.write_table(pa.table({**columns, name: lists}), path, **options)
    return path


# --- .npy and .npz ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part_size", [0, 4])
@pytest.mark.parametrize("store", ["zarr", "parquet"])
def test_npy_with_ids_in_a_file(tmp_path: Path, part_size: int, store: str) -> None:
    np.save(tmp_path / "teacher_logits.npy", logits_of())
    (tmp_path / "ids.txt").write_text("".join(f"{i}\n" for i in IDS))
    ids = str(tmp_path / "ids.txt")
    cache = imported(tmp_path / "teacher_logits.npy", tmp_path / "c", ids=ids, part_size=part_size, store=store)
    assert cache.ids("train") == IDS and cache.manifest.bound == 0
    assert all(np.array_equal(v, w) for v, w in zip(stored(cache).values(), logits_of(), strict=True))
    assert verify(cache).ok
    np.save(tmp_path / "ids.npy", np.array(IDS))
    again = imported(tmp_path / "teacher_logits.npy", tmp_path / "again", ids=str(tmp_path / "ids.npy"), kind="logits")
    assert again.ids("train") == IDS


def test_rows_are_never_numbered_silently(tmp_path: Path) -> None:
    np.save(tmp_path / "logits.npy", logits_of())
    with pytest.raises(DataError, match="--ids row"):
        imported(tmp_path / "logits.npy", tmp_path / "c")
    cache = imported(tmp_path / "logits.npy", tmp_path / "c", ids="row", id_template="test/{id}", split="test")
    assert cache.ids("test") == [f"test/{n}" for n in range(N)] and cache.splits() == ("test",)
    assert cache.manifest.lineage[0]["options"] == {"ids": "row", "id_template": "test/{id}", "split": "test"}


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_says_more(tmp_path: Path, save: Any) -> None:
    logits = logits_of()
    labels = logits.argmax(axis=1)
    labels[[1, 2]] = [-1, (labels[2] + 1) % C]
    split = np.array(["validation"] * 4 + ["train"] * 7)
    names = np.array([f"class {n}" for n in range(C)])
    order = np.asfortranarray(logits)
    save(tmp_path / "x.npz", logits=order, ids=np.array(IDS), labels=labels, split=split, class_names=names)
    cache = imported(tmp_path / "x.npz", tmp_path / "c", plain=True)
    assert cache.splits() == ("train", "validation") and cache.class_names == tuple(names)
    found = {**stored(cache), **stored(cache, "validation")}
    assert all(np.array_equal(found[i], row) for i, row in zip(IDS, logits, strict=True))
    assert cache.labels("validation").tolist() == labels[:4].tolist()
    assert cache.manifest.fidelity["teacher_accuracy"] == {"validation": 2 / 3, "train": 1.0}
    assert cache.identity["views"] == {"transform": "none", "seed": 0, "count": 1, "plain": True}
    unknown = cache.manifest.lineage[0]["unknown"]
    assert unknown == ["teacher", "weights", "preprocessing", "content of the examples"]
    assert sorted(path.name for path in tmp_path.iterdir() if not path.name.startswith(".")) == ["c", "x.npz"]


def test_several_files_are_one_after_the_other(tmp_path: Path) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    for n, rows in enumerate((slice(0, 5), slice(5, 5), slice(5, N))):
        write_npz(folder / f"{n}.npz", logits=logits_of()[rows], ids=np.array(IDS[rows], "U40"))
    cache = imported(folder, tmp_path / "c", part_size=3)
    assert cache.ids("train") == IDS and np.array_equal(list(stored(cache).values()), logits_of())
    globbed = imported(f"{folder}/[02].npz", tmp_path / "globbed", part_size=3)
    assert globbed.ids("train") == IDS
    write_npz(folder / "3.npz", logits=logits_of()[:, :4])
    with pytest.raises(DataError, match=r"3\.npz should be like 0\.npz, logits of 6 classes"):
        imported(folder, tmp_path / "other")


@pytest.mark.parametrize("precision", ["float16", "float32", "float64"])
@pytest.mark.parametrize("kind", ["probs", "logprobs"])
def test_probabilities_stand_for_logits_within_the_bound(tmp_path: Path, kind: str, precision: str) -> None:
    exact = log_softmax(logits_of(scale=1.5), 1.0)
    values = np.exp(exact) if kind == "probs" else exact
    write_npz(tmp_path / "x.npz", **{"logits": np.zeros(1), kind: values.astype(precision)})
    dense = imported(tmp_path / "x.npz", tmp_path / "dense", kind=kind)
    found = np.stack(list(stored(dense).values())).astype(np.float64)
    off = np.abs((found - found.mean(axis=1, keepdims=True)) - (exact - exact.mean(axis=1, keepdims=True))).max()
    # Log-probabilities are taken as they stand: their own rounding is theirs.
    slack = 0.0 if kind == "probs" else 2 * float(np.spacing(np.abs(values).max().astype(precision)))
    assert off <= dense.manifest.bound + slack and dense.manifest.bound < 0.02
    assert "temperature (taken as 1)" in dense.manifest.lineage[0]["unknown"]
    topk = imported(tmp_path / "x.npz", tmp_path / "topk", kind=kind, encoding="topk", k=2, temperature=(1.0, 3.0))
    for temperature in (1.0, 3.0):
        soft = topk.decode(topk.read_rows("train", 0, np.arange(N)))
        assert isinstance(soft, TopK)
        teacher = np.exp(log_softmax(exact, temperature))
        kept, residual = (np.exp(part.astype(np.float64)) for part in soft.at(temperature))
        at = np.take_along_axis(teacher, soft.ids, axis=1)
        assert (
            max(np.abs(kept - at).max(), np.abs(residual - (1 - at.sum(axis=1))).max()) <= topk.manifest.bound + slack
        )


def test_probabilities_of_zero_are_no_logits(tmp_path: Path) -> None:
    probs = np.array([[1.0, 0, 0], [0.5, 0.25, 0.25]], np.float16)
    write_npz(tmp_path / "x.npz", probs=probs, ids=np.array(["a", "b"]))
    with pytest.raises(
        EncodingError, match=r"example a of train, view 0: 2 classes have a probability .*--encoding topk"
    ):
        imported(tmp_path / "x.npz", tmp_path / "c", kind="probs")
    cache = imported(tmp_path / "x.npz", tmp_path / "c", kind="probs", encoding="topk", k=1, temperature=(1.0,))
    assert cache.manifest.bound < 1e-3 and verify(cache).ok
    logprobs = np.log(np.maximum(probs.astype(np.float64), 0), where=probs > 0, out=np.full(probs.shape, -np.inf))
    write_npz(tmp_path / "y.npz", logprobs=logprobs.astype(np.float32), ids=np.array(["a", "b"]))
    with pytest.raises(EncodingError, match="example a"):
        imported(tmp_path / "y.npz", tmp_path / "d", kind="logprobs")
    assert verify(imported(tmp_path / "y.npz", tmp_path / "d", kind="logprobs", encoding="topk", k=2)).ok


def test_probabilities_that_were_made_at_a_temperature(tmp_path: Path) -> None:
    logits = logits_of()
    probs = np.exp(log_softmax(logits, 4.0)).astype(np.float32)
    np.savez(tmp_path / "x.npz", probs=probs, ids=np.array(IDS))
    cache = imported(tmp_path / "x.npz", tmp_path / "c", made_at=4.0)
    centred = [v - v.mean(axis=1, keepdims=True) for v in (np.stack(list(stored(cache).values())), logits)]
    assert np.abs(centred[0] - centred[1]).max() <= cache.manifest.bound < 1e-3
    assert "temperature (taken as 1)" not in cache.manifest.lineage[0]["unknown"]
    with pytest.raises(ConfigError, match="logits, which have no temperature"):
        imported(write_npz(tmp_path / "z.npz"), tmp_path / "d", made_at=4.0)


def test_float64_logits_are_rounded_and_the_bound_says_so(tmp_path: Path) -> None:
    write_npz(tmp_path / "x.npz", logits=logits_of().astype(np.float64) + 1e-9)
    assert 0 < imported(tmp_path / "x.npz", tmp_path / "c").manifest.bound < 1e-5


def _evil() -> npt.NDArray[Any]:
    return np.array([{"a": 1}] * N, dtype=object)


@pytest.mark.parametrize(
    ("arrays", "options", "what"),
    [
        ({"ids": np.array([*IDS[:-1], IDS[0]])}, {}, "stand there again, among them pictures/0.png"),
        ({"ids": np.array(IDS[:-1])}, {}, "ids should have 11 items"),
        ({"ids": np.arange(N) / 2}, {}, "should be texts"),
        ({"ids": _evil()}, {}, "no objects"),
        ({"logits": _evil()}, {}, "objects"),
        ({"logits": logits_of()[0]}, {}, r"should be floating numbers \(N, C\)"),
        ({"logits": logits_of().astype(int)}, {}, "should be floating numbers"),
        ({"logits": np.where(np.arange(C) == 2, np.nan, logits_of())}, {}, "example pictures/0.png .*finite"),
        ({"labels": np.full(N, C)}, {}, "should lie below 6"),
        ({"labels": np.zeros(N)}, {}, "whole numbers"),
        ({"split": np.array(["dev"] * N)}, {}, "a split is one of"),
        ({"class_names": np.array(["a"])}, {}, "name 6 classes"),
        ({"probs": logits_of()}, {}, "one of logits, logprobs, probs"),
        ({"probs": np.abs(logits_of())}, {"kind": "probs"}, "row 0, example pictures/0.png: probs should .*come to 1"),
        ({"logprobs": logits_of()}, {"kind": "logprobs"}, "come to 1"),
        ({}, {"kind": "probs"}, "should hold probs"),
        ({}, {"ids": "row"}, "leave --ids out"),
        ({}, {"classes": 7}, "has 6 classes"),
        ({"logits": np.zeros((0, C), np.float32), "ids": np.array([], "U1")}, {}, "no rows"),
    ],
)
def test_an_npz_that_cannot_be_taken_at_its_word(tmp_path: Path, arrays: Any, options: Any, what: str) -> None:
    write_npz(tmp_path / "x.npz", **arrays)
    with pytest.raises(SoftlabelsError, match=what):
        imported(tmp_path / "x.npz", tmp_path / "c", **options)
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize("name", ["x.npz", "logits.npy"])
def test_files_that_are_cut_short(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name.endswith("npz"):
        write_npz(path)
    else:
        np.save(path, logits_of())
    data = path.read_bytes()
    for end in (0, 20, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:end])
        with pytest.raises(DataError, match="cannot be read"):
            imported(path, tmp_path / "c", ids="row" if name.endswith("npy") else None)


def test_ids_that_do_not_fit(tmp_path: Path) -> None:
    np.save(tmp_path / "logits.npy", logits_of())
    np.save(tmp_path / "some.npy", logits_of())
    for text, what in (
        ("a\nb\n", "11 rows, one each; found 2"),
        ("a\n\nb", "line 2 is empty"),
        (None, "cannot be read"),
    ):
        ids = tmp_path / "ids.txt"
        ids.unlink(missing_ok=True)
        if text is not None:
            ids.write_text(text)
        with pytest.raises(DataError, match=what):
            imported(tmp_path / "logits.npy", tmp_path / "c", ids=str(ids))
    with pytest.raises(DataError, match="give --kind"):
        imported(tmp_path / "some.npy", tmp_path / "c", ids="row")


# --- Parquet ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["by view", "by example", "shuffled"])
@pytest.mark.parametrize("kind", ["list", "large list", "fixed"])
def test_parquet_with_views_and_seeds(tmp_path: Path, order: str, kind: str) -> None:
    views = 3
    values = {(v, n): logits_of(v)[n] for v in range(views) for n in range(N)}
    rows = [(v, n) for v in range(views) for n in range(N)]
    if order == "by example":
        rows.sort(key=lambda row: row[1])
    if order == "shuffled":
        rows = [rows[i] for i in np.random.default_rng(0).permutation(len(rows))]
    numbers = np.stack([values[row] for row in rows]).astype(np.float16)
    flat = pa.array(numbers.reshape(-1))
    if kind == "fixed":
        lists = pa.FixedSizeListArray.from_arrays(flat, C)
    else:
        offsets = np.arange(0, len(rows) * C + 1, C)
        lists = (
            pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), flat)
            if kind == "list"
            else pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), flat)
        )
    columns = {
        "id": pa.array([IDS[n] for _, n in rows]).dictionary_encode(),
        "view": [v for v, _ in rows],
        "seed": [100 * v + n for v, n in rows],
        "label": [n % C for _, n in rows],
        "split": ["train" if n < 7 else "test" for _, n in rows],
    }
    write_parquet(tmp_path / "x.parquet", lists, columns, row_group_size=5)
    cache = imported(tmp_path / "x.parquet", tmp_path / "c", part_size=2)
    assert cache.splits() == ("train", "test") and cache.examples("train") == 7
    for split in cache.splits():
        for view in range(views):
            for example_id, found in stored(cache, split, view).items():
                assert np.array_equal(found, values[view, IDS.index(example_id)].astype(np.float16).astype(np.float32))
            for part in cache.parts_of(split, view):
                index = cache.index(part)
                assert index.seeds.tolist() == [100 * view + IDS.index(i) for i in index.example_ids]
                assert index.labels.tolist() == [IDS.index(i) % C for i in index.example_ids]
    assert verify(cache).ok
    assert imported(tmp_path / "x.parquet", tmp_path / "two", views=2).views("test") == (0, 1)


@pytest.mark.parametrize(
    ("values", "columns", "what"),
    [
        (None, {}, "does not say which example"),
        (None, {"id": [*IDS[:-1], None]}, "1 missing"),
        (None, {"id": [*IDS[:-1], IDS[3]]}, "among them pictures/3.png.*column view"),
        (None, {"id": IDS, "view": [1] * N}, "numbered 0, 1"),
        (None, {"id": IDS, "view": [0] * 10 + [1]}, "lacks 9.*has 0 others|should have the examples of view 0"),
        (None, {"id": IDS, "view": np.zeros(N)}, "whole numbers"),
        (None, {"id": IDS, "ids": IDS}, "one column of ids"),
        (
            pa.array([[1.0] * C] * 10 + [[1.0] * 4]),
            {"id": IDS},
            "should have 6 numbers in every row; found 4 in row 10",
        ),
        (pa.array([[1.0] * C] * 10 + [None]), {"id": IDS}, "missing values"),
        (pa.array([[1.0] * C] * 10 + [[None] * C]), {"id": IDS}, "missing values"),
        (pa.array([1.0] * N), {"id": IDS}, "column of lists"),
        (pa.array([["a"]] * N), {"id": IDS}, "column of lists"),
    ],
)
def test_parquet_that_cannot_be_taken_at_its_word(tmp_path: Path, values: Any, columns: Any, what: str) -> None:
    path = tmp_path / "x.parquet"
    write_parquet(path, logits_of() if values is None else values, columns, row_group_size=4)
    with pytest.raises(DataError, match=what):
        imported(path, tmp_path / "c")


def test_a_parquet_file_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_bytes(b"PAR1" + bytes(60) + b"PAR1")
    with pytest.raises(DataError, match="as Parquet"):
        imported(tmp_path / "x.parquet", tmp_path / "c")


# --- what they share -------------------------------------------------------------------------------------------------


def test_formats_by_name(tmp_path: Path) -> None:
    write_npz(tmp_path / "x.npz")
    with pytest.raises(DataError, match="no file, folder or glob"):
        imported(tmp_path / "nothing", tmp_path / "c")
    (tmp_path / "both").mkdir()
    write_npz(tmp_path / "both/x.npz")
    np.save(tmp_path / "both/logits.npy", logits_of())
    with pytest.raises(DataError, match="holds npy and npz"):
        imported(tmp_path / "both", tmp_path / "c")
    assert imported(tmp_path / "both", tmp_path / "c", format="npz").ids("train") == IDS
    with pytest.raises(DataError, match="should be one folder"):
        imported(tmp_path / "x.npz", tmp_path / "d", format="fkd")
    with pytest.raises(DataError, match="there is none"):
        imported(tmp_path / "both", tmp_path / "d", format="tinyvit")


def test_all_problems_of_the_options_together(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as raised:
        ImportConfig(source="x", out=tmp_path, format="csv", id_template="x", made_at=-1.0, encoding="fp8", views=-1)
    assert len(raised.value.problems) == 5


def test_an_import_that_was_killed_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_npz(tmp_path / "x.npz")
    whole = imported(tmp_path / "x.npz", tmp_path / "whole", part_size=2)
    from pipeline.caches.importing.plain import Plain

    calls, read = [], Plain.read

    def failing(self: Plain, split: str, view: int, first: int, count: int, classes: int) -> Any:
        calls.append(first)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return read(self, split, view, first, count, classes)

    monkeypatch.setattr(Plain, "read", failing)
    config = ImportConfig(source=str(tmp_path / "x.npz"), out=tmp_path / "c", part_size=2)
    with pytest.raises(KeyboardInterrupt):
        run(config)
    assert run(config).resumed == 2 and calls == [0, 2, 4, 4, 6, 8, 10]
    assert run(config).resumed == 6 and len(calls) == 7
    assert open_cache(tmp_path / "c").digest == whole.digest
    for path in (tmp_path / "whole").rglob("*"):
        other = tmp_path / "c" / path.relative_to(tmp_path / "whole")
        assert path.is_dir() or path.read_bytes() == other.read_bytes()


@pytest.mark.parametrize("encoding", ["dense", "topk"])
def test_the_length_of_a_run_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    path = write_npz(tmp_path / "x.npz", labels=logits_of().argmax(axis=1))
    options = {"encoding": encoding, "k": 2} if encoding == "topk" else {"dtype": "float16"}
    one = imported(path, tmp_path / "one", **options)
    module = importlib.import_module("pipeline.caches.importing.contents")
    monkeypatch.setattr(module, "RUN_BYTES", 3 * 8 * C)
    monkeypatch.setattr(module, "SAMPLED", 5)
    short = imported(path, tmp_path / "short", **options)
    for name, values in one.read_part(0).items():
        assert np.array_equal(values, short.read_part(0)[name])
    assert one.manifest.bound == short.manifest.bound and one.index(0).labels.tolist() == short.index(0).labels.tolist()
    assert (one.manifest.fidelity["entries_compared"], short.manifest.fidelity["entries_compared"]) == (11, 6)
