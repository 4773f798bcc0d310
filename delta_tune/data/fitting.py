"""Bring pictures of any shape into a square: cropped, squashed, or whole with a border."""

from __future__ import annotations

from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

Resize = Literal["crop", "squash", "letterbox"]
Interpolation = Literal["bilinear", "bicubic"]
Pixels = npt.NDArray[np.uint8]
Picture: TypeAlias = Image.Image | Pixels
"""RGB, or an array (H, W, C)."""

_RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def size_of(picture: Picture) -> tuple[int, int]:
    """Width and height in pixels."""
    return picture.size if isinstance(picture, Image.Image) else (picture.shape[1], picture.shape[0])


def to_square(image: Picture, size: int, interpolation: Interpolation) -> Pixels:
    """Resize the short side to `size` (antialiased) and crop the centre, as torchvision's Resize and CenterCrop do.

    Args:
        image: of any size.
        size: side of the square, in pixels.
        interpolation: bilinear or bicubic.

    Returns:
        uint8 (size, size, C); an image of `size` × `size` is returned unchanged.
    """
    short = min(size_of(image))
    box = []
    for side in size_of(image):
        resized = size * side // short
        offset = round((resized - size) / 2)
        box.append((offset * side / resized, (offset + size) * side / resized))
    (left, right), (top, bottom) = box
    # Compute only the square: a strip of 1 × 10,000 pixels would otherwise first be enlarged to gigabytes.
    return _resized(image, (size, size), interpolation, (left, top, right, bottom))


def squash(picture: Picture, size: int, interpolation: Interpolation) -> Pixels:
    """Resize both sides to `size` (antialiased); the proportions are lost."""
    return _resized(picture, (size, size), interpolation)


def shrink_into_square(picture: Picture, size: int, interpolation: Interpolation) -> Pixels:
    """Resize the long side to `size` and the short one in proportion (antialiased), as Pillow's ImageOps.contain does.

    The short side keeps at least a pixel.
    """
    width, height = size_of(picture)
    long = max(width, height)
    sides = (max(1, round(side / long * size)) for side in (width, height))
    return _resized(picture, (next(sides), next(sides)), interpolation)


def surround(pixels: Pixels, inner: int, size: int, colour: tuple[int, ...]) -> Pixels:
    """Put pixels (H, W, C) into the middle of a square (size, size, C) of one colour.

    They are in the middle of the central `inner` × `inner` pixels, as Pillow's ImageOps.pad puts them.
    """
    height, width = pixels.shape[:2]
    if (height, width) == (size, size):
        return pixels
    square = np.empty((size, size, pixels.shape[2]), dtype=np.uint8)
    square[:] = np.array(colour, dtype=np.uint8)
    top, left = (round((size - inner) / 2) + round((inner - side) / 2) for side in (height, width))
    square[top : top + height, left : left + width] = pixels
    return square


def center_offset(stored: int, size: int) -> int:
    """Pixels above and left of the central `size` × `size` crop of a `stored` × `stored` square."""
    return round((stored - size) / 2)  # rounds half to even, as torchvision's CenterCrop


def unbordered(squares: Pixels, size: int, resize: Resize) -> Pixels:
    """What an exported file that takes pixels does not resize again of stored squares (N, R, R, C).

    A cropped square is resized as it is; a whole image is the central `size` × `size` pixels, without their border.
    """
    if resize == "crop":
        return squares
    start = center_offset(squares.shape[1], size)
    return np.ascontiguousarray(squares[:, start : start + size, start : start + size])


def _resized(
    picture: Picture,
    size: tuple[int, int],
    interpolation: Interpolation,
    box: tuple[float, float, float, float] | None = None,
) -> Pixels:
    """The part of a picture in `box` (left, top, right, bottom), at `size` (width, height): (H, W, C), writable."""
    resampling = _RESAMPLING[interpolation]
    if isinstance(picture, Image.Image):
        return np.array(picture.resize(size, resampling, box=box))
    channels = (Image.fromarray(channel) for channel in np.moveaxis(picture, 2, 0))
    return np.stack([np.asarray(channel.resize(size, resampling, box=box)) for channel in channels], axis=2)
