"""A trial that hangs is ended with its process, by a thread that needs nothing of Python: faulthandler's."""

from __future__ import annotations

import faulthandler
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FACTOR = 20.0
"""A trial hangs if an epoch takes this many times the longest that its process has seen,"""
LEAST_S = 60.0
"""but no less than this,"""
FIRST_S = 7200.0
"""and this where its process has seen none."""

_longest: float | None = None
"""Seconds of the longest epoch of this process: trials of a study come to the same processes."""


class Watchdog:
    """Ends the process when an epoch takes too long; open while a trial runs."""

    def __init__(self, file: int, *, factor: float, least_s: float, first_s: float) -> None:
        self._file, self._factor, self._least_s, self._first_s = file, factor, least_s, first_s
        self._began = 0.0
        self.begin()

    def begin(self) -> None:
        """An epoch begins."""
        limit = self._first_s if _longest is None else max(self._least_s, self._factor * _longest)
        faulthandler.dump_traceback_later(limit, exit=True, file=self._file)
        self._began = time.monotonic()

    def end(self, epoch_s: float = 0.0) -> None:
        """The epoch is over: what comes until the next is none of the trial's time.

        Args:
            epoch_s: its own account of itself: one that an earlier process ran took this one no time.
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
        note: where the stacks of all threads are written to before the process ends; empty if it was not needed, and
            then taken away.
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
            note.unlink(missing_ok=True)  # a trial that is stopped has its folder cleared while it ends


def timeout_from_note(note: Path) -> float | None:
    """Seconds that the epoch was let run that an earlier process ended for; None where none was."""
    first = note.read_text(errors="replace").partition("\n")[0] if note.exists() else ""
    timeout = re.match(r"Timeout \((\d+):(\d+):([\d.]+)\)", first)
    if timeout is None:
        return None
    hours, minutes, seconds = map(float, timeout.groups())
    return 3600 * hours + 60 * minutes + seconds
