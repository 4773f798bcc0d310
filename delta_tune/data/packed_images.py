"""A split's images on disk: packed on each node where they are needed, and decoded per batch."""

from __future__ import annotations

import dataclasses
import os
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from delta_tune.config import UserError
from delta_tune.data.encoding import Digests, digest_of, file_to_keep
from delta_tune.data.fitting import Pixels
from delta_tune.data.images import Preprocessing, fit, open_picture
from delta_tune.data.limits import read_file
from delta_tune.data.names import Names
from delta_tune.data.packs import SCRATCH, PackStore, check_room, open_store, readers
from delta_tune.data.sources.base import Examples, Source
from delta_tune.data.splits import Indices
from delta_tune.data.stored_images import EncodedImages, Images, PooledImages, num_decoding_threads, pack_files
from delta_tune.filesystem.cache import content_key
from delta_tune.filesystem.uris import is_uri

_RECIPE = "files, or squares as PNG; 1"
_CHUNK = 512


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Origin:
    """Where the images of a split can be read again, by any process of any node that sees the data."""

    find: Callable[[], Source]
    """Lists the source; it can be pickled."""
    split: str
    """Of the source, in which the examples are."""
    rows: Indices
    """Their positions in it (N,)."""
    digests: Digests
    """Of what was read (N,)."""
    in_packs: npt.NDArray[np.bool_]
    """Which of them are in the packs (N,); the others are read from their files."""
    names: Names
    """Their names (N,): paths of those that are read from their files."""
    here: str
    """The folder from which relative paths lead to files."""
    preprocessing: Preprocessing
    folder: str
    """Of the packs on every node; `~` is the home of the node's user."""

    def read(self, positions: Indices) -> list[bytes]:
        """The files of some of the images; packs that lack one are filled.

        Raises:
            UserError: they are not here, and the source is not either, or they were changed.
            NoRoomError: the disk is full.
        """
        store, in_packs = open_store(self.folder), self.in_packs[positions]
        found: list[bytes | None] = [None] * len(positions)
        for attempt in (1, 2):
            packed = [row for row in np.flatnonzero(in_packs).tolist() if found[row] is None]
            if packed and attempt == 2:
                self.fill(store)
            for row, content in zip(packed, store.read(self.digests[positions[packed]]), strict=True):
                found[row] = content
        others = np.flatnonzero(~in_packs).tolist()
        for row, content in zip(others, readers().map(self._read_file, positions[others].tolist()), strict=True):
            found[row] = content
        assert None not in found, "filled, or an error"
        return [file for file in found if file is not None]

    def _read_file(self, position: int) -> bytes:
        path = os.path.join(self.here, self.names[position])
        advice = "restore it, or start a new study; with --scratch images are copied first"
        try:
            content = read_file(path)
        except OSError as error:
            raise UserError(
                f"{path} cannot be read any more on {socket.gethostname()} ({error.strerror}); {advice}."
            ) from error
        if digest_of(content) != self.digests[position].ljust(32, b"\0"):
            raise UserError(f"{path} was changed since the study began; {advice}.")
        return content

    def fill(self, store: PackStore) -> None:
        """Write the images that the packs of this node lack, from the source; waits while another process does.

        Raises:
            UserError: the source is not here, or has other images than before.
            NoRoomError: the disk is full.
        """
        with store.writing() as writer:
            lacking = np.flatnonzero(self.in_packs & ~store.has(self.digests))
            if not len(lacking):
                return
            for position, (digest, content) in zip(lacking.tolist(), self._read(lacking), strict=True):
                if digest != self.digests[position].ljust(32, b"\0"):
                    raise UserError(
                        f"The data is not the same on {socket.gethostname()} as where the study was started (image "
                        f"{self.rows[position]} of {self.split} differs); restore it, or start a new study."
                    )
                writer.add(digest, content)
                if writer.count == _CHUNK:  # enough to tell whether all will fit
                    check_room(store.folder, writer.size * (len(lacking) - _CHUNK) // _CHUNK)

    def _read(self, positions: np.ndarray) -> Iterator[tuple[bytes, bytes]]:
        try:
            examples = self.find().splits[self.split]
        except (UserError, KeyError) as error:
            raise UserError(
                f"The images are not on {socket.gethostname()}, and it cannot read them again ({error}); give --data "
                f"an address or a folder that all nodes see, or a --scratch folder that they share."
            ) from error
        with ThreadPoolExecutor(examples.readers or num_decoding_threads()) as pool:
            for start in range(0, len(positions), _CHUNK):
                rows = self.rows[positions[start : start + _CHUNK]].tolist()
                yield from pool.map(lambda row: self._encode(examples, row), rows)

    def _encode(self, examples: Examples, row: int) -> tuple[bytes, bytes]:
        if row >= len(examples.names):
            raise UserError(
                f"The data is not the same on {socket.gethostname()} as where the study was started ({self.split} has "
                f"fewer images); restore it, or start a new study."
            )
        content = examples.read(row)
        picture = open_picture(content, self.preprocessing.channels, self.preprocessing.white)
        return digest_of(content), file_to_keep(content, fit(picture, self.preprocessing))


@dataclass(frozen=True, slots=True, eq=False)
class PackedImages:
    """A split's images on the disk of each node; this is a small handle, some 40 bytes and a name an image."""

    origin: Origin
    positions: Indices | None = None
    """Of these images among those of the origin; None for all."""

    def __len__(self) -> int:
        return len(self.origin.rows if self.positions is None else self.positions)

    def batch(self, indices: Indices) -> Pixels:
        """The images at `indices` (B,): uint8 (B, stored, stored, C), a copy; the same pixels as when decoded once.

        The first batch on a node whose packs lack images of the origin writes all of them there.

        Raises:
            UserError, NoRoomError: as `Origin.read`.
        """
        indices = np.asarray(indices, dtype=np.int64)
        files = self.origin.read(indices if self.positions is None else self.positions[indices])
        return as_encoded(pack_files(files), self.origin.preprocessing).batch(np.arange(len(files)))

    def taken(self, indices: Indices) -> PackedImages:
        """The images at `indices` alone, without a copy."""
        positions = np.asarray(indices, dtype=np.int64)
        return dataclasses.replace(self, positions=positions if self.positions is None else self.positions[positions])


def pack_here(images: Images) -> None:
    """Write the images to this node's disk now that are to be read from there and are not there.

    Raises:
        UserError: they are not there, and the source is not either.
        NoRoomError: the disk is full.
    """
    if isinstance(images, PooledImages):
        for each in images.sets:
            pack_here(each)
    elif isinstance(images, PackedImages):
        store = open_store(images.origin.folder)
        if not store.has(images.origin.digests[images.origin.in_packs]).all():
            images.origin.fill(store)


def as_encoded(files: pa.LargeBinaryArray, preprocessing: Preprocessing) -> EncodedImages:
    """Image files in memory, as images."""
    return EncodedImages(files, preprocessing)


def pack_folder(data: str | Path, preprocessing: Preprocessing, scratch: str | None) -> str:
    """The folder of the packs of a data set, on every node.

    Args:
        data: as the user gave it.
        preprocessing: what is stored depends on its square.
        scratch: the folder of all packs; None for the default.
    """
    square = {name: value for name, value in dataclasses.asdict(preprocessing).items() if name not in _OF_INPUT}
    key = content_key([_RECIPE, str(findable(data)), repr(sorted(square.items()))])
    return f"{SCRATCH if scratch is None else os.path.abspath(os.path.expanduser(scratch))}/{key}"


_OF_INPUT = ("mean", "std")
"""Fields of `Preprocessing` that do not change what is kept."""


def findable(data: str | Path) -> str | Path:
    """The data's place, from whatever folder a process runs in."""
    if isinstance(data, Path):
        return data.expanduser().absolute()
    if data == "demo" or data.startswith("torchvision:") or is_uri(data):
        return data
    return os.path.abspath(os.path.expanduser(data))
