"""The squares of a split, in memory: decoded, or as files that are decoded a batch at a time."""

from __future__ import annotations

import dataclasses
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from delta_tune.data.fitting import Pixels
from delta_tune.data.images import Preprocessing, read_square


class Images(Protocol):
    """A split's images, wherever they are kept."""

    def __len__(self) -> int: ...

    def batch(self, indices: npt.NDArray[np.int64]) -> Pixels:
        """The images at `indices` (B,): uint8 (B, stored, stored, C), a copy; the same pixels however they are kept."""

    def taken(self, indices: npt.NDArray[np.int64]) -> Images:
        """The images at `indices` alone: what is in memory is copied, so that the others need not travel with them."""


@dataclass(frozen=True, slots=True, eq=False)
class DecodedImages:
    """A split's images, decoded: uint8 (N, stored, stored, C), possibly read-only."""

    pixels: Pixels

    def __len__(self) -> int:
        return len(self.pixels)

    def batch(self, indices: npt.NDArray[np.int64]) -> Pixels:
        """The images at `indices` (B,): uint8 (B, stored, stored, C), a copy."""
        return self.pixels[np.asarray(indices, dtype=np.int64)]

    def taken(self, indices: npt.NDArray[np.int64]) -> DecodedImages:
        """The images at `indices` alone, copied."""
        return DecodedImages(self.batch(indices))


@dataclass(frozen=True, slots=True, eq=False)
class EncodedImages:
    """A split's images as files in memory, decoded per batch: slower, but much smaller."""

    encoded: Any
    """pyarrow.LargeBinaryArray (N,)."""
    preprocessing: Preprocessing

    def __len__(self) -> int:
        return len(self.encoded)

    def batch(self, indices: npt.NDArray[np.int64]) -> Pixels:
        """The images at `indices` (B,): uint8 (B, stored, stored, C), a copy; the same pixels as when decoded once."""
        size = self.preprocessing.stored_size
        pixels = np.empty((len(indices), size, size, self.preprocessing.channels), dtype=np.uint8)

        def decode(row: int) -> None:
            pixels[row] = read_square(self.encoded[int(indices[row])].as_py(), self.preprocessing)

        for _ in _decoders(num_decoding_threads()).map(decode, range(len(indices))):
            pass
        return pixels

    def taken(self, indices: npt.NDArray[np.int64]) -> EncodedImages:
        """The images at `indices` alone, copied."""
        return dataclasses.replace(self, encoded=self.encoded.take(pa.array(indices)))


@dataclass(frozen=True, slots=True, eq=False)
class PooledImages:
    """Images chosen from several sets, in any order; they share the sets' memory."""

    sets: tuple[Images, ...]
    locations: npt.NDArray[np.int64]
    """(N, 2): index of the set, and position in it."""

    def __len__(self) -> int:
        return len(self.locations)

    def batch(self, indices: npt.NDArray[np.int64]) -> Pixels:
        """The images at `indices` (B,): uint8 (B, stored, stored, C), a copy."""
        locations = self.locations[np.asarray(indices, dtype=np.int64)]
        of_set = [np.flatnonzero(locations[:, 0] == number) for number in range(len(self.sets))]
        pixels = [images.batch(locations[where, 1]) for images, where in zip(self.sets, of_set, strict=True)]
        return np.concatenate(pixels)[np.argsort(np.concatenate(of_set))]

    def taken(self, indices: npt.NDArray[np.int64]) -> PooledImages:
        """The images at `indices` alone, copied."""
        locations = self.locations[np.asarray(indices, dtype=np.int64)]
        sets = []
        for number, images in enumerate(self.sets):
            where = np.flatnonzero(locations[:, 0] == number)
            sets.append(images.taken(locations[where, 1]))
            locations[where, 1] = np.arange(len(where))
        return PooledImages(tuple(sets), locations)


def pack_files(files: list[bytes]) -> Any:
    """The files as one pyarrow.LargeBinaryArray, whose buffers Ray shares without copies."""
    return pa.array(files, type=pa.large_binary())


_threads: int | None = None


def set_decoding_threads(count: int) -> None:
    """Decode with so many threads in this process from now on; the pixels stay the same."""
    global _threads
    _threads = count


@cache
def _decoders(count: int) -> ThreadPoolExecutor:
    """Threads that wait for the next batch: starting them for each would take longer than decoding a small image."""
    return ThreadPoolExecutor(count)


def num_decoding_threads() -> int:
    """Number of decoding threads: as set, else OMP_NUM_THREADS (Ray sets it to a worker's CPUs), else all CPUs."""
    if _threads is not None:
        return _threads
    share = os.environ.get("OMP_NUM_THREADS", "")
    return int(share) if share.isdigit() and int(share) > 0 else os.cpu_count() or 1
