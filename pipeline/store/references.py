"""A reference file: a cache whose files lie elsewhere under other names, each path with the address of an object.

fsspec's reference format, version 1, in its plainest form: ``{"version": 1, "refs": {"manifest.json": [url], ...}}``,
or ``[url, offset, bytes]``. So people read a DVC remote, where files are named after their md5, without DVC.

Stock fsspec opens the file, too. Here it is read strictly, for it may be anybody's: no templates, no data within,
nothing that is computed.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from pipeline.errors import CacheCorruptError, CacheError, CacheFormatError, CacheNotFoundError, ConfigError
from pipeline.progress import Progress
from pipeline.store import manifest as manifest_file
from pipeline.store.files import safe_path
from pipeline.store.remote import Patience, PatientFiles

SUFFIX = ".refs.json"
"""How the name of a reference file ends. A folder of that name is a folder: at a URL, give it a slash at its end."""

MAX_BYTES = 256 * 1024 * 1024
"""No reference file is larger: that is two million files."""

PROTOCOLS = frozenset(["abfs", "abfss", "az", "gcs", "gs", "http", "https", "memory", "oci", "oss", "s3", "s3a"])
"""Where objects may lie, besides ``file`` for a reference file on this machine."""

_ADDRESS = re.compile(r"([a-z][a-z0-9]*)://([^/\\?#\s]*)/([^\\\s][^\\]*)")
_MOST = 2**48
_BLOCK = 16 * 1024 * 1024


@dataclass(frozen=True)
class Target:
    """The object at ``url``, or ``length`` bytes of it from ``offset`` on."""

    url: str
    offset: int = 0
    length: int | None = None


def is_reference(address: str) -> bool:
    """Whether an address is that of a reference file, by its name; a local folder of that name is none."""
    if not address.endswith(SUFFIX):
        return False
    local = _local(address)
    return local is None or not local.is_dir()


def to_json(urls: Mapping[str, str]) -> bytes:
    """The reference file in which each path stands for the object at a URL: the same bytes for the same content."""
    lines = (f"    {json.dumps(path)}: [{json.dumps(urls[path])}]" for path in sorted(urls))
    return ('{\n  "version": 1,\n  "refs": {\n' + ",\n".join(lines) + "\n  }\n}\n").encode()


def parse(data: bytes, where: str, local: bool) -> dict[str, Target]:
    """What the reference file ``data`` says; ``where`` is its name, for messages, ``local`` allows ``file://``.

    All targets lie with one host or in one bucket, so that whoever passes credentials knows whom to.

    Raises CacheFormatError for another version, or for what this release does not read; CacheCorruptError for what no
    reference file holds; CacheNotFoundError when it has no manifest.json.
    """
    try:
        found = json.loads(data, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise CacheCorruptError(f"{where} is no reference file: {error}. Fetch it again") from error
    if not isinstance(found, dict) or not isinstance(found.get("refs"), dict):
        raise CacheFormatError(f"{where} is no reference file of version 1: it should hold version and refs")
    if type(found.get("version")) is not int or found["version"] != 1:
        raise CacheFormatError(f"{where} has version {_shown(found.get('version'))}; this release reads version 1")
    if more := sorted(found.keys() - {"version", "refs"}):
        raise CacheFormatError(f"{where} holds {_shown(more)}; this release reads refs alone, each an address")
    targets: dict[str, Target] = {}
    places: set[str] = set()
    for path, value in found["refs"].items():
        place = f"{where}: {safe_path(path)}"
        targets[path] = target = _target(value, place)
        places.add(_place(target.url, place, local))
        if len(places) > 1:
            both = " and ".join(sorted(places))
            raise CacheFormatError(f"{where} names objects at {both}; all objects of a cache should lie at one place")
    if manifest_file.PATH not in targets:
        raise CacheNotFoundError(f"{where} is not a cache: it refers to no {manifest_file.PATH}")
    return targets


def _target(value: Any, where: str) -> Target:
    if not isinstance(value, list) or len(value) not in (1, 3) or not isinstance(value[0], str):
        what = f"{where} should be [url] or [url, offset, bytes]; found {_shown(value)}"
        raise CacheFormatError(f"{what}. Data within a reference file are not read")
    if len(value) == 1:
        return Target(value[0])
    if any(type(n) is not int or not 0 <= n < _MOST for n in value[1:]):
        raise CacheCorruptError(f"{where}: offset and bytes should be whole numbers; found {_shown(value[1:])}")
    return Target(*value)


def _place(url: str, where: str, local: bool) -> str:
    """Protocol and host (or bucket) of a target, found to be one that may be asked."""
    parts = _ADDRESS.fullmatch(url) if len(url) <= 4096 and url.isprintable() else None
    if parts is None or "::" in url or ".." in parts[3].split("/"):
        raise CacheCorruptError(f"{where}: {_shown(url)} is no plain address such as s3://bucket/name. Do not use it")
    protocol, host = parts[1], parts[2]
    if protocol == "file":
        if local and not host:
            return "file://"
        what = f"{where} names a file of this machine, {_shown(url)}, which only a reference file on it may do"
        raise CacheCorruptError(f"{what}. Do not use it")
    if protocol not in PROTOCOLS:
        raise CacheFormatError(f"{where}: {protocol}:// is not read; objects lie at {', '.join(sorted(PROTOCOLS))}")
    if not host or (protocol in ("http", "https") and "@" in host):
        raise CacheCorruptError(f"{where}: {_shown(url)} should name a host or a bucket, and no password")
    return f"{protocol}://{host}"


class ReferencedFiles(PatientFiles):
    """The files that the reference file at ``address`` names, read as those of any URL are: with patience.

    ``options`` are those of the filesystem of the objects, and of the reference file where that is at a URL.

    Raises CacheNotFoundError when there is no such file, and as ``parse`` does.
    """

    def __init__(
        self,
        address: str,
        options: Mapping[str, Any] | None = None,
        patience: Patience | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.targets = parse(_read(address, options, patience, progress), address, _local(address) is not None)
        super().__init__(self.targets[manifest_file.PATH].url, options, patience, progress)
        self.address = address

    @property
    def local(self) -> bool:
        """Whether the objects lie on this machine's disks."""
        return self._local

    def where(self, path: str) -> str:
        target = self.targets.get(path)
        return f"{path} of {self.address}" + (f" ({target.url})" if target else "")

    def _full(self, path: str) -> str:
        target = self.targets.get(safe_path(path))
        if target is None:
            raise FileNotFoundError(path)
        return str(self.filesystem._strip_protocol(target.url))

    def size(self, path: str) -> int | None:
        target = self.targets.get(path)
        if target is None:
            return None
        if target.length is not None:
            self._sizes[path] = target.length
            return target.length
        return super().size(path)

    def ranged(self, path: str, start: int, end: int) -> bytes:
        offset = self.targets[path].offset
        return super().ranged(path, offset + start, offset + end)

    def whole(self, path: str) -> BinaryIO:
        target = self.targets.get(path)
        if target is None or target.length is None:
            return super().whole(path)
        self.seen[path] = data = b"".join(self.blocks(path, target.length))
        return io.BytesIO(data)

    def blocks(self, path: str, size: int) -> Iterator[bytes]:
        target = self.targets.get(path)
        if target is None or target.length is None:
            yield from super().blocks(path, size)
            return
        for start in range(0, target.length, _BLOCK):
            yield self.ranged(path, start, min(target.length, start + _BLOCK))

    def listing(self) -> list[str]:
        return sorted(self.targets)

    def sizes(self) -> dict[str, int]:
        found = {path: self.size(path) for path in self.targets}
        return {path: size for path, size in found.items() if size is not None}

    def write(self, path: str, data: bytes | Path) -> None:
        raise ConfigError(f"{self.address} is a reference file: what it refers to is only read. Name another URL")

    def delete(self, path: str) -> None:
        raise ConfigError(f"{self.address} is a reference file: what it refers to is only read. Name another URL")


def _local(address: str) -> Path | None:
    """The path of a local address; None for a URL."""
    if address.startswith("file://"):
        return Path(address.removeprefix("file://"))
    return None if "://" in address or "::" in address else Path(address)


def _read(
    address: str, options: Mapping[str, Any] | None, patience: Patience | None, progress: Progress | None
) -> bytes:
    """The bytes of the reference file at ``address``."""
    absent = f"there is no reference file at {address}. Make it with `softlabels cache refs`, or name the cache's URL"
    if (local := _local(address)) is not None:
        if not local.is_file():
            raise CacheNotFoundError(absent)
        try:
            with open(local, "rb") as file:
                data = file.read(MAX_BYTES + 1)
        except OSError as error:
            raise CacheError(f"{address} cannot be read: {error}") from error
    else:
        remote = PatientFiles(address, options, patience, progress)
        try:
            data = remote.attempt("", lambda: remote.filesystem.cat_file(remote.root, start=0, end=MAX_BYTES + 1))
        except FileNotFoundError as error:
            raise CacheNotFoundError(f"{absent}; a folder of that name has a slash at its end") from error
        except TypeError as error:  # such as endpoint_url for a web server
            what = f"the options {sorted(options or {})} are not those of {address}: {error}"
            raise ConfigError(f"{what}. Fetch that file first, and name the local one") from error
    if len(data) > MAX_BYTES:
        raise CacheCorruptError(f"{address} has more than {MAX_BYTES:,} bytes, which no reference file has")
    return data


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("an object in it has the same key twice")
    return found


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."
