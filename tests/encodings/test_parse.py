"""Making encodings from options and from a manifest."""

from __future__ import annotations

import pytest

from pipeline.encodings import Dense, TopK, make, parse
from pipeline.errors import EncodingError


def test_options_make_each_encoding() -> None:
    assert make("dense", dtype="int8", k=5) == Dense("int8")
    assert make("topk", dtype="float16", k=5, temperatures=[4, 1]) == TopK(5, "float16", (1.0, 4.0))


def test_an_unknown_name_is_refused_naming_the_choices() -> None:
    with pytest.raises(EncodingError, match="dense or topk; found 'sampled'"):
        make("sampled")
    with pytest.raises(EncodingError, match="dense and topk; found 'sampled'"):
        parse({"name": "sampled", "draws": 50})


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
        "dense",
    ],
)
def test_a_description_that_is_wrong_is_refused(description: object) -> None:
    with pytest.raises(EncodingError):
        parse(description)  # type: ignore[arg-type]
