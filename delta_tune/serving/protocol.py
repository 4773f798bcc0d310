"""uvicorn's HTTP/1.1 with what it does not bound: connections, headers, and the time that headers take."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from delta_tune.serving.model import as_json

MAX_HEADER_BYTES = 64 * 2**10
"""Of one request: its first line, headers and trailers."""
HEADERS_S = 10.0
"""At most, for a connection to send the headers of its next request."""
UNREAD_MS = 30_000
"""How long a client may leave its answer unread."""
STATUS_LINES = {
    400: b"HTTP/1.1 400 Bad Request",
    408: b"HTTP/1.1 408 Request Timeout",
    431: b"HTTP/1.1 431 Request Header Fields Too Large",
    503: b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1",
}


class BoundedProtocol(HttpToolsProtocol):
    """One connection."""

    max_connections = 512
    headers_s = HEADERS_S

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self._header_bytes = 0
        self._in_headers = True
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Refuse a connection too many; the others have time for their headers."""
        super().connection_made(transport)
        opened = transport.get_extra_info("socket")
        if opened is not None and hasattr(socket, "TCP_USER_TIMEOUT"):
            opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNREAD_MS)
        if len(self.connections) > self.max_connections:
            self._end(503, "The server has too many connections; send the request again in a second.")
            return
        self._wait_for_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the deadline."""
        self._forget_deadline()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Count what belongs to headers that have not ended."""
        if self.transport.is_closing():
            return
        super().data_received(data)
        if self._in_headers:
            self._header_bytes += len(data)
            self._check_headers()

    def on_message_begin(self) -> None:
        """Headers begin."""
        super().on_message_begin()
        self._header_bytes, self._in_headers = 0, True
        if self._deadline is None:
            self._wait_for_headers()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Count trailers too, which come after the body."""
        if not self._in_headers:
            self._header_bytes += len(name) + len(value)
            self._check_headers()
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Headers have ended."""
        self._in_headers = False
        self._header_bytes = 0
        self._forget_deadline()
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP in JSON too."""
        self._end(400, "What was sent is no HTTP request; use an HTTP client.")

    def _check_headers(self) -> None:
        if self._header_bytes > MAX_HEADER_BYTES:
            self._end(431, f"The headers have more than {MAX_HEADER_BYTES // 2**10} KiB; send shorter ones.")

    def _wait_for_headers(self) -> None:
        self._deadline = self.loop.call_later(self.headers_s, self._too_slow)

    def _too_slow(self) -> None:
        self._deadline = None
        self._end(408, f"The headers took longer than {self.headers_s:g} s to arrive; send them at once.")

    def _forget_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _end(self, status: int, sentence: str) -> None:
        """Answer in one sentence and close; a request that has come whole before is answered first, and closes too."""
        self._forget_deadline()
        if self.transport.is_closing():
            return
        at_work = self.cycle is not None and not self.cycle.response_complete
        if at_work and not self.cycle.more_body:
            self.cycle.keep_alive = False
            self.flow.pause_reading()
            return
        if not at_work or not self.cycle.response_started:
            body = as_json({"error": sentence})
            headers = b"content-type: application/json\r\nconnection: close\r\ncontent-length: %d" % len(body)
            self.transport.write(b"%s\r\n%s\r\n\r\n%s" % (STATUS_LINES[status], headers, body))
        self.transport.close()
