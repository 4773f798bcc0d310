"""Atomic file writes."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PARTIAL = ".partial"
"""Suffix of files that are being written; a killed process leaves them."""
SHOWN_CHARACTERS = 40
"""Of the file's name in its temporary one: file systems limit a name to 255 bytes."""


@contextmanager
def atomic_write(file: Path) -> Iterator[Path]:
    """Yield a new, empty file beside `file`; rename it to `file` at the end, delete it after an exception.

    Its name cannot be foreseen and it is created exclusively: a link that lies in the folder is never written through.
    """
    partial = file.with_name(f".{file.name[:SHOWN_CHARACTERS]}.{secrets.token_hex(8)}{PARTIAL}")
    partial.touch(exist_ok=False)
    try:
        yield partial
        partial.replace(file)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_json(file: Path, content: Mapping[str, Any]) -> None:
    """Write an indented JSON file atomically."""
    with atomic_write(file) as partial:
        partial.write_text(json.dumps(content, indent=2, default=str, allow_nan=False) + "\n")
