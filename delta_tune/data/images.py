"""Decode an image file to a square of pixels. Needs NumPy and Pillow alone."""

from __future__ import annotations

import dataclasses
import io
import os
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
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
from delta_tune.data.limits import BinaryFile, check_file_size, in_millions, max_pixels, read_file, read_open_file


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

    @property
    def square(self) -> tuple[Any, ...]:
        """Equal for those that keep the same square of an image."""
        whole = () if self.resize == "crop" else (self.resize, self.image_size, self.mean_colour)
        return self.stored_size, self.interpolation, self.channels, self.white, *whole

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
        return f"more than the {in_millions(max_pixels())} million pixels that are read: make it smaller"
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
