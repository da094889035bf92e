"""Every error that Softlabels raises on purpose, grouped by what a handler would do about it.

::

    SoftlabelsError
    ├── ConfigError          (ValueError)   an option is wrong: change the command
    ├── DataError            (ValueError)   the dataset cannot be used as it is
    ├── ModelError           (ValueError)   a teacher or student does not fit its task
    ├── EncodingError        (ValueError)   logits that an encoding cannot keep
    │   └── TemperatureError                a temperature that the cache did not keep
    ├── MissingDependencyError (ImportError) an extra is not installed
    ├── BusyError            (RuntimeError) another process holds the output
    ├── DiskFullError        (OSError)      no room for a file: make some and run again
    └── CacheError           (RuntimeError) a cache on disk
        ├── CacheNotFoundError              nothing there, or not a cache
        ├── CacheFormatError                a format version or field this release does not know
        ├── CacheIncompleteError            a dump that has not finished, or parts that are missing
        ├── CacheCorruptError               bytes that differ from what was committed
        └── CacheMismatchError              a sound cache that belongs to something else

A message says what was expected, what was found, where, and what to do next. Anything else that escapes is a
bug and keeps its traceback.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Sequence
from pathlib import Path


class SoftlabelsError(Exception):
    """Base of every error that Softlabels raises on purpose."""


class ConfigError(SoftlabelsError, ValueError):
    """One or more options are wrong. ``problems`` holds all of them, found in one pass."""

    def __init__(self, problems: str | Iterable[str]) -> None:
        self.problems: tuple[str, ...] = (problems,) if isinstance(problems, str) else tuple(problems)
        text = self.problems[0] if len(self.problems) == 1 else "\n".join(f"  - {p}" for p in self.problems)
        super().__init__(text if len(self.problems) == 1 else f"{len(self.problems)} problems:\n{text}")


class DataError(SoftlabelsError, ValueError):
    """The dataset cannot be used: empty, duplicate ids, labels out of range, wrong shapes."""


class ModelError(SoftlabelsError, ValueError):
    """A model does not fit: number of classes, input shape, weights, outputs that are not finite logits."""


class EncodingError(SoftlabelsError, ValueError):
    """Logits that an encoding cannot keep. ``row`` is the offending row of the batch, when there is one."""

    def __init__(self, message: str, row: int | None = None) -> None:
        self.row = row
        super().__init__(message)


class TemperatureError(EncodingError):
    """A temperature was asked for that the cache did not keep."""


class MissingDependencyError(SoftlabelsError, ImportError):
    """An optional package is needed and not installed; the message names the extra."""


class BusyError(SoftlabelsError, RuntimeError):
    """Another process is writing this output."""


class DiskFullError(SoftlabelsError, OSError):
    """A file that does not fit on its disk, into a quota or under a limit on file sizes.

    ``path`` takes ``needed`` bytes where ``free`` are left (0 when unknown). What was finished before is kept.
    """

    def __init__(
        self,
        message: str,
        path: Path | None = None,
        needed: int = 0,
        free: int = 0,
        number: int = errno.ENOSPC,
    ) -> None:
        super().__init__(message)
        self.path, self.needed, self.free = path, needed, free
        self.errno = number

    def adding(self, text: str) -> DiskFullError:
        """The same error with a further sentence: what else has to fit before the work is through."""
        return DiskFullError(f"{self}. {text}", self.path, self.needed, self.free, self.errno or errno.ENOSPC)


class CacheError(SoftlabelsError, RuntimeError):
    """Base of the errors about a cache on disk."""


class CacheNotFoundError(CacheError):
    """There is no cache at this address."""


class CacheFormatError(CacheError):
    """The cache has a format version, or a field, that this release does not know."""


class CacheIncompleteError(CacheError):
    """A dump has not finished, or some of its files are missing."""


class CacheCorruptError(CacheError):
    """Bytes differ from what was committed, or metadata contradicts itself."""


class CacheMismatchError(CacheError):
    """The cache is sound but belongs to another teacher, dataset, view or encoding."""


def some(names: Sequence[str], most: int = 3) -> str:
    """The first few of many names, for a message.

    >>> some(["a", "b"]), some(["a", "b", "c", "d"])
    ('a, b', 'a, b, c, ...')
    """
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def first_line(error: BaseException) -> str:
    """What another library's error says, in one line.

    >>> first_line(ValueError("no such layer\\nTraceback ...")), first_line(ValueError())
    ('no such layer', 'ValueError')
    """
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
