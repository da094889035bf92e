"""Tokenizers: any text comes back, bytes add up, equal text gives an equal vocabulary, and files are only data."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.datasets.tokens.tokenizer import END, Tokenizer, open_tokenizer, train_tokenizer
from pipeline.errors import ConfigError, DataError, MissingDependencyError

library = pytest.importorskip("tokenizers")

TEXTS = ["def f(x):\n    return x + 1\n" * 3, "naïve 日本 🙂 text, the text", "the the the the"]


@pytest.fixture(scope="module")
def trained() -> Tokenizer:
    return train_tokenizer(TEXTS, 290)


@given(text=st.text(st.characters(blacklist_categories=("Cs",)), max_size=60))
def test_any_text_comes_back_and_its_bytes_add_up(trained: Tokenizer, text: str) -> None:
    (found,) = trained.encode([text])
    assert trained.decode(found.ids.tolist()) == text
    assert int(found.bytes.sum()) == len(text.encode()) and (found.bytes >= 1).all()


def test_the_vocabulary(trained: Tokenizer) -> None:
    assert trained.tokens[0] == END and trained.end == 0 and len(trained.tokens) == 290 == len(set(trained.tokens))
    assert trained.name == f"bpe-290 ({trained.digest[:12]})"


def test_an_end_that_is_written_in_a_text_is_text(trained: Tokenizer) -> None:
    (found,) = trained.encode([f"a{END}b"])
    assert trained.end not in found.ids and trained.decode(found.ids.tolist()) == f"a{END}b"


def test_equal_texts_give_an_equal_tokenizer_on_any_number_of_threads(trained: Tokenizer) -> None:
    code = (
        "import sys, json; from pipeline.datasets.tokens.tokenizer import train_tokenizer\n"
        "print(train_tokenizer(json.loads(sys.argv[1]), 290).digest)"
    )
    for threads in ("1", "3"):
        done = subprocess.run(
            [sys.executable, "-c", code, json.dumps(TEXTS)],
            env={**os.environ, "RAYON_NUM_THREADS": threads, "PYTHONHASHSEED": threads},
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert done.stdout.strip() == trained.digest


def test_a_text_that_is_too_small_gives_fewer_tokens() -> None:
    assert len(train_tokenizer(["ab"], 300).tokens) == 258


def save(path: Path, tokenizer: Any) -> str:
    tokenizer.save(str(path))
    return str(path)


def words(**options: Any) -> Any:
    """A tokenizer of words, in lower case: neither byte-level nor reversible."""
    vocabulary = {"[UNK]": 0, "straße": 1, "the": 2, "is": 3, "</s>": 5}
    found = library.Tokenizer(library.models.WordLevel(vocabulary, unk_token="[UNK]"))
    found.normalizer = library.normalizers.Lowercase()
    found.pre_tokenizer = library.pre_tokenizers.Whitespace()
    return found


def test_bytes_of_a_tokenizer_that_is_not_byte_level_add_up(tmp_path: Path) -> None:
    found = open_tokenizer(save(tmp_path / "tokenizer.json", words()))
    assert found.end == 5 and found.tokens[4] == "<unused 4>" and found.kind == "wordlevel"
    (encoded,) = found.encode(["The  Straße is\tlong "])
    assert encoded.ids.tolist() == [2, 1, 3, 0]
    assert encoded.bytes.tolist() == [3, 9, 3, 6]
    assert [item.bytes.tolist() for item in found.encode(["", "  "])] == [[], []]


def test_by_file_or_folder_and_padding_in_the_file_is_ignored(tmp_path: Path, trained: Tokenizer) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "tokenizer.json").write_text(trained.json)
    other = library.Tokenizer.from_str(trained.json)
    other.enable_truncation(2)
    other.enable_padding(length=99)
    found = open_tokenizer(save(tmp_path / "named.json", other))
    assert found.digest == open_tokenizer(str(tmp_path / "one")).digest == trained.digest
    assert found.encode(["some text"])[0].ids.tolist() == trained.encode(["some text"])[0].ids.tolist()


def test_more_classes_than_tokens(tmp_path: Path, trained: Tokenizer) -> None:
    (tmp_path / "t.json").write_text(trained.json)
    found = open_tokenizer(str(tmp_path / "t.json"), size=320)
    assert len(found.tokens) == 320 and found.tokens[319] == "<unused 319>" and found.tokens[:290] == trained.tokens
    with pytest.raises(ConfigError, match="at least the 290 tokens of the tokenizer; found 289"):
        open_tokenizer(str(tmp_path / "t.json"), size=289)


def test_the_end_token_is_known_or_named(tmp_path: Path) -> None:
    plain = library.Tokenizer(library.models.WordLevel({"a": 0, "stop": 1}, unk_token="a"))
    path = save(tmp_path / "t.json", plain)
    assert open_tokenizer(path, end="stop").end == 1
    with pytest.raises(ConfigError, match="none of the tokens that usually end a text"):
        open_tokenizer(path)
    with pytest.raises(ConfigError, match="'halt' is no token of the tokenizer"):
        open_tokenizer(path, end="halt")


@pytest.mark.parametrize(
    "text", ["", "{}", "[1]", '{"model": {"type": "BPE"}}', "[" * 100_000, "\x00", '{"model": 1e999}']
)
def test_a_file_that_is_no_tokenizer_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "t.json").write_text(text)
    with pytest.raises(DataError, match=r"t\.json cannot be read as a tokenizer\.json"):
        open_tokenizer(str(tmp_path / "t.json"))
    (tmp_path / "t.json").write_bytes(b"\xff")
    with pytest.raises(DataError, match=r"t\.json cannot be read as a tokenizer\.json"):
        open_tokenizer(str(tmp_path / "t.json"))


BIG = """{{"version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
"pre_tokenizer": null, "post_processor": null, "decoder": null,
"model": {{"type": "{}", "vocab": {}, "merges": []}}}}"""


@pytest.mark.parametrize("vocabulary", ['{"a": 4000000000, "</s>": 1}', '{"a": -1}', '{"a": "1"}', '{"a": 1e9}'])
def test_ids_that_would_take_all_memory_are_refused_before_the_library_sees_them(
    tmp_path: Path, vocabulary: str
) -> None:
    (tmp_path / "t.json").write_text(BIG.format("BPE", vocabulary))
    with pytest.raises(DataError, match="token ids should be whole numbers from 0 to 16777215"):
        open_tokenizer(str(tmp_path / "t.json"))
    (tmp_path / "t.json").write_text(BIG.format("BPE", '{"a": 0, "</s>": 1}'))
    assert open_tokenizer(str(tmp_path / "t.json")).end == 1


def test_no_file_and_no_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="there is no file"):
        open_tokenizer(str(tmp_path / "nowhere.json"))
    with pytest.raises(DataError, match=r"--tokenizer nobody/nothing cannot be read as a tokenizer\.json"):
        open_tokenizer("nobody/nothing")  # tests are offline
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'softlabels\[lm\]'"):
        train_tokenizer(["a"], 300)


def test_lengths_agree(trained: Tokenizer) -> None:
    found = trained.encode(TEXTS)
    assert all(np.shape(item.ids) == np.shape(item.bytes) for item in found)
