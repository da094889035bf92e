"""The files of a cache at a URL, read and written with patience: what fails in passing is tried again.

Filesystems report the same trouble in many ways; ``transient`` tells what is worth another try without importing any
of them. What the service refuses (credentials, a bucket that is not there) is an error at once.
"""

from __future__ import annotations

import errno
import hashlib
import io
import itertools
import random
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, TypeVar

from pipeline.errors import CacheError, ConfigError, SoftlabelsError, first_line
from pipeline.progress import Progress, Silent
from pipeline.store.files import RemoteFiles

T = TypeVar("T")

WHOLE = 64 * 1024 * 1024
"""Files of up to so many bytes travel in one request, and lie in memory meanwhile; larger ones in blocks."""

_BLOCK = 16 * 1024 * 1024
_LONGEST = 60.0
_TORN_ATTEMPTS = 3

_CLIENTS = frozenset(
    {
        "aiobotocore",
        "aiohttp",
        "asyncio",
        "azure",
        "botocore",
        "fsspec",
        "gcsfs",
        "google",
        "http",
        "requests",
        "urllib3",
    }
)
"""Packages whose errors are about the connection or the service, whatever they derive from."""

_PARSER = "aiohttp.http_exceptions"
"""What is wrong with an answer, a body cut short, say. Its ``code`` of 400 is no status that anybody answered."""

_PASSING = ("Timeout", "Connection", "Connect", "Disconnected", "Incomplete", "Payload", "Streaming", "HTTPClient")
_REFUSED = (
    SoftlabelsError,
    FileNotFoundError,
    PermissionError,
    FileExistsError,
    IsADirectoryError,
    NotADirectoryError,
)
_LASTING_NAMES = ("EDQUOT", "EFBIG", "EINVAL", "EMSGSIZE", "ENAMETOOLONG", "ENOSPC", "ENOSYS", "EREMCHG", "EROFS")
_LASTING = frozenset(getattr(errno, name) for name in _LASTING_NAMES if hasattr(errno, name))
_UNABLE = (501, 505)
_TORN_CODES = ("BadDigest", "IncompleteBody", "RequestTimeout", "SlowDown")
"""What S3 answers with status 400 or so when a body did not arrive as it was sent."""

_BUCKETS = frozenset(["abfs", "abfss", "adl", "az", "gcs", "gs", "oci", "oss", "s3", "s3a"])
"""Object stores: they have no folders to make, and to make one there could make a bucket."""


class Torn(ConnectionError):
    """A body that arrived, and is not the file."""


@dataclass(frozen=True)
class Patience:
    """``attempts`` at each request; ``seconds`` between the first two, twice as many before each further one.

    Each wait is shortened at random by up to half, so that many clients do not come back at once.
    """

    attempts: int = 6
    seconds: float = 0.5

    def wait(self, attempt: int) -> float:
        """Seconds to wait after failed ``attempt`` (from 1 on)."""
        return min(_LONGEST, self.seconds * 2.0 ** (attempt - 1)) * random.uniform(0.5, 1.0)


def transient(error: BaseException) -> bool:
    """Whether an error may pass: connections, timeouts, answers of 5xx, 408 and 429; nothing that was refused.

    The status of an answer decides where one is known, on the error itself or on what it was raised from.
    """
    for each in _causes(error):
        if type(each).__module__ == _PARSER:
            continue
        response = getattr(each, "response", None)
        if isinstance(response, Mapping):  # botocore's ClientError
            if response.get("Error", {}).get("Code") in _TORN_CODES:
                return True
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        else:
            status = next((s for s in (getattr(each, n, None) for n in ("status", "code")) if type(s) is int), None)
        if type(status) is int and status >= 300:
            return status in (408, 429) or (status >= 500 and status not in _UNABLE)
    if isinstance(error, _REFUSED):
        return False
    if isinstance(error, OSError):
        return error.errno not in _LASTING
    return _of_client(error) and any(word in type(error).__name__ for word in _PASSING)


def _causes(error: BaseException) -> Iterator[BaseException]:
    each: BaseException | None = error
    for _ in range(8):
        if each is None:
            return
        yield each
        each = each.__cause__


def _of_client(error: BaseException) -> bool:
    return any(kind.__module__.partition(".")[0] in _CLIENTS for kind in type(error).__mro__)


class PatientFiles(RemoteFiles):
    """Files under a URL, each request repeated while it fails in passing; they may be written, too.

    ``seen`` holds the files that ``whole`` has read, ``retries`` counts what was tried again. ``stop`` ends all
    waiting. Errors of the filesystem become CacheError naming the file, but for FileNotFoundError, which callers know
    how to take.
    """

    def __init__(
        self,
        address: str,
        options: Mapping[str, Any] | None = None,
        patience: Patience | None = None,
        progress: Progress | None = None,
    ) -> None:
        super().__init__(address, options)
        self.filesystem.invalidate_cache()  # fsspec shares filesystems, and what they remember, within a process
        protocol = self.filesystem.protocol
        self._folders = _BUCKETS.isdisjoint((protocol,) if isinstance(protocol, str) else protocol)
        self._local = bool(getattr(self.filesystem, "local_file", False))
        self._patience = patience or Patience()
        self._progress = progress or Silent()
        self._stopped = threading.Event()
        self._lock = threading.Lock()
        self.seen: dict[str, bytes] = {}
        self.retries = 0

    def stop(self) -> None:
        """Let nobody wait for another try: the work is given up."""
        self._stopped.set()

    def attempt(self, path: str, action: Callable[[], T]) -> T:
        """``action()``, again and again while it fails in passing. Raises CacheError, or CacheCorruptError if torn."""
        for attempt in itertools.count(1):
            try:
                return action()
            except NotImplementedError as error:
                what = f"{self.address} cannot be written: {type(self.filesystem).__name__} only reads"
                raise ConfigError(f"{what}. Name another URL") from error
            except Exception as error:
                # Where fsspec asks a web server, it stands for any trouble, which is then its cause.
                if isinstance(error, FileNotFoundError) and not transient(error):
                    raise
                most = self._patience.attempts
                if isinstance(error, Torn):
                    most = min(_TORN_ATTEMPTS, most)  # bytes that are wrong twice are likely to be stored like that
                if attempt >= most or self._stopped.is_set() or not transient(error):
                    raise self._given_up(path, error, attempt) from error
                self._again(path, error)
            self._stopped.wait(self._patience.wait(attempt))
        raise AssertionError  # the loop above has no end

    def _again(self, path: str, error: Exception) -> None:
        with self._lock:
            self.retries += 1
        self._progress.log(f"{path}: {type(error).__name__}: {first_line(error)}; trying again")

    def _given_up(self, path: str, error: Exception, attempts: int) -> Exception:
        where = self.where(path) if path else self.address
        if isinstance(error, SoftlabelsError):
            return error
        if isinstance(error, Torn):
            return self.corrupt(path, f"{error}, in {attempts} tries")
        if isinstance(error, PermissionError) or "Credential" in type(error).__name__:
            what = f"{where} was refused: {first_line(error)}. Check the credentials, and --option"
            return CacheError(f"{what} (key=..., secret=..., profile=..., anon=true for S3)")
        if isinstance(error, OSError) or _of_client(error):
            error = error.__cause__ if isinstance(error.__cause__, Exception) else error
            tries = f"{attempts} tries" if attempts > 1 else "one try, and another would not help"
            return CacheError(
                f"{where} was not reached in {tries}: {type(error).__name__}: {first_line(error)}. What has gone "
                "through is kept: put that right and run the same command again"
            )
        return error  # a bug keeps its traceback

    def size(self, path: str) -> int | None:
        try:
            return self.attempt(path, lambda: self._look(path))
        except FileNotFoundError:
            return None

    def whole(self, path: str) -> BinaryIO:
        def once() -> bytes:
            data: bytes = self.filesystem.cat_file(self._full(path))
            if self._sizes.get(path, len(data)) != len(data):
                raise Torn(f"{len(data):,} bytes arrived of {self._sizes[path]:,}")
            return data

        self.seen[path] = data = self.attempt(path, once)
        return io.BytesIO(data)

    def ranged(self, path: str, start: int, end: int) -> bytes:
        def once() -> bytes:
            data = RemoteFiles.ranged(self, path, start, end)
            if len(data) != end - start:
                raise Torn(f"{len(data):,} bytes arrived of {end - start:,}")
            return data

        return self.attempt(path, once)

    def sizes(self) -> dict[str, int]:
        """Bytes of every file under the URL by path; nothing where nothing is."""
        self.filesystem.invalidate_cache()
        try:
            found = self.attempt("", lambda: self.filesystem.find(self.root, detail=True))
        except FileNotFoundError:
            return {}
        return {str(PurePosixPath(str(p)).relative_to(self.root)): int(info["size"]) for p, info in found.items()}

    def blocks(self, path: str, size: int) -> Iterator[bytes]:
        """The bytes of a file of ``size`` bytes, at most a block more. One try: raises what the filesystem does."""
        full = self._full(path)
        if path in self.seen:  # opening the cache has read it, and held it to its digest
            yield self.seen[path]
            return
        if size <= WHOLE:
            # The byte beyond the end shows a file that is longer than it should be, however long.
            yield self.filesystem.cat_file(full, start=0, end=size + 1) if size else self.filesystem.cat_file(full)
            return
        read = 0
        with self.filesystem.open(full, "rb", block_size=_BLOCK) as file:
            while read <= size and (block := file.read(_BLOCK)):
                read += len(block)
                yield block

    def sha256(self, path: str, size: int) -> str:
        """The digest of a file of ``size`` bytes as it lies there now."""

        def once() -> str:
            total, count = hashlib.sha256(), 0
            for block in self.blocks(path, size):
                total.update(block)
                count += len(block)
            if count < size:
                raise Torn(f"{count:,} bytes arrived of {size:,}")
            return total.hexdigest()

        return self.attempt(path, once)

    def write(self, path: str, data: bytes | Path) -> None:
        """Put ``data``, or the file at a local path, there. Raises FileNotFoundError where there is no such bucket."""
        full = self._full(path)
        # On a disk a file is there before it is whole; elsewhere it appears at once.
        aside = f"{full}.partial" if self._local else full

        def put() -> None:
            if isinstance(data, Path):
                self.filesystem.put_file(str(data), aside)
            else:
                self.filesystem.pipe_file(aside, data)

        def once() -> None:
            try:
                put()
            except FileNotFoundError:
                if not self._folders:
                    raise
                self.filesystem.makedirs(full.rpartition("/")[0], exist_ok=True)
                put()
            if aside != full:
                self.filesystem.mv(aside, full)

        self.attempt(path, once)

    def delete(self, path: str) -> None:
        """Remove a file, if it is there."""
        try:
            self.attempt(path, lambda: self.filesystem.rm_file(self._full(path)))
        except FileNotFoundError:
            return


def in_parallel(work: Callable[[str], None], paths: Iterable[str], workers: int, files: PatientFiles) -> None:
    """``work(path)`` for each path, ``workers`` at once. The first error ends the rest, and is raised."""
    with ThreadPoolExecutor(max(1, workers)) as pool:
        pending: set[Future[None]] = set()
        try:
            for path in paths:
                if len(pending) >= 2 * workers:
                    done, pending = wait(pending, return_when=FIRST_COMPLETED)
                    for each in done:
                        each.result()
                pending.add(pool.submit(work, path))
            for each in pending:
                each.result()
        except BaseException:
            files.stop()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
