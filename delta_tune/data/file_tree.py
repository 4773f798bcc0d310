"""List and read folders of examples, local or at an address such as s3://bucket/photos."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from pyarrow import fs

from delta_tune.config import UserError
from delta_tune.data.limits import MAX_FILE_SIZE, check_file_size, read_file
from delta_tune.filesystem.parquet import open_parquet
from delta_tune.filesystem.uris import is_uri, open_remote_filesystem

READERS = 16
"""Threads that read from an address: they wait for the server, not for this machine."""

_SYSTEM_FOLDERS = frozenset(
    ("$recycle.bin", "#recycle", "@eadir", "@recycle", "__macosx", "lost+found", "system volume information")
)
"""In lower case: folders that file systems, archives and network drives put beside a user's own."""


@dataclass(frozen=True, slots=True)
class Entries:
    """What a folder holds, each list sorted by path; symbolic links count as their targets."""

    folders: list[str]
    files: list[str]
    others: list[str]
    """Links whose target cannot be reached, named pipes, sockets and devices."""
    hidden_files: list[str]
    """Names that begin with a dot."""
    hidden_folders: list[str]
    """Names that begin with a dot, and folders of the system such as lost+found."""


class FileTree:
    """A file, or a folder with everything below it. Paths are internal; `shown` gives the user's form.

    Local files are read with `os`, not pyarrow's LocalFileSystem, which cannot list a folder with a non-UTF-8 name and
    has error messages of its own.

    Attributes:
        root: path of the whole tree.
        name: name of the root, part of the study's name.
        readers: number of reading threads; 0 for one per processor.
        entries: what the folder at a path holds; nothing if it does not exist, UserError if it cannot be listed.
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
            self.root = str(Path(os.path.expanduser(location)))
            self.name = os.path.basename(os.path.realpath(self.root))
        self.entries = cache(self._list)  # each folder is requested from the server once

    @property
    def is_remote(self) -> bool:
        """Whether it is at an address."""
        return self._remote is not None

    def rooted(self, path: str) -> FileTree:
        """The tree of a folder in the same file system."""
        tree = copy(self)
        tree.root = path or "."
        return tree

    def shown(self, path: str) -> str:
        """The path as the user gave it."""
        return self._prefix + path

    def is_file(self, path: str) -> bool:
        """Whether there is a file."""
        if self._remote is None:
            return os.path.isfile(path)
        with self._listing(path):
            return bool(self._remote.get_file_info(path).type == fs.FileType.File)

    def is_folder(self, path: str) -> bool:
        """Whether there is a folder."""
        if self._remote is None:
            return os.path.isdir(path)
        with self._listing(path):
            return bool(self._remote.get_file_info(path).type == fs.FileType.Directory)

    def folders(self, path: str) -> list[str]:
        """Subfolders of a folder, sorted, without hidden ones; empty if the folder does not exist."""
        return self.entries(path).folders

    def files(self, path: str) -> list[str]:
        """Files of a folder, sorted, without hidden ones; empty if the folder does not exist."""
        return self.entries(path).files

    def walk(self, path: str) -> tuple[list[str], list[str]]:
        """A folder and all folders below it.

        Returns:
            The folders, each before its subfolders; and the links that lead to one of them or to a folder that holds
            them, which are not followed. If `path` is such a link itself, there are no folders.

        Raises:
            UserError: a folder cannot be listed.
        """
        passed = set()
        above = path
        while above != self.root:
            above = os.path.dirname(above)
            passed.add(self._identity(above))
        found: list[str] = []
        repeated: list[str] = []
        pending = [path]
        while pending:
            folder = pending.pop()
            identity = self._identity(folder)
            if identity in passed:
                repeated.append(folder)
                continue
            passed.add(identity)
            found.append(folder)
            pending += reversed(self.folders(folder))
        return found, repeated

    def read(self, path: str, *, listed: bool = True) -> bytes:
        """The content of a file; called from many threads.

        Args:
            path: of the file.
            listed: whether the file was seen in a listing, so that its server is at fault if it is not there.

        Raises:
            OSError: a local file cannot be read, or a file is larger than an image may be.
            UserError: the server did not deliver a file. That is not a damaged image, which could be skipped.
        """
        if self._remote is None:
            return _read_local(path)
        try:
            with self._remote.open_input_file(path) as file:
                size: int = file.size()
                content: bytes = file.read() if size <= MAX_FILE_SIZE else b""
        except OSError as error:
            if not listed and isinstance(error, FileNotFoundError):
                raise FileNotFoundError(errno.ENOENT, "no such file", path) from error
            raise UserError(
                f"{self.shown(path)} cannot be read ({error}); try again once its server answers."
            ) from error
        check_file_size(size)
        return content

    def read_part(self, path: str, begin: int, size: int) -> bytes:
        """`size` bytes of a file from the byte `begin` on; called from many threads.

        Raises:
            OSError: a local file cannot be read, or has fewer.
            UserError: the server did not deliver a file.
        """
        try:
            with self.opened(path) as file:
                file.seek(begin)
                content: bytes = file.read(size)
        except OSError as error:
            if self._remote is None:
                raise
            raise UserError(
                f"{self.shown(path)} cannot be read ({error}); try again once its server answers."
            ) from error
        if len(content) < size:
            raise OSError(errno.EIO, "fewer bytes than before", path)
        return content

    def opened(self, path: str) -> Any:
        """A file, open for reading bytes anywhere in it; a context.

        Raises:
            OSError: it cannot be opened.
        """
        return open(path, "rb") if self._remote is None else self._remote.open_input_file(path)

    def size(self, path: str) -> int:
        """Bytes of a file."""
        with self._listing(path):
            return os.path.getsize(path) if self._remote is None else int(self._remote.get_file_info(path).size)

    def parquet(self, path: str) -> pq.ParquetFile:
        """An open Parquet file.

        Raises:
            UserError: it cannot be read, or has extension types.
        """
        return open_parquet(path, name=self.shown(path), filesystem=self._remote)

    def _list(self, path: str) -> Entries:
        """What a folder holds; nothing if it does not exist.

        Raises:
            UserError: the folder cannot be listed.
        """
        with self._listing(path):
            if self._remote is not None:
                found = self._remote.get_file_info(fs.FileSelector(path, allow_not_found=True))
                return _sorted_entries((info.base_name, info.path, info.type) for info in found)
            if not os.path.isdir(path):
                return _sorted_entries(())
            with os.scandir(path) as entries:
                return _sorted_entries((entry.name, entry.path, _type_of(entry)) for entry in entries)

    def _identity(self, path: str) -> object:
        """Equal for two paths of one folder."""
        if self._remote is not None:
            return path
        with self._listing(path):
            status = os.stat(path)
        return status.st_dev, status.st_ino

    @contextmanager
    def _listing(self, path: str) -> Iterator[None]:
        """Turn errors of the file system into a sentence."""
        try:
            yield
        except OSError as error:
            raise UserError(
                f"{self.shown(path)!r} cannot be listed ({error.strerror or error}); get the right to read it, or move "
                f"it out of the data."
            ) from error


def _sorted_entries(entries: Iterable[tuple[str, str, fs.FileType]]) -> Entries:
    """From the name, path and type of each."""
    found = Entries([], [], [], [], [])
    for name, path, kind in sorted(entries, key=lambda entry: entry[1]):
        is_hidden = name.startswith(".")
        if kind == fs.FileType.Directory:
            is_hidden |= name.lower() in _SYSTEM_FOLDERS
            (found.hidden_folders if is_hidden else found.folders).append(path)
        elif is_hidden:
            found.hidden_files.append(path)
        else:
            (found.files if kind == fs.FileType.File else found.others).append(path)
    return found


def _type_of(entry: os.DirEntry[str]) -> fs.FileType:
    try:
        if entry.is_dir():
            return fs.FileType.Directory
        return fs.FileType.File if entry.is_file() else fs.FileType.Unknown
    except OSError:  # a link that leads to itself, or into a folder that is locked
        return fs.FileType.Unknown


def _read_local(path: str) -> bytes:
    """The content of a file; a link that leads nowhere is named as such."""
    try:
        return read_file(path)
    except FileNotFoundError:
        if os.path.islink(path):
            raise FileNotFoundError(errno.ENOENT, "a link that leads nowhere", path) from None
        raise
