"""Files fetched before they are read, by a few threads, so that the time a server takes to answer is not waited out.

All streams of one cache share a queue. Threads start when there is something to fetch, and end when there is not.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterable, Mapping

from pipeline.store.files import Ahead
from pipeline.store.parts import FileRecord

THREADS = 4
NAME = "softlabels-fetch"


class FetchQueue:
    """What ``fetch(path)`` is called for, in the order of asking, by at most ``threads`` threads.

    Nothing is, where all that is asked for ``is_there``.
    Of the files ``records``, at most ``most_bytes`` are fetched and not read yet; others are left to their reader. An
    error is raised once, by ``turn`` of the reader who needs the file.
    """

    def __init__(
        self,
        fetch: Callable[[str], None],
        is_there: Callable[[str], bool],
        records: Mapping[str, FileRecord],
        most_bytes: int,
        threads: int = THREADS,
    ) -> None:
        self._is_there = is_there
        self._fetch, self._records, self._most_bytes, self._threads = fetch, records, most_bytes, threads
        self._changed = threading.Condition()
        self._asked: dict[str, object] = {}  # path -> who asked
        self._unread: dict[str, object] = {}
        self._flying: set[str] = set()
        self._failed: dict[str, tuple[object, Exception]] = {}
        self._running = 0

    def ask(self, owner: object, paths: Iterable[str]) -> None:
        """Have ``paths`` fetched for ``owner``, after what was asked for before."""
        wanted = [path for path in paths if path in self._records and self._records[path].size <= self._most_bytes]
        if all(self._is_there(path) for path in wanted):
            return
        with self._changed:
            for path in wanted:
                if path not in self._unread:
                    self._asked.setdefault(path, owner)
            while self._running < min(self._threads, len(self._asked)):
                self._running += 1
                threading.Thread(target=self._work, name=NAME, daemon=True).start()

    def settle(self, path: str) -> None:
        """Wait while ``path`` is being fetched. Raises what fetching it has raised, once."""
        with self._changed:
            self._changed.wait_for(lambda: path not in self._flying)
            failed = self._failed.pop(path, None)
        if failed is not None:
            raise failed[1]

    def turn(self, path: str) -> None:
        """``settle``; where nobody has begun to fetch it, the reader will."""
        with self._changed:
            self._asked.pop(path, None)
        self.settle(path)

    def read(self, path: str) -> None:
        """Somebody has read ``path``: there is room for others."""
        with self._changed:
            if self._unread.pop(path, None) is not None:
                self._changed.notify_all()

    def unread(self) -> set[str]:
        """Paths fetched, or about to be, that nobody has read yet."""
        with self._changed:
            return set(self._unread)

    def dismiss(self, owner: object) -> None:
        """``owner`` wants nothing more; a file on its way still arrives."""
        with self._changed:
            for held in (self._asked, self._unread):
                for path in [path for path, who in held.items() if who is owner]:
                    del held[path]
            self._failed = {path: failed for path, failed in self._failed.items() if failed[0] is not owner}
            self._changed.notify_all()

    def _work(self) -> None:
        while (path := self._next()) is not None:
            error: Exception | None = None
            try:
                self._fetch(path)
            except Exception as raised:
                error = raised
            with self._changed:
                self._flying.remove(path)
                if error is not None and (owner := self._unread.pop(path, None)) is not None:
                    self._failed[path] = owner, error
                self._changed.notify_all()
            del error

    def _next(self) -> str | None:
        """The next path to fetch, once there is room for it; None when nothing is asked for."""
        with self._changed:
            while self._asked:
                path = next(iter(self._asked))
                held = sum(self._records[each].size for each in self._unread)
                if not self._unread or held + self._records[path].size <= self._most_bytes:
                    self._unread[path] = self._asked.pop(path)
                    self._flying.add(path)
                    return path
                self._changed.wait()
            self._running -= 1
            return None


class FetchAhead(Ahead):
    """One stream's share of a queue. What it asked for is forgotten when it is closed, and when it is abandoned."""

    def __init__(self, queue: FetchQueue) -> None:
        self._queue, self._owner = queue, object()
        self._finaliser = weakref.finalize(self, queue.dismiss, self._owner)

    def ask(self, paths: Iterable[str]) -> None:
        self._queue.ask(self._owner, paths)

    def close(self) -> None:
        self._finaliser()
