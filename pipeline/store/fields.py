"""Taking values out of JSON that strangers wrote: each of the type and size that it should be, or an error by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pipeline.errors import CacheCorruptError

MOST_CLASSES, MOST_ENTRIES, MOST_PARTS = 2**31 - 1, 2**48, 10_000_000
"""Beyond these a manifest is taken for damaged, before memory is asked for."""

T = TypeVar("T")


def shown(value: Any) -> str:
    """A value for a message, however long it is."""
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


class Fields:
    """Takes values out of a manifest, and says what is wrong with those that cannot be."""

    def __init__(self, where: str) -> None:
        self.where = where

    def fail(self, what: str) -> CacheCorruptError:
        """The error for a manifest that cannot be right."""
        return CacheCorruptError(f"{self.where} contradicts itself: {what}. Fetch the cache again, or dump again")

    def get(self, place: Mapping[str, Any], name: str, wanted: type[T]) -> T:
        """``place[name]``, found to be a ``wanted``."""
        value = place.get(name)
        if not isinstance(value, wanted) or isinstance(value, bool):
            raise self.fail(f"{name} should be of type {wanted.__name__}; found {shown(value)}")
        return value

    def count(self, place: Mapping[str, Any], name: str, least: int, most: int) -> int:
        """A whole number of a sensible size."""
        value = self.get(place, name, int)
        if not least <= value <= most:
            raise self.fail(f"{name} should lie between {least:,} and {most:,}; found {shown(value)}")
        return value
