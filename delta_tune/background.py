"""Work that is done again and again beside the rest."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def regularly(seconds: float, work: Callable[[], None]) -> Iterator[None]:
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
