"""Folders of examples, on this machine or at an address such as s3://bucket/photos: listed and read the same way."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Protocol

import pyarrow.parquet as pq
from pyarrow import fs

from delta_tune.config import UserError
from delta_tune.filesystem.uris import is_uri, open_remote_filesystem

READERS = 16
"""Threads that read from an address at a time: they wait for its server, not for this machine."""


class Tree(Protocol):
    """A file, or a folder with all below it. Paths are its own; `shown` makes them the user's."""

    root: str
    name: str
    """Of its root, for the study's name."""
    readers: int
    """Threads that should read at a time; 0 for as many as there are processors."""

    def shown(self, path: str) -> str:
        """The path as the user gave it."""

    def is_file(self, path: str) -> bool:
        """Whether there is a file."""

    def is_folder(self, path: str) -> bool:
        """Whether there is a folder."""

    def folders(self, path: str) -> list[str]:
        """The folders in a folder, sorted, without hidden ones; none where there is no folder."""

    def files(self, path: str) -> list[str]:
        """The files in a folder, likewise."""

    def read(self, path: str) -> bytes:
        """What a file holds; called from many threads."""

    def parquet(self, path: str) -> pq.ParquetFile:
        """A Parquet file, open."""


def open_file_tree(place: str | Path) -> Tree:
    """The tree of a path or an address.

    Raises:
        UserError: an address that does not open.
    """
    return AddressTree(str(place)) if is_uri(place) else LocalTree(Path(place))


class LocalTree:
    """On this machine."""

    readers = 0

    def __init__(self, path: Path) -> None:
        self.root, self.name = str(path.expanduser()), path.expanduser().resolve().name

    def shown(self, path: str) -> str:
        """The path as it is."""
        return path

    def is_file(self, path: str) -> bool:
        """Whether there is a file."""
        return os.path.isfile(path)

    def is_folder(self, path: str) -> bool:
        """Whether there is a folder."""
        return os.path.isdir(path)

    def folders(self, path: str) -> list[str]:
        """Its folders."""
        return self._entries(path)[0]

    def files(self, path: str) -> list[str]:
        """Its files."""
        return self._entries(path)[1]

    def read(self, path: str) -> bytes:
        """What a file holds."""
        return Path(path).read_bytes()

    def parquet(self, path: str) -> pq.ParquetFile:
        """A Parquet file, open."""
        return pq.ParquetFile(path)

    def _entries(self, path: str) -> tuple[list[str], list[str]]:
        if not os.path.isdir(path):
            return [], []
        folders: list[str] = []
        files: list[str] = []
        for entry in os.scandir(path):
            if not entry.name.startswith("."):
                kind = folders if entry.is_dir() else files if entry.is_file() else []
                kind.append(entry.path)
        return sorted(folders), sorted(files)


class AddressTree:
    """On a server, through pyarrow. A folder is listed once."""

    readers = READERS

    def __init__(self, address: str) -> None:
        self._filesystem, path = open_remote_filesystem(address, "data")
        self.root = path.rstrip("/")
        self.name = Path(self.root).name
        self._scheme = address.partition("://")[0]
        self._entries = cache(self._list)

    def shown(self, path: str) -> str:
        """With the scheme before it."""
        return f"{self._scheme}://{path}"

    def is_file(self, path: str) -> bool:
        """Whether there is a file."""
        return bool(self._filesystem.get_file_info(path).type == fs.FileType.File)

    def is_folder(self, path: str) -> bool:
        """Whether there is a folder."""
        return bool(self._filesystem.get_file_info(path).type == fs.FileType.Directory)

    def folders(self, path: str) -> list[str]:
        """Its folders."""
        return self._entries(path)[0]

    def files(self, path: str) -> list[str]:
        """Its files."""
        return self._entries(path)[1]

    def read(self, path: str) -> bytes:
        """What a file holds.

        Raises:
            UserError: it did not come. That is no damaged image, which might be left out.
        """
        try:
            with self._filesystem.open_input_file(path) as file:
                content: bytes = file.read()
        except OSError as error:
            raise UserError(
                f"{self.shown(path)} cannot be read ({error}); try again once its server answers."
            ) from error
        return content

    def parquet(self, path: str) -> pq.ParquetFile:
        """A Parquet file, open."""
        return pq.ParquetFile(path, filesystem=self._filesystem)

    def _list(self, path: str) -> tuple[list[str], list[str]]:
        found = self._filesystem.get_file_info(fs.FileSelector(path, allow_not_found=True))
        seen = sorted((info for info in found if not info.base_name.startswith(".")), key=lambda info: info.path)
        folders = [info.path for info in seen if info.type == fs.FileType.Directory]
        return folders, [info.path for info in seen if info.type == fs.FileType.File]
