"""How a distribution is kept: ``dense`` (all logits), ``topk`` (the largest, and the mass of the rest), ``sampled``.

One file per encoding; ``base`` holds the contract that they all keep. A cache describes its encoding in its
manifest, and ``parse`` knows the names; nothing is ever imported by a name that a cache gives.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from pipeline.encodings.base import KEPT, Arrays, ArraySpec, Encoding, Keys
from pipeline.encodings.dense import Dense
from pipeline.encodings.drawing import keys_of, position_keys
from pipeline.encodings.sampled import Sampled
from pipeline.encodings.topk import TopK
from pipeline.errors import EncodingError

NAMES = (Dense.name, TopK.name, Sampled.name)

__all__ = [
    "KEPT",
    "NAMES",
    "ArraySpec",
    "Arrays",
    "Dense",
    "Encoding",
    "Keys",
    "Sampled",
    "TopK",
    "keys_of",
    "make",
    "parse",
    "position_keys",
]


def make(
    name: str,
    *,
    dtype: str = "float32",
    k: int | None = None,
    temperatures: Sequence[float] = (1.0,),
    **drawing: Any,
) -> Encoding:
    """The encoding that a command's options name. ``k`` and ``temperatures`` concern top-k alone, and ``drawing``, the
    fields of ``Sampled``, sampled labels alone.

    >>> make("topk", dtype="float16", k=8, temperatures=[4, 1]).describe()
    {'name': 'topk', 'k': 8, 'dtype': 'float16', 'temperatures': [1.0, 4.0]}

    Raises EncodingError naming the choices.
    """
    if name == Dense.name:
        return Dense(dtype)
    if name == TopK.name:
        if k is None:
            raise EncodingError("top-k needs k, the number of classes to keep in each row")
        return TopK(k, dtype, tuple(temperatures))
    if name == Sampled.name:
        return Sampled(**drawing)
    raise EncodingError(f"the encoding should be {', '.join(NAMES)}; found {name!r}")


def parse(description: Mapping[str, Any]) -> Encoding:
    """The encoding that ``Encoding.describe`` described.

    Raises EncodingError when the name is unknown, or a parameter is missing, surplus or wrong.
    """
    if not isinstance(description, Mapping) or not isinstance(description.get("name"), str):
        raise EncodingError(f"an encoding is described by its name and parameters; found {description!r}")
    wanted = {
        Dense.name: {"dtype"},
        TopK.name: {"dtype", "k", "temperatures"},
        Sampled.name: {field.name for field in fields(Sampled)},
    }
    name = description["name"]
    if name not in wanted:
        raise EncodingError(f"this release knows the encodings {', '.join(NAMES)}; found {name!r}")
    given = {key: value for key, value in description.items() if key != "name"}
    if given.keys() != wanted[name]:
        raise EncodingError(
            f"encoding {name} should have the parameters {', '.join(sorted(wanted[name]))}; "
            f"found {', '.join(sorted(map(str, given))) or 'none'}"
        )
    if not isinstance(given.get("dtype", ""), str) or not isinstance(given.get("temperatures", []), (list, tuple)):
        raise EncodingError(f"the parameters of encoding {name} have the wrong type: {given!r}")
    return make(name, **given)
