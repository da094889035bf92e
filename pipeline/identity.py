"""What makes a cache the right one: digests over teacher, data, views and encoding.

A digest is a hex sha256. Canonical JSON (sorted keys, no spaces, no NaN) makes the digest of a description
independent of how it was built.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

SPLITS = ("train", "validation", "test")
"""The splits of a dataset, in the order in which a cache holds them."""


def canonical_json(value: Any) -> bytes:
    """UTF-8 JSON with one spelling per value: sorted keys, no spaces.

    >>> canonical_json({"b": 1, "a": (1.5, None)})
    b'{"a":[1.5,null],"b":1}'

    Raises ValueError on NaN and infinities, TypeError on what JSON cannot hold.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False).encode()


def digest(value: Any) -> str:
    """sha256 of the canonical JSON of ``value``.

    >>> digest({"a": 1})[:12]
    '015abd7f5cc5'
    """
    return hashlib.sha256(canonical_json(value)).hexdigest()


def digest_bytes(data: bytes | memoryview) -> str:
    """sha256 of ``data``."""
    return hashlib.sha256(data).hexdigest()


def digest_array(array: np.ndarray[Any, Any]) -> str:
    """sha256 of an array's dtype, shape and little-endian C-ordered bytes."""
    array = np.asarray(array)
    little = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("<"), copy=False))
    head = f"{little.dtype.str}{tuple(array.shape)}".encode()
    return hashlib.sha256(head + little.tobytes()).hexdigest()


def digest_state(state: Mapping[str, np.ndarray[Any, Any]]) -> str:
    """sha256 over a model's tensors in the order of their names: the identity of its weights."""
    total = hashlib.sha256()
    for name in sorted(state):
        total.update(f"{name}\0{digest_array(state[name])}\n".encode())
    return total.hexdigest()


def digest_dataset(rows: Iterable[tuple[str, str, str]]) -> str:
    """sha256 over ordered (example_id, split, content digest): the identity of a dataset.

    Hard labels are left out on purpose: a corrected label does not make a teacher's opinion stale.
    """
    total = hashlib.sha256()
    for example_id, split, content in rows:
        total.update(f"{example_id}\0{split}\0{content}\n".encode())
    return total.hexdigest()


def view_seed(dump_seed: int, example_id: str, view: int) -> int:
    """The seed of one view of one example, in [0, 2**63): a pure function of its three arguments.

    >>> view_seed(0, "train/7", 1) == view_seed(0, "train/7", 1) != view_seed(0, "train/7", 2)
    True
    """
    head = hashlib.sha256(f"{dump_seed}\0{example_id}\0{view}".encode()).digest()
    return int.from_bytes(head[:8], "little") >> 1


def short(hexdigest: str) -> str:
    """The first 12 characters of a digest, for people.

    >>> short("015abd7f5cc57a2dd94b7590f04ad8084273905ee33ec5cebeae62276a97f862")
    '015abd7f5cc5'
    """
    return hexdigest[:12]
