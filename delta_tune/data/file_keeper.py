"""Keep the image files of a split while they are read: in memory as long as they fit, else in packs on the disk."""

from __future__ import annotations

import os
from array import array
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType

import numpy as np
import pyarrow as pa

from delta_tune.data.encoding import Digests, as_digests
from delta_tune.data.images import Preprocessing
from delta_tune.data.names import Names
from delta_tune.data.packed_images import Origin, PackedImages, as_encoded
from delta_tune.data.packs import PackWriter, check_room, open_store
from delta_tune.data.sources.base import Source
from delta_tune.data.splits import Indices
from delta_tune.data.stored_images import EncodedImages


@dataclass
class MemoryBudget:
    """Bytes that the image files of all splits together may still take."""

    left: float


class FileKeeper:
    """Keeps the files of a split.

    Args:
        budget: shared with the keepers of other splits.
        find: lists the source again, in any process; it can be pickled.
        split: of the source.
        expected: number of images, about.
        preprocessing: of the backbone.
        folder: of the packs.
        copy: whether files that can be read where they are go into packs too.
    """

    def __init__(
        self,
        budget: MemoryBudget,
        find: Callable[[], Source],
        split: str,
        expected: int,
        preprocessing: Preprocessing,
        folder: str,
        copy: bool,
    ) -> None:
        self._budget, self._find, self._split, self._expected = budget, find, split, expected
        self._preprocessing, self._folder, self._copy = preprocessing, folder, copy
        self._store = open_store(folder)
        self._store.refresh()
        # One block that grows, as Arrow wants it at the end: a list of files would have to be copied then.
        self._content, self._starts = bytearray(), array("q", [0])
        self._digests, self._in_packs = bytearray(), bytearray()
        self._on_disk = False
        self._writer: PackWriter | None = None
        self._open = ExitStack()

    def __enter__(self) -> FileKeeper:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.__exit__(kind, error, trace)

    def known(self, digest: bytes) -> bytes | None:
        """The file that an earlier study kept of an image with this digest, which it could decode; None if none did."""
        return self._store.read(as_digests([digest]))[0]

    def add(self, digest: bytes, file: bytes, *, is_there: bool) -> None:
        """Keep a file.

        Args:
            digest: of what was read.
            file: what is kept of it.
            is_there: whether the same bytes are in a file of the source, too.

        Raises:
            NoRoomError: the disk is full.
        """
        in_packs = self._copy or not is_there
        self._in_packs.append(in_packs)
        if self._on_disk:
            if in_packs:
                self._write(digest, file)
            return
        self._content += file
        self._starts.append(len(self._content))
        self._digests += digest
        self._budget.left -= len(file)
        if self._budget.left < 0:
            self._move_to_disk()

    def images(self, rows: Indices, digests: Digests, names: Names) -> EncodedImages | PackedImages:
        """All files that were kept, as images.

        Args:
            rows: their positions in the source's split (N,).
            digests: of what was read (N,).
            names: of the examples (N,).
        """
        self._open.close()  # publishes the pack
        if not self._on_disk:
            offsets = pa.py_buffer(np.array(self._starts))
            buffers = [None, offsets, pa.py_buffer(self._content)]
            files = pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(self._starts) - 1, buffers)
            return as_encoded(files, self._preprocessing)
        origin = Origin(
            find=self._find,
            split=self._split,
            rows=rows,
            digests=digests,
            in_packs=np.frombuffer(bytes(self._in_packs), dtype=bool),
            names=names,
            here=os.getcwd(),
            preprocessing=self._preprocessing,
            folder=self._folder,
        )
        return PackedImages(origin)

    def _move_to_disk(self) -> None:
        digests = np.frombuffer(bytes(self._digests), dtype="S32")
        lacking = np.frombuffer(bytes(self._in_packs), dtype=bool) & ~self._store.has(digests)
        sizes, rows = np.diff(self._starts), np.flatnonzero(lacking).tolist()
        check_room(self._store.folder, int(sizes[rows].sum()) * self._expected // len(sizes))
        self._on_disk = True
        self._budget.left += len(self._content)
        for row in rows:
            file = bytes(self._content[self._starts[row] : self._starts[row + 1]])
            self._write(bytes(self._digests[32 * row : 32 * row + 32]), file)
        self._content, self._starts, self._digests = bytearray(), array("q"), bytearray()

    def _write(self, digest: bytes, file: bytes) -> None:
        key = as_digests([digest])
        if self._store.has(key)[0]:
            return
        if self._writer is None:
            self._writer = self._open.enter_context(self._store.writing())
            if self._store.has(key)[0]:  # another process wrote it while this one waited for its turn
                return
        self._writer.add(digest, file)
