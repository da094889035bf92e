"""Progress for people at a terminal: tqdm bars and log lines, all on standard error."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm

from pipeline.progress import Bar


class TerminalProgress:
    """A bar with rate and time left when standard error is a terminal; log lines either way.

    Standard output stays free for what a command prints as its result.
    """

    @contextmanager
    def bar(self, description: str, total: int, unit: str, done: int = 0) -> Iterator[Bar]:
        """A bar of ``total`` units that clears itself when it ends; see ``pipeline.progress.Progress``."""
        bar = tqdm(
            desc=description,
            total=total,
            initial=done,
            unit=f" {unit}",
            unit_scale=total >= 10_000,
            file=sys.stderr,
            disable=not sys.stderr.isatty(),
            dynamic_ncols=True,
            leave=False,
        )
        with bar:
            yield bar

    def log(self, line: str) -> None:
        """One line, kept above any bar."""
        tqdm.write(line, file=sys.stderr)
        sys.stderr.flush()
