"""A proxy that makes trouble on purpose: dropped connections, answers of 503, bodies cut short."""

from __future__ import annotations

import http.client
from http.server import BaseHTTPRequestHandler
from typing import Any

from pipeline.store.remote import Patience

QUICK = Patience(attempts=12, seconds=0.01)


class Flaky(BaseHTTPRequestHandler):
    """Passes requests on to ``server.target``; some are dropped, answered with 503, or their bodies cut short."""

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
        self.wfile.write(data)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _pass
