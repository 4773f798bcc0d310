"""Small grey and coloured copies of images, by which the same picture is known again although its file differs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

SIDE = 32
"""Of the grey copy, in pixels."""
COLOUR_SIDE = 4
_REDUCING = 3.0  # Pillow first shrinks a large image by whole numbers, to three times what is asked for at least
_REDUCED = 64  # pixels of a side from which a thumbnail is made: more take longer and add nothing
_BLANK = 2.0  # levels of 255


@dataclass(frozen=True, slots=True, eq=False)
class Thumbnails:
    """Small copies of N images: 1 KiB each."""

    grey: npt.NDArray[np.uint8]
    """(N, 32, 32): the whole image, squeezed to a square."""
    colour: npt.NDArray[np.uint8]
    """(N, 4, 4, 2): its blue-yellow and red-green (Cb, Cr), 128 where there is none."""
    side: npt.NDArray[np.uint8]
    """(N,): the short side of the image in pixels, 255 if it is longer."""

    def __len__(self) -> int:
        return len(self.grey)

    @property
    def is_blank(self) -> npt.NDArray[np.bool_]:
        """(N,): whether an image has next to no contrast, so that nothing tells it from another such image."""
        blank: npt.NDArray[np.bool_] = self.grey.std((1, 2)) < _BLANK
        return blank

    def taken(self, indices: npt.NDArray[np.int64]) -> Thumbnails:
        """Those at `indices`."""
        return Thumbnails(self.grey[indices], self.colour[indices], self.side[indices])


Thumbnail = tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8], int]
"""One image's (32, 32), (4, 4, 2) and short side."""


def thumbnail(image: Image.Image, side: int | None = None) -> Thumbnail:
    """The small copies of an RGB image of any size.

    Args:
        image: RGB.
        side: the short side of the image that `image` was made from, if that is another one.
    """
    grey = image.convert("L").resize((SIDE, SIDE), Image.Resampling.BILINEAR, reducing_gap=_REDUCING)
    few = image.resize((COLOUR_SIDE, COLOUR_SIDE), Image.Resampling.BILINEAR, reducing_gap=_REDUCING).convert("YCbCr")
    short = min(image.size) if side is None else side
    return np.asarray(grey), np.asarray(few)[..., 1:], min(short, 255)


def thumbnail_of_pixels(pixels: npt.NDArray[np.uint8], side: int) -> Thumbnail:
    """The small copies of a picture (H, W, C); of other channels than RGB, the first counts.

    Args:
        pixels: what a network sees of an image, for all images alike: the same picture in two sizes has the same.
        side: the short side of the image, in pixels.
    """
    height, width, channels = pixels.shape
    mode, shown = ("RGB", pixels) if channels == 3 else ("L", np.ascontiguousarray(pixels[..., 0]))
    shared = Image.frombuffer(mode, (width, height), shown, "raw", mode, 0, 1)
    return thumbnail(shared.reduce(max(1, min(width, height) // _REDUCED)).convert("RGB"), side)


def stack(found: Sequence[Thumbnail]) -> Thumbnails:
    """The thumbnails of several images as one."""
    return Thumbnails(
        grey=np.array([grey for grey, _, _ in found], dtype=np.uint8).reshape(-1, SIDE, SIDE),
        colour=np.array([colour for _, colour, _ in found], dtype=np.uint8).reshape(-1, COLOUR_SIDE, COLOUR_SIDE, 2),
        side=np.array([side for _, _, side in found], dtype=np.uint8),
    )


def joined(parts: Sequence[Thumbnails]) -> Thumbnails:
    """The images of all parts, in order."""
    return Thumbnails(
        grey=np.concatenate([part.grey for part in parts]),
        colour=np.concatenate([part.colour for part in parts]),
        side=np.concatenate([part.side for part in parts]),
    )
