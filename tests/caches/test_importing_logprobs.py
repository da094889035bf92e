"""Top-logprobs of served teachers: every shape gives the sequence and the distributions that were put into it."""

from __future__ import annotations

import hashlib
import json
import struct
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from pipeline.caches.importing.logprobs import Scored, TopLogprobs, encode, fewest, narrowed
from pipeline.caches.importing.served import read_toplogprobs
from pipeline.caches.importing.vocabulary import Vocabulary, byte_level
from pipeline.encodings import TopK
from pipeline.errors import DataError, EncodingError

TEXTS = ["a", " b", "c", "dd", "\n", "\N{LATIN SMALL LETTER E WITH ACUTE}", "a", "<end>"]
WORDS = Vocabulary(TEXTS)
PROMPT, ANSWER = [1, 2, 3], [4, 5]
# What is said of each token but the first: of the prompt's, then of the answer's.
SAID = [{2: -0.5, 4: -1.5}, {3: -0.1, 1: -3.0}, {4: -0.7, 2: -0.9}, {5: -0.2, 3: -2.0, 1: -9999.0}]


def write(path: Path, *values: Any) -> Path:
    path.write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")
    return path


def said_of(scored: Scored) -> dict[int, dict[int, float]]:
    """Position -> {id: logprob}."""
    ends = np.cumsum(scored.counts)
    return {
        int(position): dict(
            zip(scored.ids[end - count : end].tolist(), scored.logprobs[end - count : end], strict=True)
        )
        for position, count, end in zip(scored.positions, scored.counts, ends, strict=True)
    }


def named(token: int) -> str:
    return TEXTS[token]


def as_id(token: int) -> str:
    return f"token_id:{token}"


def prompt_logprobs() -> list[Any]:
    ranked = [{str(t): {"logprob": v, "rank": n + 1} for n, (t, v) in enumerate(s.items())} for s in SAID[:2]]
    return [None, *ranked]


def chat(name: Any) -> dict[str, Any]:
    def item(token: int, value: float) -> dict[str, Any]:
        return {"token": name(token), "logprob": value, "bytes": None}

    content = [
        {**item(token, said[token]), "top_logprobs": [item(t, v) for t, v in said.items()]}
        for token, said in zip(ANSWER, SAID[2:], strict=True)
    ]
    return {"index": 0, "message": {"role": "assistant", "content": "..."}, "logprobs": {"content": content}}


def completion(name: Any, tokens: list[int], said: list[Any]) -> dict[str, Any]:
    tops = [None if s is None else {name(t): v for t, v in s.items()} for s in said]
    return {
        "index": 0,
        "text": "...",
        "logprobs": {
            "tokens": [name(t) for t in tokens],
            "token_logprobs": [],
            "text_offset": [],
            "top_logprobs": tops,
        },
    }


OWN = {
    "id": "x",
    "token_ids": PROMPT + ANSWER,
    "top_ids": [list(said) for said in SAID],
    "top_logprobs": [list(said.values()) for said in SAID],
}
WHOLE = {
    "own": OWN,
    "vllm chat, prompt and answer": {
        "id": "x",
        "prompt_logprobs": prompt_logprobs(),
        "prompt_token_ids": PROMPT,
        "choices": [chat(as_id)],
    },
    "vllm completion, prompt and answer": {
        "id": "x",
        "choices": [
            {
                **completion(as_id, ANSWER, SAID[2:]),
                "prompt_logprobs": prompt_logprobs(),
                "prompt_token_ids": PROMPT,
                "token_ids": ANSWER,
            }
        ],
    },
    "completion with echo, as texts": {"id": "x", "choices": [completion(named, PROMPT + ANSWER, [None, *SAID])]},
    "vllm completion with echo and ids": {
        "id": "x",
        "choices": [
            {
                **completion(as_id, PROMPT + ANSWER, [None, *SAID]),
                "prompt_token_ids": PROMPT,
                "token_ids": ANSWER,
            }
        ],
    },
}


@pytest.mark.parametrize("shape", WHOLE)
def test_a_whole_sequence_in_every_shape(tmp_path: Path, shape: str) -> None:
    ((_, found),) = read_toplogprobs(write(tmp_path / "a.jsonl", WHOLE[shape]), WORDS)
    assert found.id == "x" and found.token_ids.tolist() == PROMPT + ANSWER
    assert said_of(found) == dict(enumerate(SAID))


@pytest.mark.parametrize("name", [named, as_id])
@pytest.mark.parametrize("shape", ["chat", "completion"])
def test_an_answer_after_a_known_prompt(tmp_path: Path, shape: str, name: Any) -> None:
    choice = chat(name) if shape == "chat" else completion(name, ANSWER, SAID[2:])
    body = {"id": "srv-1", "choices": [choice]}
    batch = {"id": "b", "custom_id": "x", "error": None, "response": {"status_code": 200, "body": body}}
    lines = [
        {**body, "id": "x", "prompt_token_ids": PROMPT},
        {"id": "x", "request": {"prompt": PROMPT}, "response": body},
        {**batch, "request": {"body": {"prompt": PROMPT}}},
    ]
    for _, found in read_toplogprobs(write(tmp_path / "a.jsonl", *lines), WORDS):
        assert (found.id, found.token_ids.tolist()) == ("x", PROMPT + ANSWER)
        assert said_of(found) == {2: SAID[2], 3: SAID[3]}


def test_several_choices_are_several_examples_and_a_prompt_alone_is_one(tmp_path: Path) -> None:
    two = {"id": 7, "prompt_token_ids": PROMPT, "choices": [chat(as_id), chat(as_id)]}
    alone = {"id": "p", "choices": [{"text": "", "prompt_logprobs": prompt_logprobs(), "prompt_token_ids": PROMPT}]}
    found = [scored for _, scored in read_toplogprobs(write(tmp_path / "a.jsonl", two, alone), WORDS)]
    assert [scored.id for scored in found] == ["7/0", "7/1", "p"]
    assert said_of(found[2]) == dict(enumerate(SAID[:2])) and found[2].token_ids.tolist() == PROMPT


def test_what_was_not_scored_is_left_out(tmp_path: Path) -> None:
    gap = {**OWN, "top_ids": [[2], None, None, [5]], "top_logprobs": [[-0.5], None, None, [-0.2]]}
    ((_, found),) = read_toplogprobs(write(tmp_path / "a.jsonl", gap))
    assert said_of(found) == {0: {2: -0.5}, 3: {5: -0.2}}


def changed(record: Any, **values: Any) -> str:
    return json.dumps({**record, **values})


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "one JSON object"),
        ("[" * 100_000, "one JSON object"),
        ("[]", "an object was expected"),
        ("{}", "choices should be a list"),
        (changed(OWN, id=None), "an example should have an id"),
        (changed(OWN, token_ids=[1, 2]), "5 tokens|2 tokens"),
        (changed(OWN, token_ids=[1, 2, 3, True, 5]), "token ids; found True"),
        (changed(OWN, token_ids=[1, 2, 3, 2**40, 5]), "token ids"),
        (changed(OWN, top_ids=[[2], [3, 1], [4, 2], [5, 3, 1]]), "1 ids and 2"),
        (changed(OWN, top_logprobs=[[0.5, 0], [0, 0], [0, 0], [0, 0, 0]]), "0 or less; found 0.5"),
        (changed(OWN, top_logprobs=[[float("nan"), 0], [0, 0], [0, 0], [0, 0, 0]]), "0 or less; found nan"),
        (changed(OWN, top_logprobs=[["-1", 0], [0, 0], [0, 0], [0, 0, 0]]), "0 or less"),
        (changed(OWN, top_ids=[None] * 4), "no position is scored"),
        (json.dumps({"id": "x", "choices": [chat(named)]}), "whose tokens are needed.*return_token_ids"),
        (json.dumps({"id": "x", "response": {"status_code": 500, "body": {}}}), "this request failed"),
        (
            json.dumps({"id": "x", "choices": [{"prompt_logprobs": prompt_logprobs()}]}),
            "needs prompt_token_ids",
        ),
        (
            json.dumps({"id": "x", "choices": [{"prompt_logprobs": [None, {"a": {}}], "prompt_token_ids": [1, 2]}]}),
            "token ids as its keys",
        ),
    ],
)
def test_a_line_that_cannot_be_read_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(OWN) + "\n\n" + line + "\n")
    with pytest.raises(DataError, match=rf"line 3[: ](?s:.)*({message})"):
        list(read_toplogprobs(path, WORDS))


@pytest.mark.parametrize(
    ("token", "exact", "message"),
    [
        ("a", None, r"any of the ids \[0, 6\].*return_tokens_as_token_ids"),
        ("zzz", None, "no token of this vocabulary of 8 decodes to 'zzz'. Is it this teacher's"),
        ("\N{REPLACEMENT CHARACTER}", None, "holds part of a character"),
        ("token_id:8", None, "below 8"),
        ("token_id:" + "9" * 5000, None, "below 8"),
        (" b", [300], "0 to 255"),
        (" b", "b", "0 to 255"),
    ],
)
def test_tokens_that_say_nothing_are_refused(token: str, exact: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        WORDS.id_of(token, exact)


def test_texts_need_a_vocabulary(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", WHOLE["completion with echo, as texts"])
    with pytest.raises(DataError, match="tokenizer says"):
        list(read_toplogprobs(path))


def test_bytes_tell_parts_of_a_character_apart() -> None:
    pieces = ["\N{LATIN CAPITAL LETTER A WITH TILDE}", "\N{COPYRIGHT SIGN}"]
    pieces.append("\N{LATIN CAPITAL LETTER G WITH DOT ABOVE}x")
    tokenizer = Tokenizer(models.BPE({piece: n for n, piece in enumerate(pieces)}, []))
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<end>"])
    words = Vocabulary.of(tokenizer)
    assert words.size == 4 and byte_level(pieces[0]) == b"\xc3"
    lost = tokenizer.decode([0])
    assert lost == "\N{REPLACEMENT CHARACTER}"
    assert [words.id_of(lost, [0xC3]), words.id_of(lost, [0xA9]), words.id_of(" x"), words.id_of("<end>")] == [
        0,
        1,
        2,
        3,
    ]
    with pytest.raises(DataError, match="part of a character"):
        words.id_of(lost)
    with pytest.raises(DataError, match="part of a character"):  # vLLM's bytes are those of the text
        words.id_of(lost, list(lost.encode()))


def teacher(rows: int = 6, classes: int = 50, sharpest: float = 8.0) -> np.ndarray:
    logits = np.random.default_rng(5).standard_normal((rows, classes)) * np.linspace(0.5, sharpest, rows)[:, None]
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_labels_are_those_of_the_whole_distribution(dtype: str, temperature: float) -> None:
    logprobs = teacher()
    rng = np.random.default_rng(1)
    ids = np.argsort(-logprobs, axis=1)[:, :7]
    ids = rng.permuted(ids, axis=1)
    encoding = TopK(7, dtype, (temperature,))
    made = encode(TopLogprobs(ids, np.take_along_axis(logprobs, ids, axis=1)), 50, encoding)
    soft = encoding.decode(made.arrays, 50)
    kept, residual = soft.at(temperature)
    assert (np.diff(soft.ids, axis=1) > 0).all() and (soft.logits.max(axis=1) == 0).all()
    off = np.abs(np.exp(kept) - np.exp(np.take_along_axis(logprobs, soft.ids, axis=1)))
    assert off.max() <= made.bound < (1e-5 if dtype == "float32" else 2e-3)
    dropped = np.exp(logprobs)
    np.put_along_axis(dropped, soft.ids, 0, axis=1)
    np.testing.assert_allclose(residual, np.log(dropped.sum(axis=1)), rtol=2e-6)
    assert (made.scaled, made.excess) == (0, 0.0)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_in_few_bits_too(dtype: str, temperature: float) -> None:
    logprobs = teacher(40)
    ids = np.argsort(-logprobs, axis=1)[:, :7]
    encoding = TopK(7, dtype, (temperature,))
    made = encode(TopLogprobs(ids, np.take_along_axis(logprobs, ids, axis=1)), 50, encoding)
    soft = encoding.decode(made.arrays, 50)
    kept, residual = (np.exp(each.astype(np.float64)) for each in soft.at(temperature))
    assert (soft.ids == np.sort(ids, axis=1)).all()
    off = np.abs(kept - np.exp(np.take_along_axis(logprobs, soft.ids, axis=1))).max()
    assert 1e-4 < off <= made.bound < (0.02 if dtype == "int8" else 0.2)
    np.testing.assert_allclose(kept.sum(axis=1) + residual, 1, atol=1e-6)
    dropped = np.exp(logprobs)
    np.put_along_axis(dropped, soft.ids, 0, axis=1)
    np.testing.assert_allclose(residual, dropped.sum(axis=1), atol=1e-3)
    # A sum above 1, as a server rounds: scaled down, counted, and within the bound.
    above = encode(TopLogprobs(np.array([[3, 1]]), np.log([[0.7, 0.304]])), 9, TopK(2, dtype, (temperature,)))
    found = np.exp(TopK(2, dtype, (temperature,)).decode(above.arrays, 9).at(temperature)[0])[0]
    assert above.scaled == 1 and np.abs(found - [0.304, 0.7]).max() <= above.bound


def test_a_residual_far_below_a_rounding_of_one() -> None:
    tail = 1e-9
    made = encode(TopLogprobs(np.array([[3, 1]]), np.array([[np.log1p(-tail), -40.0]])), 9, TopK(2))
    assert made.arrays["log_residual"][0, 0] == pytest.approx(np.log(tail - np.exp(-40)), rel=1e-6)


def test_sums_above_one_are_scaled_down_and_counted() -> None:
    above = np.log(np.array([[0.6, 0.403], [0.5, 0.4], [0.75, 0.25]]))
    encoding = TopK(2)
    made = encode(TopLogprobs(np.array([[1, 2]] * 3), above), 9, encoding)
    kept, residual = encoding.decode(made.arrays, 9).at(1.0)
    assert made.scaled == 1 and made.excess == pytest.approx(0.003)
    np.testing.assert_allclose(np.exp(kept).sum(axis=1), [1.0, 0.9, 1.0], rtol=1e-6)
    assert np.isfinite(residual).all() and np.exp(residual[0]) == 0 and residual[1] == pytest.approx(np.log(0.1))
    assert np.abs(np.exp(kept) - np.exp(above)).max() <= made.bound
    far = TopLogprobs(np.array([[1, 2]] * 2), np.log([[0.5, 0.4], [0.62, 0.4]]))
    with pytest.raises(EncodingError, match=r"come to 1\.02") as error:
        encode(far, 9, encoding)
    assert error.value.row == 1
    assert encode(replace(far, fitted=True), 9, encoding).excess == pytest.approx(0.02)


def test_all_classes_leave_no_residual_and_none_no_rows() -> None:
    logprobs = teacher(classes=4)
    made = encode(TopLogprobs(np.tile(np.arange(4), (6, 1)), logprobs), 4, TopK(4))
    assert np.isneginf(made.arrays["log_residual"]).all()
    empty = encode(TopLogprobs(np.empty((0, 4), np.int64), np.empty((0, 4))), 9, TopK(4))
    assert {name: len(array) for name, array in empty.arrays.items()} == dict.fromkeys(empty.arrays, 0)


def test_a_class_that_is_not_among_the_largest_may_be_kept() -> None:
    # vLLM adds the token of the text: the residual may be larger than any number of the smallest kept class.
    logprobs = np.log(np.array([[0.5, 1e-6]]))
    soft = TopK(2).decode(encode(TopLogprobs(np.array([[4, 8]]), logprobs), 9, TopK(2)).arrays, 9)
    assert np.exp(soft.at(1.0)[1]) == pytest.approx(0.5 - 1e-6)


@pytest.mark.parametrize(
    ("ids", "logprobs", "message"),
    [
        ([0, 9], [-1.0, -2.0], "below 9"),
        ([-1, 2], [-1.0, -2.0], "below 9"),
        ([2, 2], [-1.0, -2.0], "once"),
        ([1, 2], [np.nan, -2.0], "finite"),
        ([1, 2], [0.1, -2.0], "0 or less"),
        ([1, 2], [-np.inf, -np.inf], "finite"),
    ],
)
def test_impossible_labels_name_their_row(ids: list[int], logprobs: list[float], message: str) -> None:
    good = ([0, 1], [-1.0, -1.0])
    with pytest.raises(EncodingError, match=message) as error:
        encode(TopLogprobs(np.array([good[0], ids]), np.array([good[1], logprobs])), 9, TopK(2))
    assert error.value.row == 1


def test_uneven_positions_keep_the_largest_and_the_rest_joins_the_residual(tmp_path: Path) -> None:
    ((_, scored),) = read_toplogprobs(write(tmp_path / "a.jsonl", OWN))
    assert fewest(scored) == 2
    kept = narrowed(scored, 2)
    assert kept.ids.tolist() == [[2, 4], [3, 1], [4, 2], [5, 3]]
    one = narrowed(scored, 1)
    assert one.ids[:, 0].tolist() == [2, 3, 4, 5] and one.logprobs[:, 0].tolist() == [-0.5, -0.1, -0.7, -0.2]
    residual = np.exp(TopK(1).decode(encode(one, 9, TopK(1)).arrays, 9).at(1.0)[1])
    np.testing.assert_allclose(residual, 1 - np.exp(one.logprobs[:, 0]), rtol=1e-6)
    with pytest.raises(EncodingError, match="position 0 of x has 2 classes; 3 are to be kept"):
        narrowed(scored, 3)


def test_what_a_contract_scores_is_picked_and_its_content_known() -> None:
    counts = np.array([2, 1, 3])
    scored = Scored("x", np.array([5, 6, 7, 8, 9]), np.array([0, 2, 3]), counts, np.arange(6), -np.arange(1.0, 7.0))
    picked = scored.at(np.array([0, 3]))
    assert said_of(picked) == {0: {0: -1.0, 1: -2.0}, 3: {3: -4.0, 4: -5.0, 5: -6.0}}
    assert picked.content == hashlib.sha256(struct.pack("<5I", 5, 6, 7, 8, 9) + bytes([1, 0, 0, 1])).digest()
    for absent in ([1], [0, 4]):
        with pytest.raises(DataError, match=f"x: 1 of {len(absent)} positions .* the first of them {absent[-1]}"):
            scored.at(np.array(absent))


KEYS = ["id", "choices", "logprobs", "content", "tokens", "top_logprobs", "prompt_logprobs", "token", "bytes", "3"]
TREES = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 99) | st.floats() | st.sampled_from(["a", "token_id:3", "7", ""]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=6),
    max_leaves=20,
)


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) within a value."""
    if not isinstance(value, dict | list):
        return []
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    return [(value, key) for key in keys] + [place for key in keys for place in places(value[key])]


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(sorted(WHOLE)), st.lists(st.tuples(st.integers(0), TREES), min_size=1, max_size=3))
def test_any_change_to_a_record_is_an_error_of_ours_or_sound(shape: str, changes: list[tuple[int, Any]]) -> None:
    record = json.loads(json.dumps(WHOLE[shape]))
    for number, value in changes:
        found = places(record)
        container, key = found[number % len(found)]
        container[key] = json.loads(json.dumps(value))
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file:
        file.write(json.dumps(record))
        file.flush()
        try:
            read = list(read_toplogprobs(Path(file.name), WORDS))
        except DataError:
            return
    for _, scored in read:
        assert scored.counts.sum() == len(scored.ids) == len(scored.logprobs) and scored.counts.min() > 0
        assert scored.positions.min() >= 0 and scored.positions.max() < len(scored.token_ids) - 1
        assert (scored.logprobs <= 0).all() and np.isfinite(scored.logprobs).all()
