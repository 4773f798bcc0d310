"""Folders of examples, on this machine or at an address such as s3://bucket/photos: listed and read the same way."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

import pyarrow.parquet as pq
from pyarrow import fs

from delta_tune.config import UserError
from delta_tune.filesystem.uris import is_uri, open_remote_filesystem

READERS = 16
"""Threads that read from an address at a time: they wait for its server, not for this machine."""


class FileTree:
    """A file, or a folder with all below it. Paths are its own; `shown` makes them the user's.

    Local files go through `os`, not through pyarrow's LocalFileSystem: that cannot list a folder that holds one name
    outside UTF-8, and reports errors in words of its own.

    Attributes:
        root: path of the whole tree.
        name: of its root, for the study's name.
        readers: threads that should read at a time; 0 for as many as there are processors.
    """

    def __init__(self, location: str | Path) -> None:
        """`location`: a path, or an address.

        Raises:
            UserError: an address that does not open.
        """
        self._remote: fs.FileSystem | None = None
        self._prefix, self.readers = "", 0
        if is_uri(location):
            address = str(location)
            self._remote, path = open_remote_filesystem(address, "data")
            self._prefix, self.readers = address.partition("://")[0] + "://", READERS
            self.root = path.rstrip("/")
            self.name = Path(self.root).name
        else:
            local = Path(location).expanduser()
            self.root, self.name = str(local), local.resolve().name
        self._entries = cache(self._list)  # a server is asked once for each folder

    def shown(self, path: str) -> str:
        """The path as the user gave it."""
        return self._prefix + path

    def is_file(self, path: str) -> bool:
        """Whether there is a file."""
        if self._remote is None:
            return os.path.isfile(path)
        return bool(self._remote.get_file_info(path).type == fs.FileType.File)

    def is_folder(self, path: str) -> bool:
        """Whether there is a folder."""
        if self._remote is None:
            return os.path.isdir(path)
        return bool(self._remote.get_file_info(path).type == fs.FileType.Directory)

    def folders(self, path: str) -> list[str]:
        """The folders in a folder, sorted, without hidden ones; none where there is no folder."""
        return self._entries(path)[0]

    def files(self, path: str) -> list[str]:
        """The files in a folder, likewise."""
        return self._entries(path)[1]

    def read(self, path: str) -> bytes:
        """What a file holds; called from many threads.

        Raises:
            OSError: a local file cannot be read.
            UserError: a file did not come from its server. That is no damaged image, which might be left out.
        """
        if self._remote is None:
            return Path(path).read_bytes()
        try:
            with self._remote.open_input_file(path) as file:
                content: bytes = file.read()
        except OSError as error:
            raise UserError(
                f"{self.shown(path)} cannot be read ({error}); try again once its server answers."
            ) from error
        return content

    def parquet(self, path: str) -> pq.ParquetFile:
        """A Parquet file, open."""
        return pq.ParquetFile(path, filesystem=self._remote)

    def _list(self, path: str) -> tuple[list[str], list[str]]:
        """Folders and files in a folder; symbolic links count as what they point to."""
        if self._remote is not None:
            found = self._remote.get_file_info(fs.FileSelector(path, allow_not_found=True))
            named = [info for info in found if not info.base_name.startswith(".")]
            folders = [info.path for info in named if info.type == fs.FileType.Directory]
            files = [info.path for info in named if info.type == fs.FileType.File]
        elif os.path.isdir(path):
            entries = [entry for entry in os.scandir(path) if not entry.name.startswith(".")]
            folders = [entry.path for entry in entries if entry.is_dir()]
            files = [entry.path for entry in entries if entry.is_file()]
        else:
            folders, files = [], []
        return sorted(folders), sorted(files)
