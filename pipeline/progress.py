"""How long work tells about itself: a bar and a log line. The stages pass tqdm in; the library itself is silent."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Bar(Protocol):
    """A running count."""

    def update(self, n: int = 1, /) -> object:
        """Count ``n`` more units."""


class Progress(Protocol):
    """What a stage's ``run`` reports to."""

    def bar(self, description: str, total: int, unit: str, done: int = 0) -> AbstractContextManager[Bar]:
        """A context manager around a bar of ``total`` units, ``done`` of which were there before."""

    def log(self, line: str) -> None:
        """One line for people, kept above any bar."""


class _NoBar:
    def update(self, n: int = 1, /) -> object:
        return None


class Silent:
    """Reports nothing: the default for callers from Python."""

    @contextmanager
    def bar(self, description: str, total: int, unit: str, done: int = 0) -> Iterator[Bar]:
        yield _NoBar()

    def log(self, line: str) -> None:
        return None
