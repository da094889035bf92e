"""Making encodings from options and from a manifest."""

from __future__ import annotations

import pytest

from pipeline.encodings import Dense, Sampled, TopK, make, parse
from pipeline.errors import EncodingError


def test_options_make_each_encoding() -> None:
    assert make("dense", dtype="int8", k=5) == Dense("int8")
    assert make("topk", dtype="float16", k=5, temperatures=[4, 1]) == TopK(5, "float16", (1.0, 4.0))
    assert make("sampled", n=9, proposal=0.5, temperature=2) == Sampled(9, 0.5, 2.0)


def test_an_unknown_name_is_refused_naming_the_choices() -> None:
    with pytest.raises(EncodingError, match="dense, topk, sampled; found 'int3'"):
        make("int3")
    with pytest.raises(EncodingError, match="dense, topk, sampled; found 'int3'"):
        parse({"name": "int3", "bits": 3})


def test_topk_asks_for_k() -> None:
    with pytest.raises(EncodingError, match="needs k"):
        make("topk")


@pytest.mark.parametrize(
    "description",
    [
        {},
        {"name": 3},
        {"name": "dense"},
        {"name": "dense", "dtype": ["float32"]},
        {"name": "dense", "dtype": "float32", "scale": 2},
        {"name": "topk", "dtype": "float32", "k": 3},
        {"name": "topk", "dtype": "float32", "k": "3", "temperatures": [1.0]},
        {"name": "topk", "dtype": "float32", "k": 3, "temperatures": 1.0},
        {"name": "topk", "dtype": "float32", "k": 3, "temperatures": "14"},
        {"name": "sampled", "n": 50},
        {**Sampled().describe(), "n": "50"},
        {**Sampled().describe(), "scheme": ["systematic"]},
        {**Sampled().describe(), "proposal": None},
        {**Sampled().describe(), "dtype": "float16"},
        "dense",
    ],
)
def test_a_description_that_is_wrong_is_refused(description: object) -> None:
    with pytest.raises(EncodingError):
        parse(description)  # type: ignore[arg-type]
