"""Where documents come from: files, folders, globs, tables, the hub's datasets, the standard library; and splits."""

from __future__ import annotations

import json
import sysconfig
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from pipeline.datasets.base import split_of
from pipeline.datasets.tokens.corpus import Corpus, assign_splits, documents_of, survey
from pipeline.datasets.tokens.documents import NOT_IN_STDLIB, Document, LeftOut
from pipeline.datasets.tokens.tables import Columns
from pipeline.errors import ConfigError, DataError
from pipeline.progress import Silent


def read(source: str | Path, columns: Columns = Columns(), **options: Any) -> list[Document]:  # noqa: B008
    return list(Corpus((str(source),), columns, **options).documents(LeftOut()))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, data in {
        "b.txt": b"second",
        "a/deep.py": b"x = 1\r\n",
        "a/picture.png": b"\x89PNG",
        ".git/config.txt": b"hidden",
        "latin.txt": b"caf\xe9",
        "empty.md": b"",
    }.items():
        path = tmp_path / "texts" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return tmp_path / "texts"


def test_a_folder_a_file_and_a_glob(folder: Path) -> None:
    left_out = LeftOut()
    found = list(Corpus((str(folder),)).documents(left_out))
    assert found == [Document("texts/a/deep.py", "x = 1\r\n"), Document("texts/b.txt", "second")]
    assert left_out == LeftOut(not_utf8=1, empty=1)
    assert read(folder / "b.txt") == [Document("b.txt", "second")]
    assert [d.id for d in read(f"{folder}/**/*.py")] == ["texts/a/deep.py"]
    assert [d.id for d in read(f"{folder}/*.t?t")] == ["texts/b.txt"]


def test_ids_stay_when_the_folder_moves(folder: Path, tmp_path: Path) -> None:
    before = read(folder)
    (tmp_path / "elsewhere").mkdir()
    assert read(folder.rename(tmp_path / "elsewhere" / "texts")) == before


def test_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    rows = [{"text": "one", "k": 7}, {"text": "", "k": 8}, {"text": "\ud800", "k": 9}, {"text": "two", "k": 10}]
    path.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    left_out = LeftOut()
    assert [d.id for d in Corpus((str(path),)).documents(left_out)] == ["data.jsonl/1", "data.jsonl/4"]
    assert left_out == LeftOut(not_utf8=1, empty=1)
    assert [d.id for d in read(path, Columns(id="k"))] == ["7", "10"]


def test_prompts_completions_and_splits_of_rows(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text('{"q": "2+2", "a": "4", "s": "train"}\n{"q": "", "a": "5", "s": "val"}\n')
    found = read(path, Columns(prompt="q", completion="a", split="s"))
    assert [(d.prompt, d.text, d.split) for d in found] == [("2+2", "4", "train"), ("", "5", "validation")]


def test_parquet(tmp_path: Path) -> None:
    path = tmp_path / "data.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"body": [f"text {n}" for n in range(2000)], "other": [0] * 2000}), path)
    found = read(path, Columns(text="body"))
    assert len(found) == 2000 and found[1999] == Document("data.parquet/1999", "text 1999")


@pytest.mark.filterwarnings("default")
def test_a_dataset_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = pytest.importorskip("datasets")
    library.disable_progress_bars()
    monkeypatch.setattr(library.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    parts = {
        name: library.Dataset.from_dict({"text": [f"{name} {n}" for n in range(30)]}) for name in ("train", "test")
    }
    library.DatasetDict(parts).save_to_disk(str(tmp_path / "saved"))
    found = read(f"hf:{tmp_path / 'saved'}")
    assert found[0] == Document("saved/train/0", "train 0", split="train") and found[-1].split == "test"
    only = read(f"hf:{tmp_path / 'saved'}", hub_splits=("test",))
    assert {d.split for d in only} == {"test"} and len(only) == 30
    alone = read(f"hf:{tmp_path / 'saved'}", hub_splits=("train",))
    assert {d.split for d in alone} == {None}
    with pytest.raises(ConfigError, match=r"--hf-split dev: .* has no such split; it has train, test"):
        read(f"hf:{tmp_path / 'saved'}", hub_splits=("dev",))
    with pytest.raises(DataError, match="has no column 'body'; it has text"):
        read(f"hf:{tmp_path / 'saved'}", Columns(text="body"))


def test_the_standard_library() -> None:
    found = read("stdlib")
    assert found == read("stdlib")
    root = Path(sysconfig.get_path("stdlib"))
    ids = [d.id for d in found]
    assert ids == sorted(ids) and "stdlib/json/decoder.py" in ids and len(found) > 300
    assert not [i for i in ids if not NOT_IN_STDLIB.isdisjoint(i.split("/")[:-1]) or "_sysconfigdata" in i]
    some = found[ids.index("stdlib/json/decoder.py")]
    assert some.text.encode() == (root / "json" / "decoder.py").read_bytes()


@pytest.mark.parametrize(
    ("line", "columns", "message"),
    [
        ("nonsense", Columns(), r"data.jsonl, row 1 should be a JSON object: Expecting value"),
        ("[1]", Columns(), "row 1 should be a JSON object; found list"),
        ("[" * 100_000, Columns(), "row 1 should be a JSON object"),
        ('{"t": "x"}', Columns(), "row 1 has no field 'text'; it has t"),
        ('{"text": 3}', Columns(), "row 1: field 'text' should be a text; found int"),
        ('{"text": "x", "s": "dev"}', Columns(split="s"), "'s' should be one of train, validation, test; found 'dev'"),
        ('{"p": null, "c": "x"}', Columns(prompt="p", completion="c"), "field 'p' should be a text; found NoneType"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, line: str, columns: Columns, message: str) -> None:
    (tmp_path / "data.jsonl").write_text(line)
    with pytest.raises(DataError, match=message):
        read(tmp_path / "data.jsonl", columns)


def test_a_file_that_is_no_parquet_is_named(tmp_path: Path) -> None:
    (tmp_path / "data.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(DataError, match=r"data\.parquet cannot be read as Parquet"):
        read(tmp_path / "data.parquet")
    pyarrow.parquet.write_table(pyarrow.table({"body": ["x"]}), tmp_path / "data.parquet")
    with pytest.raises(DataError, match="has no column 'text'; it has body"):
        read(tmp_path / "data.parquet")


def test_nothing_there(tmp_path: Path) -> None:
    for source in (tmp_path / "nowhere", tmp_path, tmp_path / "*.txt"):
        with pytest.raises(ConfigError, match="there is no such file"):
            read(source)
    (tmp_path / "empty.txt").write_bytes(b"")
    with pytest.raises(DataError, match="holds no document to learn from: 0 are no UTF-8 and 1 empty"):
        survey(Corpus((str(tmp_path),)), Silent())


def test_limits_take_whole_documents_from_the_beginning(tmp_path: Path) -> None:
    for number in range(6):
        (tmp_path / f"{number}.txt").write_text("é" * 5)
    assert len(read(tmp_path, max_documents=4)) == 4
    assert len(read(tmp_path, max_bytes=30)) == 3 and len(read(tmp_path, max_bytes=29)) == 2
    assert len(read(tmp_path, max_bytes=1)) == 1


def test_documents_with_one_id_are_refused(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name / "texts").mkdir(parents=True)
        (tmp_path / name / "texts" / "a.txt").write_text(name)
    both = Corpus((str(tmp_path / "one" / "texts"), str(tmp_path / "two" / "texts")))
    with pytest.raises(DataError, match=r"each id should occur once; .*texts/a\.txt"):
        survey(both, Silent())


def test_splits_follow_from_ids_or_are_the_sources() -> None:
    ids = [f"d{n}" for n in range(2000)]
    found = assign_splits(ids, [None] * 2000, 0.2)
    assert found.tolist() == [split_of(i, (0.8, 0.1, 0.1)) for i in ids]
    counts = Counter(found.tolist())
    assert abs(counts[1] - 200) < 60 and abs(counts[2] - 200) < 60
    assert assign_splits(ids[:4], ["train", "validation", "test", "train"], 0.9).tolist() == [0, 1, 2, 0]
    own = assign_splits(ids, ["train"] * 1900 + ["test"] * 100, 0.2)
    assert (own[1900:] == 2).all() and 0 < (own[:1900] == 1).sum() < 400 and not (own[:1900] == 2).any()
    assert (assign_splits(ids, [None] * 2000, 0.0) == 0).all()


def test_a_corpus_that_changes_between_two_passes_is_refused(folder: Path) -> None:
    corpus = Corpus((str(folder),), held_out=0.0)
    found = survey(corpus, Silent())
    assert [document.id for _, document in documents_of(corpus, found, 0)] == list(found.ids)
    (folder / "b.txt").write_text("other")
    with pytest.raises(DataError, match=r"texts/b\.txt changed while it was being tokenized"):
        list(documents_of(corpus, found, 0))
    (folder / "b.txt").write_text("second")
    (folder / "c.txt").write_text("more")
    with pytest.raises(DataError, match="changed while it was being tokenized"):
        list(documents_of(corpus, found, 0))
    (folder / "c.txt").unlink()
    (folder / "b.txt").unlink()
    with pytest.raises(DataError, match="changed while it was being tokenized"):
        list(documents_of(corpus, found, 1))
    assert survey(corpus, Silent()).digest != found.digest


@pytest.mark.parametrize("documents", range(1, 12))
def test_few_documents_leave_no_split_without_one(documents: int) -> None:
    ids = [f"file-{number}.txt" for number in range(documents)]
    splits = assign_splits(ids, [None] * documents, 0.1)
    assert len(set(splits.tolist())) == min(documents, 3) and (splits == 0).any()
    assert (assign_splits(ids, [None] * documents, 0.0) == 0).all()
