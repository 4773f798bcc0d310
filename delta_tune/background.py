"""Work that is done again and again beside the rest."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class TimeShare:
    """Tells when a piece of work may be done again that is to take no more than a part of the time.

    Args:
        of_time: that part, above 0 and at most 1.
    """

    def __init__(self, of_time: float) -> None:
        self._of_time, self._due = of_time, 0.0

    @property
    def free(self) -> bool:
        """Whether the pieces that were done have had their time."""
        return time.monotonic() >= self._due

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Within it a piece is done."""
        began = time.monotonic()
        try:
            yield
        finally:
            ended = time.monotonic()
            self._due = ended + (ended - began) * (1 / self._of_time - 1)


@contextmanager
def run_every(seconds: float, work: Callable[[], None]) -> Iterator[None]:
    """Within it a thread does `work` after every so many seconds; at its end a piece that was begun is waited for."""
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
