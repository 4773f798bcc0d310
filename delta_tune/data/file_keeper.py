"""Keep the image files of a split while they are read: in memory as long as they fit, else in packs on the disk."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType

from delta_tune.data.encoding import Digests, as_digests
from delta_tune.data.images import EncodedImages, Preprocessing
from delta_tune.data.packed_images import Origin, PackedImages, as_encoded
from delta_tune.data.packs import PackWriter, check_room, open_store
from delta_tune.data.sources.base import Source
from delta_tune.data.splits import Indices


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
    """

    def __init__(
        self,
        budget: MemoryBudget,
        find: Callable[[], Source],
        split: str,
        expected: int,
        preprocessing: Preprocessing,
        folder: str,
    ) -> None:
        self._budget, self._find, self._split, self._expected = budget, find, split, expected
        self._preprocessing, self._folder = preprocessing, folder
        self._store = open_store(folder)
        self._store.refresh()
        self._files: list[bytes] = []
        self._digests: list[bytes] = []
        self._size, self._on_disk = 0, False
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

    def add(self, digest: bytes, file: bytes) -> None:
        """Keep a file.

        Raises:
            NoRoomError: the disk is full.
        """
        if self._on_disk:
            self._write(digest, file)
            return
        self._files.append(file)
        self._digests.append(digest)
        self._size += len(file)
        self._budget.left -= len(file)
        if self._budget.left < 0:
            self._move_to_disk()

    def images(self, rows: Indices, digests: Digests) -> EncodedImages | PackedImages:
        """All files that were kept, as images.

        Args:
            rows: their positions in the source's split (N,).
            digests: of what was read (N,).
        """
        self._open.close()  # publishes the pack
        if not self._on_disk:
            return as_encoded(self._files, self._preprocessing)
        origin = Origin(
            find=self._find,
            split=self._split,
            rows=rows,
            digests=digests,
            preprocessing=self._preprocessing,
            folder=self._folder,
        )
        return PackedImages(origin)

    def _move_to_disk(self) -> None:
        lacking = 1 - self._store.has(as_digests(self._digests)).mean()
        check_room(self._store.folder, int(lacking * self._size / len(self._files) * self._expected))
        self._on_disk = True
        self._budget.left += self._size
        for digest, file in zip(self._digests, self._files, strict=True):
            self._write(digest, file)
        self._files, self._digests = [], []

    def _write(self, digest: bytes, file: bytes) -> None:
        key = as_digests([digest])
        if self._store.has(key)[0]:
            return
        if self._writer is None:
            self._writer = self._open.enter_context(self._store.writing())
            if self._store.has(key)[0]:  # another process wrote it while this one waited for its turn
                return
        self._writer.add(digest, file)
