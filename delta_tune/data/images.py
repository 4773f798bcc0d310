"""Decode an image file to a square of pixels, and hold the squares of a split in memory."""

from __future__ import annotations

import dataclasses
import io
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from PIL import Image, UnidentifiedImageError

from delta_tune.config import UserError, visible
from delta_tune.data.arrays import picture_of, to_npy
from delta_tune.data.decoding import decode, no_warnings, to_channels
from delta_tune.data.fitting import (
    Interpolation,
    Picture,
    Pixels,
    Resize,
    shrink_into_square,
    squash,
    surround,
    to_square,
)
from delta_tune.data.limits import MAX_PIXELS, BinaryFile, check_file_size, read_file, read_open_file


@dataclass(frozen=True, kw_only=True, slots=True)
class Preprocessing:
    """How a backbone expects its images."""

    image_size: int
    """Side of the network's input, in pixels."""
    stored_size: int
    """Side of the stored square that the input is cropped from, ≥ image_size."""
    mean: tuple[float, ...]
    """Channel means, for values in [0, 1]."""
    std: tuple[float, ...]
    """Channel standard deviations, for values in [0, 1]."""
    interpolation: Interpolation
    resize: Resize = "crop"
    """How an image that is not square fills the square.

    - `crop`: the short side is resized to `stored_size`, the centre cropped.
    - `squash`: both sides are resized to `image_size`.
    - `letterbox`: the long side is resized to `image_size`, the short one in proportion.

    With the last two the whole image is the input; around it, up to `stored_size`, is the mean colour, into which
    random crops reach, as they do with the padding that CIFAR is trained with (arXiv 1512.03385).
    """
    channels: int = 3
    """Channels of the input: 3 is RGB, 1 grey, any other number what arrays and TIFF files have."""
    white: float | None = None
    """The value of white, > 0, in images of more than 8 bits, where black is 0; None is 65535 in those of 16 bits."""

    def __post_init__(self) -> None:
        if not 1 <= self.image_size <= self.stored_size:
            raise UserError(
                f"1 <= image_size <= stored_size must hold, but got (image_size={self.image_size}, "
                f"stored_size={self.stored_size})."
            )
        if not len(self.mean) == len(self.std) == self.channels:
            raise UserError(
                f"mean and std must have {self.channels} numbers, as channels says, but got {self.mean} and {self.std}."
            )

    def for_fingerprint(self) -> dict[str, Any]:
        """The fields by name; without those added later that are as they were before."""
        added = {field.name: field.default for field in dataclasses.fields(self)}
        told = dataclasses.asdict(self)
        return {name: value for name, value in told.items() if value != added[name]}

    @property
    def mean_colour(self) -> tuple[int, ...]:
        """The mean as a colour, of values from 0 to 255."""
        return tuple(round(255 * value) for value in self.mean)


class DamagedImage(UserError):
    """An image that cannot be read; `args` are its name and the reason."""

    def __str__(self) -> str:
        name, reason = self.args
        return visible(f"{name} cannot be read as an image ({reason}); give an image file such as JPEG or PNG.")


OneSource: TypeAlias = (
    str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryFile | Image.Image | npt.NDArray[Any]
)


def open_image(source: OneSource) -> Image.Image:
    """Open an image as RGB: upright (EXIF), 16-bit grey scaled to 8 bit, transparency on white.

    Args:
        source: a path, the bytes of a file, a file that is open for reading bytes (read from its beginning if it can go
            there), or an opened image, which is not changed.

    Raises:
        DamagedImage: missing, empty, truncated, of an unknown format, of floating-point or 32-bit pixels, or above a
            limit of `limits`.
        UserError: the open file is closed, or does not give bytes.
    """
    image = open_picture(source)
    assert isinstance(image, Image.Image)
    return image


def open_picture(source: OneSource, channels: int = 3, white: float | None = None) -> Picture:
    """Open an image, as RGB for 3 channels, else as uint8 (H, W, C).

    Args:
        source: as for `open_image`, or an array that `picture_of` takes.
        channels: of `decode`.
        white: of `decode`.

    Raises:
        DamagedImage: as `open_image`; an image has other channels, or nothing tells which of its values is white.
        UserError: as `open_image`.
    """
    try:
        if isinstance(source, np.ndarray):
            return picture_of(source, channels, white)
        if isinstance(source, Image.Image):
            with no_warnings():
                image = to_channels(source, channels, white)
            return source.copy() if image is source else image
        if isinstance(source, str | os.PathLike):
            return decode(read_file(source), channels, white)
        if isinstance(source, bytes | bytearray | memoryview):
            check_file_size(memoryview(source).nbytes)
            return decode(bytes(source), channels, white)
        return decode(read_open_file(source), channels, white)
    except UserError:
        raise
    except Exception as error:  # Pillow's decoders raise nearly every built-in exception on a damaged file
        name = os.fspath(source) if isinstance(source, str | os.PathLike) else "the image"
        raise DamagedImage(name, damage_reason(error)) from error


def damage_reason(error: Exception) -> str:
    """Why an image could not be read, in words that are the same in every run."""
    if isinstance(error, DamagedImage):
        return str(error.args[1])
    if isinstance(error, UnidentifiedImageError):
        return "empty, or in none of the formats that are read"
    if isinstance(error, Image.DecompressionBombError):
        return f"more than the {MAX_PIXELS // 10**6} million pixels that are read: make it smaller"
    if isinstance(error, MemoryError):
        return "decoding it takes more memory than there is"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__


def read_square(source: OneSource, preprocessing: Preprocessing) -> Pixels:
    """Open an image and return the square that is kept of it: uint8 (stored_size, stored_size, C)."""
    return stored_square(open_picture(source, preprocessing.channels, preprocessing.white), preprocessing)


def fit(image: Picture, preprocessing: Preprocessing) -> Pixels:
    """Resize and crop an image as `preprocessing.resize` says, still without a border: uint8 (H, W, C).

    To fit what is fitted changes nothing.
    """
    if preprocessing.resize == "crop":
        return to_square(image, preprocessing.stored_size, preprocessing.interpolation)
    whole = squash if preprocessing.resize == "squash" else shrink_into_square
    return whole(image, preprocessing.image_size, preprocessing.interpolation)


def with_border(fitted: Pixels, preprocessing: Preprocessing) -> Pixels:
    """What `fit` returned as the square that is kept: uint8 (stored_size, stored_size, C)."""
    return surround(fitted, preprocessing.image_size, preprocessing.stored_size, preprocessing.mean_colour)


def stored_square(image: Picture, preprocessing: Preprocessing) -> Pixels:
    """The square that is kept of an image: uint8 (stored_size, stored_size, C)."""
    return with_border(fit(image, preprocessing), preprocessing)


def encode_pixels(pixels: Pixels) -> bytes:
    """Pixels (H, W, C) as a lossless file, from which `open_picture` reads them again."""
    if pixels.shape[2] > 4:
        return to_npy(pixels)
    return to_png(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)


def to_png(square: Pixels) -> bytes:
    """The pixels as a (lossless) PNG file."""
    file = io.BytesIO()
    Image.fromarray(square).save(file, "PNG", compress_level=3)
    return file.getvalue()


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
