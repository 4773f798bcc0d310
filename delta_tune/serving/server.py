"""Run the application: one process, one event loop, one socket."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
from collections.abc import Callable
from typing import Any

import uvicorn
from fastapi import FastAPI

from delta_tune.config import UserError, visible
from delta_tune.serving.protocol import HEADERS_S, BoundedProtocol
from delta_tune.serving.settings import Settings

KEEP_ALIVE_S = 20
BACKLOG = 256
MAX_PORT = 65_535


class VisibleFormatter(logging.Formatter):
    """Without characters that a terminal would act on."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as text."""
        return visible(super().format(record), keep="\n\t")


def listen(host: str, port: int) -> socket.socket:
    """Open a socket that listens.

    Args:
        host: a name or an address of this machine; 0.0.0.0 and :: are all of it.
        port: 0 is any that is free.

    Raises:
        UserError: the port is taken or not allowed, or the host is no address of this machine.
    """
    if not 0 <= port <= MAX_PORT:
        raise UserError(f"--port must be from 0 to {MAX_PORT}, but got {port}.")
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server(address[:2], family=family, backlog=BACKLOG)
    except (OSError, UnicodeError) as error:
        number = getattr(error, "errno", None) or 0
        cause = os.strerror(number) if number > 0 else getattr(error, "strerror", None) or error
        raise UserError(
            f"The server cannot listen at {address_of(host, port)} ({cause}); give another --port (0 is any that is "
            f"free) or --host."
        ) from error


def address_of(host: str, port: int) -> str:
    """HOST:PORT as it stands in an address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def run(app: FastAPI, listening: socket.socket, settings: Settings, announce: Callable[[], None]) -> int:
    """Serve until SIGTERM or Ctrl-C; requests in progress end before.

    Args:
        app: to serve.
        listening: socket.
        settings: limits.
        announce: called once requests are answered.

    Returns:
        The exit status: 0 after SIGTERM, 130 after Ctrl-C.
    """
    _set_up_log()

    class Protocol(BoundedProtocol):
        max_connections = settings.max_connections
        headers_s = min(HEADERS_S, settings.read_timeout_s)

    config = uvicorn.Config(
        app,
        http=Protocol,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=max(1, round(settings.drain_s)),
    )
    server = _Server(config, announce)
    ends = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        server.run(sockets=[listening])  # it raises the signal that ended it again
    finally:
        for number, handler in ends.items():
            signal.signal(number, handler)
    return 130 if server.ended_by == signal.SIGINT else 0


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, announce: Callable[[], None]) -> None:
        super().__init__(config)
        self._announce = announce
        self.ended_by: int | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._announce()

    def handle_exit(self, sig: int, frame: Any) -> None:
        self.ended_by = sig
        super().handle_exit(sig, frame)


def _set_up_log() -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(VisibleFormatter("%(asctime)s %(message)s"))
    for name, level in (("delta_tune.serving", logging.INFO), ("uvicorn", logging.ERROR), ("asyncio", logging.ERROR)):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)
