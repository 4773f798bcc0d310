"""Atomic file writes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def atomic_write(file: Path) -> Iterator[Path]:
    """Yield a temporary path beside `file`; rename it to `file` at the end, delete it after an exception."""
    partial = file.with_name(f".{file.name}.partial")
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
