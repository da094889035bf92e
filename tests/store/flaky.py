"""An S3 behind a proxy that makes trouble on purpose: dropped connections, answers of 503, bodies cut short."""

from __future__ import annotations

import contextlib
import http.client
import logging
import random
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from pipeline.store.remote import Patience

QUICK = Patience(attempts=12, seconds=0.01)


class Flaky(BaseHTTPRequestHandler):
    """Passes requests on to ``server.target``; some are dropped, answered with 503, or their bodies cut short.

    ``server.answered`` lists (method, path, bytes) of what was answered in full; each answer takes ``server.delay``
    seconds.
    """

    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None: ...

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except OSError:
            self.close_connection = True

    def _pass(self) -> None:
        server: Any = self.server
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        with server.lock:
            fate = server.random.random() if server.trouble else 1.0
        server.counts[min(4, int(fate * 8))] += 1
        time.sleep(server.delay)
        if fate < 1 / 8:  # dropped before anything is done
            self.close_connection = True
            return
        if fate < 2 / 8:
            self.send_response(503)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        link = http.client.HTTPConnection(*server.target)
        link.request(self.command, self.path, body, dict(self.headers))
        answer = link.getresponse()
        data = answer.read()
        link.close()
        if fate < 3 / 8:  # done, and nobody hears of it
            self.close_connection = True
            return
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("connection", "date", "server", "transfer-encoding", "content-length"):
                self.send_header(name, value)
        length = answer.getheader("Content-Length") if self.command == "HEAD" else len(data)
        self.send_header("Content-Length", str(length or 0))
        self.end_headers()
        if fate < 4 / 8 and data:
            data, self.close_connection = data[: len(data) // 2], True
        else:
            server.answered.append((self.command, self.path.partition("?")[0], len(data)))
        self.wfile.write(data)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _pass


@contextlib.contextmanager
def s3_behind_a_proxy() -> Iterator[tuple[Any, dict[str, Any]]]:
    """The proxy, which passes everything on until its ``trouble`` is set, and the options that reach a ``bucket``."""
    fsspec = pytest.importorskip("s3fs") and pytest.importorskip("fsspec")
    moto = pytest.importorskip("moto.server").ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    moto.start()
    proxy: Any = ThreadingHTTPServer(("127.0.0.1", 0), Flaky)
    proxy.daemon_threads = True
    proxy.target, proxy.lock, proxy.trouble = moto.get_host_and_port(), threading.Lock(), False
    proxy.random, proxy.counts, proxy.answered, proxy.delay = random.Random(7), [0] * 5, [], 0.0
    threading.Thread(target=proxy.serve_forever, args=(0.05,), daemon=True).start()
    options = {"endpoint_url": f"http://127.0.0.1:{proxy.server_address[1]}", "key": "testing", "secret": "testing"}
    fsspec.filesystem("s3", **options).makedirs("bucket", exist_ok=True)
    yield proxy, options
    proxy.shutdown()
    proxy.server_close()
    moto.stop()
