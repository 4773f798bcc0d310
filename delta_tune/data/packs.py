"""Image files packed on this node's disk, found by the digest of what they were made of.

A folder holds packs. A pack is a file with the images one after another, and an index in Arrow's IPC format, sorted by
digest, which is mapped into memory: it takes none of the process's own. Both appear whole, the index last, and never
change. Images are read by position (`pread`), not through a map of the file: a disk that fails or a file that was cut
is then an error that can be mended, where a map would end the process, and what is read does not count as the
process's memory. The page cache keeps what is read often, for all processes of the node, as long as there is room.
"""

from __future__ import annotations

import errno
import os
import shutil
import threading
import time
import uuid
import zlib
from array import array
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

import filelock
import numpy as np
import pyarrow as pa

from delta_tune.config import UserError
from delta_tune.console.format import format_bytes
from delta_tune.data.encoding import Digests, as_digests

SCRATCH = "~/.cache/delta_tune/images"
"""Where packs lie if the user names no other place."""
KEPT_DAYS = 30
"""Folders of packs that nobody has opened for so long are removed when another is written."""
SPARE = 256 * 2**20
"""Bytes of the disk that packs leave free."""
LARGEST = 16 * 2**30
"""Bytes of a pack from which on another is begun: of a process that is killed, the ones before stay."""
READERS = 16
"""Threads that read a batch: they wait for the disk, not for a processor."""
_IMAGES, _INDEX, _PARTIAL, _LOCK, _USED = ".images", ".index", ".partial", "lock", "used"
_SCHEMA = pa.schema([("digest", pa.binary(32)), ("offset", pa.int64()), ("size", pa.int64()), ("checksum", pa.int64())])


class DamagedPackError(Exception):
    """A pack is shorter than its index says, or its index cannot be read."""


class NoRoomError(UserError):
    """The disk has no room for a pack, or cannot be written to; it stops a study like an OSError of that number."""

    def __init__(self, message: str, folder: Path, number: int = errno.ENOSPC) -> None:
        super().__init__(message)
        self.errno, self.filename = number, str(folder)

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.args[0], Path(self.filename), self.errno)


class Pack:
    """One pack, open for reading.

    Raises:
        DamagedPackError: it is not as it was written.
    """

    def __init__(self, index: Path) -> None:
        self.index = index
        self._file = -1
        try:
            self._file = os.open(index.with_suffix(_IMAGES), os.O_RDONLY)
            with pa.memory_map(str(index)) as mapped:
                table = pa.ipc.open_file(mapped).read_all()
            if table.schema != _SCHEMA or table.column("digest").num_chunks > 1:
                raise DamagedPackError(f"{index} has other columns")
            self.digests = _column(table, "digest", "S32")
            self.offsets, self.sizes, self.checksums = (
                _column(table, name, "i8") for name in ("offset", "size", "checksum")
            )
            size = os.fstat(self._file).st_size
            if len(self.sizes) and size != int((self.offsets + self.sizes).max()):
                raise DamagedPackError(f"{index} is for a file of another size")
        except (OSError, pa.ArrowException) as error:
            self.close()
            raise DamagedPackError(f"{index} cannot be read ({error})") from error
        except DamagedPackError:
            self.close()
            raise

    def find(self, digests: Digests) -> np.ndarray:
        """The position of each digest (N,), -1 where it is not here."""
        if not len(self.digests):
            return np.full(len(digests), -1)
        places = np.minimum(np.searchsorted(self.digests, digests), len(self.digests) - 1)
        return np.where(self.digests[places] == digests, places, -1)

    def read(self, position: int) -> bytes | None:
        """The image at a position; None if it is not what was written."""
        try:
            content = os.pread(self._file, int(self.sizes[position]), int(self.offsets[position]))
        except OSError:
            return None
        whole = len(content) == self.sizes[position] and zlib.crc32(content) == self.checksums[position]
        return content if whole else None

    def close(self) -> None:
        """Close the file."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


class PackStore:
    """The packs of a folder; safe for threads.

    Args:
        folder: need not exist.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._packs: dict[str, Pack] = {}
        self._damaged: set[bytes] = set()
        """Digests of images that some pack has damaged, and no other pack whole."""
        self._lock = threading.Lock()
        self.refresh()

    def refresh(self) -> None:
        """Open packs that were written since; remove those that are damaged."""
        with self._lock:
            for index in self.folder.glob(f"*{_INDEX}"):
                if index.name in self._packs:
                    continue
                try:
                    self._packs[index.name] = Pack(index)
                except DamagedPackError:
                    for file in (index, index.with_suffix(_IMAGES)):
                        file.unlink(missing_ok=True)
            self._damaged.clear()
        if self._packs:
            with suppress(OSError):
                (self.folder / _USED).touch()

    @property
    def size(self) -> int:
        """Bytes of all packs on the disk."""
        return sum(file.stat().st_size for file in self.folder.glob(f"*{_IMAGES}"))

    def has(self, digests: Digests) -> np.ndarray:
        """Whether each of these images is here, as far as is known (N,)."""
        found = np.zeros(len(digests), dtype=bool)
        for pack in list(self._packs.values()):
            found |= pack.find(digests) >= 0
        if self._damaged:
            found &= ~np.isin(digests, as_digests(list(self._damaged)))
        return found

    def read(self, digests: Digests) -> list[bytes | None]:
        """The images with these digests; None for one that is missing or damaged."""
        packs = list(self._packs.values())
        places = [pack.find(digests).tolist() for pack in packs]

        def one(row: int) -> bytes | None:
            for pack, found in zip(packs, places, strict=True):
                if found[row] >= 0 and (content := pack.read(found[row])) is not None:
                    return content
            return None

        contents = list(readers().map(one, range(len(digests))) if len(digests) > 1 else map(one, range(len(digests))))
        if bad := [row for row, content in enumerate(contents) if content is None and any(f[row] >= 0 for f in places)]:
            with self._lock:
                self._damaged.update(digests[row].ljust(32, b"\0") for row in bad)
        return contents

    @contextmanager
    def writing(self) -> Iterator[PackWriter]:
        """A writer of a new pack, which is there for all processes after the block; one at a time writes in a folder.

        Raises:
            NoRoomError: the disk is full, or the folder cannot be written to.
        """
        with _no_room_in_words(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            remove_unused(self.folder.parent, keep=self.folder)
            with filelock.FileLock(self.folder / _LOCK):
                for left in self.folder.glob(f"*{_PARTIAL}"):  # of a process that was killed
                    left.unlink(missing_ok=True)
                damaged = set(self._damaged)
                self.refresh()
                self._damaged |= damaged
                writer = PackWriter(self.folder)
                try:
                    yield writer
                finally:  # after an interrupt, too: what was written need not be written again
                    try:
                        writer.publish()
                    finally:
                        writer.close()
                self.refresh()


class PackWriter:
    """Writes packs, image by image."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.count = self.size = 0
        """Of all images that were added, and of their bytes."""
        self._begin()

    def _begin(self) -> None:
        self._name = uuid.uuid4().hex
        self._file = open(self._folder / f"{self._name}{_PARTIAL}", "wb", buffering=2**20)  # noqa: SIM115
        self._digests, self._sizes, self._checksums = bytearray(), array("q"), array("q")

    def add(self, digest: bytes, content: bytes) -> None:
        """Append an image; a pack that is large enough is published, and another begun."""
        if self._file.tell() >= LARGEST:
            self.publish()
            self._begin()
        self.count += 1
        self.size += len(content)
        self._file.write(content)
        self._digests += digest
        self._sizes.append(len(content))
        self._checksums.append(zlib.crc32(content))

    def publish(self) -> None:
        """Give the pack its name, if it holds anything."""
        if not self._digests:
            return
        self._file.close()
        digests, sizes = np.frombuffer(self._digests, dtype="S32"), np.array(self._sizes)
        order = np.argsort(digests, kind="stable")
        columns = [sizes.cumsum() - sizes, sizes, np.array(self._checksums)]
        packed = pa.py_buffer(np.ascontiguousarray(digests[order]))
        digest_column = pa.FixedSizeBinaryArray.from_buffers(pa.binary(32), len(digests), [None, packed])
        table = pa.table([digest_column, *(pa.array(column[order]) for column in columns)], schema=_SCHEMA)
        partial = self._folder / f"{self._name}{_INDEX}{_PARTIAL}"
        with pa.OSFile(str(partial), "wb") as sink, pa.ipc.new_file(sink, _SCHEMA) as file:
            file.write_table(table, max_chunksize=max(1, len(digests)))
        Path(self._file.name).rename(self._folder / f"{self._name}{_IMAGES}")
        partial.rename(self._folder / f"{self._name}{_INDEX}")
        self._digests = bytearray()

    def close(self) -> None:
        """Close the file, and remove what was not published."""
        with suppress(OSError):  # a full disk: what is in the buffer is lost, and so is the pack
            self._file.close()
        for suffix in (_PARTIAL, f"{_INDEX}{_PARTIAL}"):
            (self._folder / f"{self._name}{suffix}").unlink(missing_ok=True)


def check_room(folder: Path, needed: int) -> None:
    """Check that so many bytes more fit on the disk of a folder.

    Raises:
        NoRoomError: they do not.
    """
    above = next(place for place in (folder, *folder.parents) if place.exists())
    free = shutil.disk_usage(above).free
    if needed + SPARE > free:
        raise NoRoomError(
            f"The images need about {format_bytes(needed)} in {folder.parent}, whose disk has {format_bytes(free)} "
            f"free; give a --scratch folder with more room, or more --memory.",
            folder.parent,
        )


def remove_unused(scratch: Path, keep: Path, days: float = KEPT_DAYS) -> None:
    """Remove the folders of packs that nobody has opened for `days`, but `keep`.

    Only files with the names of packs are removed, and nothing from a folder that is being written to.
    """
    for used in scratch.glob(f"*/{_USED}"):
        folder = used.parent
        with suppress(OSError, filelock.Timeout):
            if folder == keep or time.time() - used.stat().st_mtime < days * 86400:
                continue
            with filelock.FileLock(folder / _LOCK, timeout=0):
                for suffix in (_INDEX, _IMAGES, _PARTIAL):
                    for file in folder.glob(f"*{suffix}"):
                        file.unlink(missing_ok=True)
                used.unlink()
            (folder / _LOCK).unlink(missing_ok=True)
            folder.rmdir()


@cache
def open_store(folder: str) -> PackStore:
    """The packs of a folder, `~` being the home of this node's user; one store for the whole process."""
    return PackStore(Path(folder).expanduser())


@cache
def readers() -> ThreadPoolExecutor:
    """Threads that read files while the disk has others to find."""
    return ThreadPoolExecutor(READERS)


@contextmanager
def _no_room_in_words(folder: Path) -> Iterator[None]:
    """Turn the error of a disk that cannot be written to into a sentence."""
    try:
        yield
    except UserError:
        raise
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR):
            raise
        raise NoRoomError(
            f"Images that do not fit into memory cannot be written to {folder.parent} ({error.strerror}); give a "
            f"--scratch folder with room on each node, or more --memory.",
            folder.parent,
            errno.ENOSPC if error.errno in (errno.ENOSPC, errno.EDQUOT) else errno.EROFS,
        ) from error


def _column(table: pa.Table, name: str, kind: str) -> np.ndarray:
    """A column without a copy; it keeps the map open."""
    column = table.column(name)
    values = column.chunk(0) if column.num_chunks else pa.array([], type=column.type)
    if values.null_count or not len(values):
        return np.empty(0, dtype=kind)
    buffer, width = values.buffers()[1], np.dtype(kind).itemsize
    return np.frombuffer(buffer, dtype=kind, count=len(values), offset=values.offset * width)
