"""What happened since tables were last written whole: a line per event, in a file beside them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class Journal:
    """A file that grows by a line per event; a line is handed to the system before `append` returns.

    Events are numbered from 1 through all of a study, so that tables that say how many of them they hold can be read
    with a journal that is older than they are: one copied a moment before, or left by a process that was killed.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self.told = 0
        """Events so far."""

    def append(self, event: Mapping[str, Any]) -> None:
        """One more; floats are kept bit for bit, non-finite ones too."""
        with self._file.open("a") as opened:
            opened.write(json.dumps([self.told + 1, event]) + "\n")
        self.told += 1

    def resume(self, told: int) -> list[dict[str, Any]]:
        """The events that follow those `told`; one that was being written when its process was killed is none.

        Raises:
            ValueError: a line is damaged.
        """
        self.told = told
        found = []
        *lines, _torn = self._file.read_text().split("\n") if self._file.exists() else [""]
        for number, event in map(json.loads, lines):
            if number == self.told + 1:  # after a gap nothing follows
                found.append(event)
                self.told = number
        return found

    def clear(self) -> None:
        """Remove the file: the tables have all that it says."""
        self._file.unlink(missing_ok=True)
