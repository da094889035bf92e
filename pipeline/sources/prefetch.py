"""An iterator that runs ahead in a thread of its own, by a bounded number of items."""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class _Channel(Generic[T]):
    """What the thread and its consumer share; neither keeps the other alive through it."""

    def __init__(self, depth: int) -> None:
        self.depth = depth
        self.items: deque[T] = deque()
        self.changed = threading.Condition()
        self.closed = False
        self.ended = False
        self.error: BaseException | None = None

    def put(self, item: T) -> bool:
        """Wait for room; False when nobody wants more."""
        with self.changed:
            self.changed.wait_for(lambda: self.closed or len(self.items) < self.depth)
            if self.closed:
                return False
            self.items.append(item)
            self.changed.notify_all()
            return True

    def end(self, error: BaseException | None) -> None:
        with self.changed:
            self.ended, self.error = True, error
            self.changed.notify_all()

    def close(self) -> None:
        with self.changed:
            self.closed = True
            self.items.clear()
            self.changed.notify_all()


class Prefetch(Generic[T]):
    """Items of ``make()`` in order, made in a thread, at most ``depth`` of them waiting.

    An error in the thread is raised by the ``get`` that would have had its item. The thread ends when the items do,
    when ``close`` is called, and when this object is abandoned. ``make`` must not refer to this object.
    """

    def __init__(self, make: Callable[[], Iterator[T]], depth: int, name: str) -> None:
        self._channel: _Channel[T] = _Channel(max(1, depth))
        self._thread = threading.Thread(target=_produce, args=(make, self._channel), name=name, daemon=True)
        self._finaliser = weakref.finalize(self, self._channel.close)
        self._thread.start()

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        channel = self._channel
        with channel.changed:
            channel.changed.wait_for(lambda: bool(channel.items) or channel.ended or channel.closed)
            if channel.items:
                item = channel.items.popleft()
                channel.changed.notify_all()
                return item
            if channel.error is not None:
                raise channel.error
            raise StopIteration

    def close(self) -> None:
        """End the thread and wait for it."""
        self._finaliser()
        if self._thread is not threading.current_thread():
            self._thread.join()


def _produce(make: Callable[[], Iterator[T]], channel: _Channel[T]) -> None:
    try:
        for item in make():
            if not channel.put(item):
                break
            del item  # nothing of a batch stays here while the thread waits
    except BaseException as error:
        channel.end(error)
    else:
        channel.end(None)
