"""SIGTERM and SIGHUP end a study like Ctrl-C: `kill`, `timeout`, Slurm, Kubernetes and closed terminals send them."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType

REPEAT_S = 2.0
"""A signal that comes again within this time is the same request: `timeout` sends each twice."""


@contextlib.contextmanager
def signals_like_ctrl_c() -> Iterator[None]:
    """Handle SIGTERM and SIGHUP in the block as SIGINT is handled at that moment; signals that are ignored stay so.

    Raises:
        KeyboardInterrupt: one came while SIGINT had no handler other than Python's.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [signal.Signals[name] for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in numbers}
    terminals = [handle for handle in (0, 1, 2) if _is_terminal(handle)]
    last = -REPEAT_S

    def end(number: int, frame: FrameType | None) -> None:
        nonlocal last
        if number != signal.SIGTERM:
            _close_terminals(terminals)
        repeated, last = time.monotonic() - last < REPEAT_S, time.monotonic()
        if repeated:
            return
        os.write(2, f"launch.py: {signal.Signals(number).name}: the study ends; --resume continues it\n".encode())
        handler = signal.getsignal(signal.SIGINT)
        if not callable(handler):  # a shell's background job ignores SIGINT
            raise KeyboardInterrupt
        handler(signal.SIGINT, frame)

    for number, handler in before.items():
        if handler is not signal.SIG_IGN:  # as under nohup
            signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _is_terminal(handle: int) -> bool:
    try:
        return os.isatty(handle)
    except OSError:  # it is closed
        return False


def _close_terminals(handles: list[int]) -> None:
    """Point terminals that are gone at the null device: to write to them would be an error."""
    null = os.open(os.devnull, os.O_RDWR)
    for handle in handles:
        os.dup2(null, handle)
    os.close(null)
