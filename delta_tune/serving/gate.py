"""Around every request: headers of the answer, metrics, a line in the access log, and no traceback for a client."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from delta_tune.config import visible
from delta_tune.serving.metrics import Metrics
from delta_tune.serving.model import as_json

log = logging.getLogger("delta_tune.serving")
GONE = 499
"""Counted for a client that went before its answer."""
HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
        b"form-action 'none'; base-uri 'none'; frame-ancestors 'none'",
    ),
]
SHOWN_CHARACTERS = 200


class Gate:
    """An ASGI application around another one."""

    def __init__(self, app: ASGIApp, metrics: Metrics, paths: Collection[str], *, access_log: bool) -> None:
        self._app, self._metrics, self._paths, self._access_log = app, metrics, paths, access_log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        start, status, has_body_left = time.perf_counter(), GONE, True

        async def receive_and_note() -> Message:
            nonlocal has_body_left
            message = await receive()
            has_body_left = message.get("more_body", False)
            return message

        async def send_and_note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                left = has_body_left and _has_body(scope)
                message["headers"] = [
                    *message["headers"],
                    *HEADERS,
                    *([(b"connection", b"close")] if left else []),
                ]
            await send(message)

        try:
            await self._app(scope, receive_and_note, send_and_note)
        except ClientDisconnect:
            pass
        except Exception as error:
            log.exception("%s %s failed", scope["method"], _shown(scope["path"]))
            if status != GONE:
                raise
            await _answer_fault(send_and_note, error)
        finally:
            self._note(scope, status, time.perf_counter() - start)

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        path = scope["path"] if scope["path"] in self._paths else "other"
        self._metrics.requests.labels(path, str(status)).inc()
        self._metrics.request_seconds.labels(path).observe(seconds)
        if self._access_log:
            client = scope["client"][0] if scope.get("client") else "-"
            log.info(
                "%s %s %s %d %.0f ms", client, visible(scope["method"]), _shown(scope["path"]), status, 1000 * seconds
            )


def _has_body(scope: Scope) -> bool:
    told = dict(scope["headers"])
    return b"transfer-encoding" in told or told.get(b"content-length", b"0") != b"0"


def _shown(path: str) -> str:
    return visible(path)[:SHOWN_CHARACTERS]


async def _answer_fault(send: Send, error: Exception) -> None:
    body = as_json({"error": f"The server failed ({type(error).__name__}); its log says more."})
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 500, "headers": headers})
    await send({"type": "http.response.body", "body": body})
