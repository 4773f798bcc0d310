"""List and read folders of examples, local or at an address such as s3://bucket/photos."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

import pyarrow.parquet as pq
from pyarrow import fs

from delta_tune.config import UserError
from delta_tune.data.limits import MAX_FILE_SIZE, check_file_size, read_file
from delta_tune.filesystem.uris import is_uri, open_remote_filesystem

READERS = 16
"""Threads that read from an address: they wait for the server, not for this machine."""


class FileTree:
    """A file, or a folder with everything below it. Paths are internal; `shown` gives the user's form.

    Local files are read with `os`, not pyarrow's LocalFileSystem, which cannot list a folder with a non-UTF-8 name and
    has error messages of its own.

    Attributes:
        root: path of the whole tree.
        name: name of the root, part of the study's name.
        readers: number of reading threads; 0 for one per processor.
    """

    def __init__(self, location: str | Path) -> None:
        """`location`: a path, or an address.

        Raises:
            UserError: the address cannot be opened.
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
        self._entries = cache(self._list)  # each folder is requested from the server once

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
        """Subfolders of a folder, sorted, without hidden ones; empty if the folder does not exist."""
        return self._entries(path)[0]

    def files(self, path: str) -> list[str]:
        """Files of a folder, sorted, without hidden ones; empty if the folder does not exist."""
        return self._entries(path)[1]

    def read(self, path: str) -> bytes:
        """The content of a file; called from many threads.

        Raises:
            OSError: a local file cannot be read, or a file is larger than an image may be.
            UserError: the server did not deliver a file. That is not a damaged image, which could be skipped.
        """
        if self._remote is None:
            return read_file(path)
        try:
            with self._remote.open_input_file(path) as file:
                size: int = file.size()
                content: bytes = file.read() if size <= MAX_FILE_SIZE else b""
        except OSError as error:
            raise UserError(
                f"{self.shown(path)} cannot be read ({error}); try again once its server answers."
            ) from error
        check_file_size(size)
        return content

    def parquet(self, path: str) -> pq.ParquetFile:
        """An open Parquet file."""
        return pq.ParquetFile(path, filesystem=self._remote)

    def _list(self, path: str) -> tuple[list[str], list[str]]:
        """Folders and files in a folder; symbolic links count as their targets."""
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
