"""Files that appear whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def atomic_write(file: Path) -> Iterator[Path]:
    """A temporary name beside `file` to write to, which becomes `file` at the end; an exception removes it."""
    partial = file.with_name(f".{file.name}.partial")
    try:
        yield partial
        partial.replace(file)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_json(file: Path, content: Mapping[str, Any]) -> None:
    """Write an indented JSON file, whole or not at all."""
    with atomic_write(file) as partial:
        partial.write_text(json.dumps(content, indent=2, default=str, allow_nan=False) + "\n")
