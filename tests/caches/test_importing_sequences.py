"""Uneven entries out of files of sequences: every format gives the same labels run by run as all at once."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.caches.importing.distillkit import read_distillkit
from pipeline.caches.importing.distillkit_config import Compression
from pipeline.caches.importing.expected import Expected
from pipeline.caches.importing.logprobs import TopLogprobs
from pipeline.caches.importing.sequence_files import DistillKitFiles, TopLogprobsFiles
from pipeline.caches.importing.sequences import Sequences
from pipeline.errors import DataError
from pipeline.progress import Silent

FOREIGN = Path(__file__).parent / "foreign" / "distillkit"


def answers(folder: Path) -> list[Path]:
    """Two files, an id a line or a choice: x and y of 4 tokens, z/0 and z/1 of 3, all with 2 or 3 classes."""

    def record(name: str, tokens: int) -> dict[str, Any]:
        named = [[place, place + 1, place + 2][: 2 + place % 2] for place in range(tokens - 1)]
        values = [[-1.0, -2.0, -3.0][: len(ids)] for ids in named]
        return {"id": name, "token_ids": list(range(tokens)), "top_ids": named, "top_logprobs": values}

    def choice() -> dict[str, Any]:
        named = [None, {5: -0.5, 6: -2}, {7: -0.25, 3: -9}]
        said = [each and {str(token): {"logprob": value} for token, value in each.items()} for each in named]
        return {"prompt_token_ids": [0, 1, 2], "prompt_logprobs": said}

    first, second = folder / "a.jsonl", folder / "b.jsonl"
    first.write_text(json.dumps(record("x", 4)) + "\n\n" + json.dumps(record("y", 4)) + "\n")
    second.write_text(json.dumps({"id": "z", "choices": [choice(), choice()]}) + "\n")
    return [first, second]


def scanned(source: Sequences) -> Sequences:
    source.scan(Silent())
    return source


def read(source: Sequences, first: int, count: int) -> TopLogprobs:
    said = source.read("train", 0, first, count, 997).said
    assert isinstance(said, TopLogprobs)
    return said


def test_entries_are_uneven_and_known(tmp_path: Path) -> None:
    source = scanned(TopLogprobsFiles(tmp_path, answers(tmp_path)))
    assert (source.ids, source.lengths.tolist(), source.kept) == (["x", "y", "z/0", "z/1"], [3, 3, 2, 2], 2)
    assert source.facts().splits == {"train": (4, 1)} and source.facts().kept == 2
    assert len({*source.contents}) == 2
    said = read(source, 1, 2)
    assert said.ids.tolist() == [[0, 1], [1, 2], [2, 3], [5, 6], [7, 3]]
    assert said.logprobs[3:].tolist() == [[-0.5, -2.0], [-0.25, -9.0]]
    assert read(scanned(TopLogprobsFiles(tmp_path, source.files, k=1)), 3, 1).ids.tolist() == [[5], [7]]


def test_runs_join_to_the_whole(tmp_path: Path) -> None:
    options = Compression.read(FOREIGN / "bins.yaml")
    files = [Path(shutil.copy(FOREIGN / "bins.parquet", tmp_path / name)) for name in ("a.parquet", "b.parquet")]
    kit = scanned(DistillKitFiles(tmp_path, files, compression=options))
    assert (kit.ids, kit.lengths.tolist(), kit.kept) == (["0", "1", "2", "3"], [4, 3, 4, 3], options.k)
    for source in (kit, scanned(TopLogprobsFiles(tmp_path, answers(tmp_path)))):
        whole = read(source, 0, 4)
        pieces = [read(source, first, 1) for first in range(4)]
        assert (np.concatenate([piece.ids for piece in pieces]) == whole.ids).all()
        assert (np.concatenate([piece.logprobs for piece in pieces]) == whole.logprobs).all()
    said = [row for _, row in read_distillkit(files[0], options)]
    expected = -np.sort(-said[1].logprobs.reshape(3, -1), axis=1)
    assert (read(kit, 3, 1).logprobs == expected).all() and read(kit, 0, 1).fitted


def expecting(rows: dict[str, tuple[list[int], list[int]]], splits: list[str] | None = None) -> Expected:
    """A contract of rows id -> (tokens, mask)."""
    held = [np.array(t, "<u4").tobytes() + bytes(mask) for t, mask in rows.values()]
    names = [f"t{number}" for number in range(997)]
    return Expected(
        "made", "0" * 64, "tokens", tuple(names), list(rows), splits or ["train"] * len(rows), held.__getitem__
    )


def test_what_a_contract_scores_is_taken_in_its_order(tmp_path: Path) -> None:
    rows = {"z/1": ([0, 1, 2], [0, 1]), "w": ([9, 9], [1]), "x": ([0, 1, 2, 3], [1, 0, 1]), "y": ([0, 1, 2], [0, 1])}
    expected = expecting(rows, ["train", "train", "validation", "train"])
    source = scanned(TopLogprobsFiles(tmp_path, answers(tmp_path), expected=expected))
    assert (source.ids, source.lengths.tolist(), source.left_out) == (["z/1", "y", "x"], [1, 1, 2], 1)
    facts = source.facts()
    assert facts.splits == {"train": (2, 1), "validation": (1, 1)}
    assert facts.unknown == ("labels of 1 of 3 train sequences",)
    assert read(source, 0, 2).ids.tolist() == [[7, 3], [1, 2]]  # y goes on beyond what was sent
    said = source.read("validation", 0, 0, 1, 997)
    assert isinstance(said.said, TopLogprobs) and said.said.ids.tolist() == [[0, 1], [2, 3]]
    assert said.targets is not None and said.targets.tolist() == [1, 3]
    for number, name in enumerate(source.ids):
        row = list(rows).index(name)
        assert hashlib.sha256(expected.read(row)).digest() == source.contents[number]


def test_answers_without_the_ids_of_a_contract_are_known_by_their_tokens(tmp_path: Path) -> None:
    rows = {"one": ([0, 1, 2], [1, 0]), "another": ([0, 1, 2], [0, 1]), "third": ([0, 1, 2, 3], [1, 1, 1])}
    files = answers(tmp_path)
    source = scanned(TopLogprobsFiles(tmp_path, files[1:], expected=expecting(rows)))
    assert source.ids == ["one", "another"] and source.lengths.tolist() == [1, 1]
    assert read(source, 0, 2).ids.tolist() == [[5, 6], [7, 3]]
    with pytest.raises(DataError, match="1 stand there again, among them third"):
        scanned(TopLogprobsFiles(tmp_path, files[:1], expected=expecting(rows)))


def test_answers_about_other_tokens_or_positions_are_refused(tmp_path: Path) -> None:
    files = answers(tmp_path)
    with pytest.raises(DataError, match="token 2 is 2 there, 7 here"):
        scanned(TopLogprobsFiles(tmp_path, files, expected=expecting({"x": ([0, 1, 7, 3], [1, 1, 1])})))
    with pytest.raises(DataError, match="token 4 is none there, 5 here"):
        scanned(TopLogprobsFiles(tmp_path, files, expected=expecting({"x": ([0, 1, 2, 3, 5], [1, 1, 1, 1])})))
    files[0].write_text(files[0].read_text().replace("[0, 1], [1, 2, 3]", "null, [1, 2, 3]"))
    with pytest.raises(DataError, match="x: 1 of 2 positions"):
        scanned(TopLogprobsFiles(tmp_path, files, expected=expecting({"x": ([0, 1, 2, 3], [1, 0, 1])})))
    with pytest.raises(DataError, match="no sequence that is wanted; 4 were left out"):
        scanned(TopLogprobsFiles(tmp_path, files, expected=expecting({"w": ([9, 9], [1])})))


def test_files_that_do_not_stay_or_repeat_themselves(tmp_path: Path) -> None:
    files = answers(tmp_path)
    with pytest.raises(DataError, match="4 stand there again, among them x, y, z/0"):
        scanned(TopLogprobsFiles(tmp_path, [*files, *files]))
    source = scanned(TopLogprobsFiles(tmp_path, files))
    files[0].write_text(files[0].read_text().replace('"x"', '"w"'))
    with pytest.raises(DataError, match="changed while it was read"):
        read(source, 0, 1)
    files[0].write_text("\n")
    with pytest.raises(DataError, match="changed while it was read: nothing stands"):
        read(source, 0, 1)
    with pytest.raises(DataError, match="has 2 classes; 3 are to be kept"):
        read(scanned(TopLogprobsFiles(tmp_path, answers(tmp_path), k=3)), 0, 1)
