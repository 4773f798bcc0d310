"""Recurring work beside the main thread: run it every few seconds, or limit it to a share of the time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class TimeShare:
    """Limits a recurring job to a share of wall-clock time.

    Args:
        of_time: the share, in (0, 1].
    """

    def __init__(self, of_time: float) -> None:
        self._of_time, self._due = of_time, 0.0

    @property
    def free(self) -> bool:
        """Whether the job may run again now."""
        return time.monotonic() >= self._due

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Count the time of the block as time spent on the job."""
        began = time.monotonic()
        try:
            yield
        finally:
            ended = time.monotonic()
            self._due = ended + (ended - began) * (1 / self._of_time - 1)


@contextmanager
def run_every(seconds: float, work: Callable[[], None]) -> Iterator[None]:
    """Call `work` from a thread every `seconds` while the block runs; wait for a call in progress at the end."""
    over = threading.Event()

    def run() -> None:
        while not over.wait(seconds):
            work()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
