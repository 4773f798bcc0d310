"""The cache that studies share: measurements under a key of everything they depend on."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import uuid
from collections.abc import Iterable
from pathlib import Path

from pyarrow import fs

from delta_tune.config import UserError
from delta_tune.filesystem.rows import FILE_BYTES
from delta_tune.filesystem.uris import open_filesystem, read_regular


def content_key(parts: Iterable[str]) -> str:
    """Hex digest of `parts`, in order."""
    return hashlib.sha256(json.dumps(list(parts)).encode()).hexdigest()[:32]


class Cache:
    """A folder of atomically written files, so that studies can share it."""

    def __init__(self, location: str | Path) -> None:
        """`location`: a local folder, or `s3://bucket/folder` and other addresses that pyarrow.fs knows.

        Raises:
            UserError: the address cannot be opened, or the folder is not writable.
        """
        self.location = str(location)
        self._filesystem, self._root = open_filesystem(location, "cache")
        if isinstance(self._filesystem, fs.LocalFileSystem):
            above = next(parent for parent in (Path(self._root), *Path(self._root).parents) if parent.exists())
            if not above.is_dir() or not os.access(above, os.W_OK):
                raise UserError(f"cache {self.location} cannot be written to ({above}); give a folder that can.")

    def path(self, name: str) -> str:
        """Full path or address of a file, for messages."""
        return f"{self._root}/{name}"

    def read(self, name: str, limit: int = FILE_BYTES) -> bytes | None:
        """The file's content; None if there is no such file.

        Raises:
            OSError: it cannot be read, is no regular file, or has more than `limit` bytes.
        """
        return read_regular(self._filesystem, self.path(name), limit)

    def remove(self, name: str) -> None:
        """Remove a file, if there is one.

        Raises:
            OSError: it cannot be removed.
        """
        with contextlib.suppress(FileNotFoundError):
            self._filesystem.delete_file(self.path(name))

    def write(self, name: str, content: bytes) -> None:
        """Write or replace a file.

        Raises:
            OSError: the file cannot be written.
        """
        self._filesystem.create_dir(self._root, recursive=True)
        partial = self.path(f"{name}.{uuid.uuid4().hex}.partial")
        with self._filesystem.open_output_stream(partial) as file:
            file.write(content)
        self._filesystem.move(partial, self.path(name))
