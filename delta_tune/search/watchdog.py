"""End the process of a trial that hangs, from faulthandler's native watchdog thread.

A process that stood still with its machine is ended too: the trial goes on in another, and only a second time in the
same epoch is its own fault.
"""

from __future__ import annotations

import faulthandler
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FACTOR = 20.0
"""A trial hangs if an epoch takes this many times the longest one in its process,"""
LEAST_S = 60.0
"""but at least this many seconds,"""
FIRST_S = 7200.0
"""or this many seconds if the process has finished no epoch yet."""

_longest: float | None = None
"""Seconds of the longest epoch in this process, over all its trials."""


class Watchdog:
    """Ends the process if an epoch takes too long."""

    def __init__(self, file: int, *, factor: float, least_s: float, first_s: float) -> None:
        self._file, self._factor, self._least_s, self._first_s = file, factor, least_s, first_s
        self._began = 0.0
        self.begin()

    @contextmanager
    def epoch(self) -> Iterator[None]:
        """Watch over the block, an epoch."""
        self.begin()
        yield
        self.end()

    def begin(self) -> None:
        """An epoch begins."""
        limit = self._first_s if _longest is None else max(self._least_s, self._factor * _longest)
        faulthandler.dump_traceback_later(limit, exit=True, file=self._file)
        self._began = time.monotonic()

    def end(self, epoch_s: float = 0.0) -> None:
        """An epoch ended; time until the next one does not count.

        Args:
            epoch_s: the epoch's own duration; a row repeated from an earlier process took no time here.
        """
        global _longest
        faulthandler.cancel_dump_traceback_later()
        _longest = max(_longest or 0.0, time.monotonic() - self._began, epoch_s)


@contextmanager
def watch_epochs(
    note: Path, *, factor: float = FACTOR, least_s: float = LEAST_S, first_s: float = FIRST_S
) -> Iterator[Watchdog]:
    """Watch over a trial's epochs.

    Args:
        note: file for the stacks of all threads, written before the process ends; removed if not needed.
        factor: `FACTOR`.
        least_s: `LEAST_S`.
        first_s: `FIRST_S`.
    """
    note.parent.mkdir(parents=True, exist_ok=True)
    with note.open("w") as file:
        try:
            yield Watchdog(file.fileno(), factor=factor, least_s=least_s, first_s=first_s)
        finally:
            faulthandler.cancel_dump_traceback_later()
            note.unlink(missing_ok=True)  # the folder of a stopped trial may be removed while it ends


def timeout_from_note(note: Path) -> float | None:
    """The time limit in seconds that an earlier process exceeded; None if there is no note."""
    first = note.read_text(errors="replace").partition("\n")[0] if note.exists() else ""
    timeout = re.match(r"Timeout \((\d+):(\d+):([\d.]+)\)", first)
    if timeout is None:
        return None
    hours, minutes, seconds = map(float, timeout.groups())
    return 3600 * hours + 60 * minutes + seconds
