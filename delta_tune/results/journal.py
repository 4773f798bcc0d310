"""The journal: one line per event since the tables were last written, in a file beside them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from delta_tune.filesystem.untrusted import parse_json, read_file

LIMIT = 32 * 2**20
"""Bytes of a journal; it is removed long before whenever the tables are written."""


class Journal:
    """An append-only file, one line per event; a line is handed to the operating system before `append` returns.

    Events are numbered from 1 over the whole study, and the tables say how many they include. So tables can be read
    together with an older journal: one copied a moment earlier, or left by a killed process.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self.count = 0
        """Number of events so far."""

    def append(self, event: Mapping[str, Any]) -> None:
        """Append an event; floats keep every bit, non-finite ones too."""
        with self._file.open("a") as opened:
            opened.write(json.dumps([self.count + 1, event]) + "\n")
        self.count += 1

    def resume(self, count: int) -> list[dict[str, Any]]:
        """The events after number `count`; an incomplete last line is ignored.

        Raises:
            OSError: the file cannot be read, or is larger than `LIMIT`.
            ValueError: a line is damaged.
        """
        self.count = count
        events = []
        try:
            *lines, _torn = read_file(self._file, LIMIT).split(b"\n")
        except FileNotFoundError:
            return []
        for line in lines:
            match parse_json(line, list, finite=False):
                case [int(number), dict(event)]:
                    if number == self.count + 1:  # nothing counts after a gap
                        events.append(event)
                        self.count = number
                case _:
                    raise ValueError(f"{self._file.name} has a line that is no numbered event")
        return events

    def clear(self) -> None:
        """Remove the file: the tables include all its events."""
        self._file.unlink(missing_ok=True)
