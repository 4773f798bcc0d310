"""SIGTERM and SIGHUP end a study like Ctrl-C: `kill`, `timeout`, Slurm, Kubernetes and closed terminals send them."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType

REPEAT_S = 2.0
"""A signal that comes again within this time is the same request: `timeout` sends each twice."""

READERS_END_S = 0.2
"""For a program that reads our output, such as `tee`, to end by the same signal."""


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
    last = -REPEAT_S

    def end(number: int, frame: FrameType | None) -> None:
        nonlocal last
        repeated, last = time.monotonic() - last < REPEAT_S, time.monotonic()
        if repeated:
            return
        try:
            time.sleep(READERS_END_S)
            _close_outputs_without_readers()
            os.write(2, f"launch.py: {signal.Signals(number).name}: the study ends; --resume continues it\n".encode())
            handler = signal.getsignal(signal.SIGINT)
            if not callable(handler):  # a shell's background job ignores SIGINT
                raise KeyboardInterrupt
            handler(signal.SIGINT, frame)
        finally:
            last = time.monotonic()  # Python may call this for one that came at the beginning only now

    for number, handler in before.items():
        if handler is not signal.SIG_IGN:  # as under nohup
            signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _close_outputs_without_readers() -> None:
    """Point outputs whose terminal or pipe is gone at the null device: to write to them would be an error."""
    for handle in (1, 2):
        poll = select.poll()
        poll.register(handle, 0)  # reports POLLERR and POLLHUP, which need not be asked for
        if poll.poll(0):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, handle)
            os.close(null)
