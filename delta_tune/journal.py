"""What happened since tables were last written whole: a line per event, in a file beside them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class Journal:
    """A file that grows by a line per event; a line is handed to the system before `append` returns."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def append(self, event: Mapping[str, Any]) -> None:
        """One more; floats are kept bit for bit, non-finite ones too."""
        with self._file.open("a") as opened:
            opened.write(json.dumps(event) + "\n")

    def events(self) -> list[dict[str, Any]]:
        """All of them; one that was being written when its process was killed is none.

        Raises:
            ValueError: a line is damaged.
        """
        if not self._file.exists():
            return []
        *lines, _torn = self._file.read_text().split("\n")
        return [json.loads(line) for line in lines]

    def clear(self) -> None:
        """Remove the file: the tables have all that it says."""
        self._file.unlink(missing_ok=True)
