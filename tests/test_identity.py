"""Digests depend on what they should, and on nothing else."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.identity import canonical_json, digest, digest_array, digest_dataset, digest_state, view_seed

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), json_values, max_size=5))
def test_the_order_of_keys_does_not_matter(value: dict):
    assert digest(value) == digest(dict(reversed(value.items())))


def test_nan_has_no_canonical_form():
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json({"a": float("nan")})


def test_an_array_is_its_dtype_shape_and_values():
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert digest_array(array) == digest_array(array.astype(">f4"))
    assert digest_array(array) == digest_array(np.asfortranarray(array))
    others = [array.astype(np.float64), array.reshape(3, 2), array + 1, array.ravel()]
    assert len({digest_array(a) for a in [array, *others]}) == 5
    assert digest_array(np.float32(1).reshape(())) != digest_array(np.float32([1]))


def test_state_is_named_tensors_in_any_order():
    a, b = np.zeros(2, np.float32), np.ones(3, np.float32)
    assert digest_state({"a": a, "b": b}) == digest_state({"b": b, "a": a})
    assert digest_state({"a": a, "b": b}) != digest_state({"a": b, "b": a})


def test_a_dataset_is_its_ordered_rows():
    rows = [("x/1", "train", "00"), ("x/2", "test", "01")]
    assert digest_dataset(rows) == digest_dataset(iter(rows))
    changed = [rows[::-1], rows[:1], [rows[0], ("x/2", "train", "01")], [rows[0], ("x/2", "test", "02")]]
    assert digest_dataset(rows) not in {digest_dataset(c) for c in changed}


@given(st.integers(0, 2**31), st.text(max_size=20), st.integers(0, 1000))
def test_view_seeds_fit_a_signed_64_bit_integer(seed: int, example_id: str, view: int):
    assert 0 <= view_seed(seed, example_id, view) < 2**63


def test_view_seeds_do_not_collide_in_a_hundred_thousand():
    assert len({view_seed(0, f"x/{i}", v) for i in range(10_000) for v in range(10)}) == 100_000
