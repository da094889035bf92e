"""A folder as a bucket of an S3 server that takes its time: ``python -m benchmarks.object_server FOLDER SECONDS``.

It answers what reading takes (GetObject with ranges, HeadObject, ListObjectsV2), each after SECONDS, as a store that is
far away would, and many requests at once. It prints its port, and ends when its standard input does. No credentials are
looked at: for benchmarks on this machine alone.
"""

from __future__ import annotations

import hashlib
import re
import sys
import threading
import time
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

BUCKET = "bucket"


class S3Handler(BaseHTTPRequestHandler):
    """Objects are the files under ``server.folder``; each answer comes after ``server.delay`` seconds."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_: Any) -> None: ...

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        server: Any = self.server
        time.sleep(server.delay)
        url = urlsplit(self.path)
        bucket, _, key = unquote(url.path).lstrip("/").partition("/")
        if bucket != BUCKET:
            self._text(404, "<Error><Code>NoSuchBucket</Code></Error>", body)
        elif not key:
            self._text(200, listing(server.folder, parse_qs(url.query).get("prefix", [""])[0]), body)
        elif not (server.folder / key).is_file():
            self._text(404, "<Error><Code>NoSuchKey</Code></Error>", body)
        else:
            self._object(server.folder / key, body)

    def _object(self, path: Path, body: bool) -> None:
        size = path.stat().st_size
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        first, last = (int(asked[1]), min(int(asked[2] or size), size - 1)) if asked else (0, size - 1)
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
        self.send_header("Content-Length", str(last + 1 - first))
        self.send_header("ETag", f'"{hashlib.md5(str(path).encode()).hexdigest()}"')
        self.send_header("Last-Modified", formatdate(path.stat().st_mtime, usegmt=True))
        self.end_headers()
        if body and last >= first:
            with open(path, "rb") as file:
                self.connection.sendfile(file, first, last + 1 - first)

    def _text(self, status: int, text: str, body: bool) -> None:
        data = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data if body else b"")


def listing(folder: Path, prefix: str) -> str:
    """The answer to ListObjectsV2, of all keys below ``prefix`` at once."""
    keys = sorted((path.relative_to(folder).as_posix(), path) for path in folder.rglob("*") if path.is_file())
    found = [(key, path) for key, path in keys if key.startswith(prefix)]
    contents = "".join(
        f"<Contents><Key>{escape(key)}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified><ETag>&quot;0&quot;</ETag>"
        f"<Size>{path.stat().st_size}</Size></Contents>"
        for key, path in found
    )
    return (
        f'<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>{BUCKET}</Name>'
        f"<KeyCount>{len(found)}</KeyCount><IsTruncated>false</IsTruncated>{contents}</ListBucketResult>"
    )


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64


def main() -> None:
    """Serve until the standard input ends, and with it who started this."""
    server: Any = _Server(("127.0.0.1", 0), S3Handler)
    server.folder, server.delay = Path(sys.argv[1]), float(sys.argv[2])
    print(server.server_address[1], flush=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sys.stdin.read()


if __name__ == "__main__":
    main()
