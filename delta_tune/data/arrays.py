"""Images as arrays: .npy files, TIFF files of several bands, and what programs have in memory; scaled to 8 bits."""

from __future__ import annotations

import io
import logging
from typing import Any

import numpy as np
from numpy.lib import format as npy
from PIL import Image

from delta_tune.data.fitting import Picture, Pixels
from delta_tune.data.limits import DECODING, check_pixels

NPY = b"\x93NUMPY"
"""First bytes of a file that numpy.save wrote."""
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
"""First bytes of TIFF and BigTIFF."""
_STRIP = 2**22
"""Numbers that are scaled at a time: it needs 16 bytes for each."""
logging.getLogger("tifffile").addHandler(logging.NullHandler())  # else Python prints what it logs


def to_8_bit(values: np.ndarray, white: float | None) -> Pixels:
    """Values from 0 (black) to white as bytes, rounded to the nearest; 8-bit values stay as they are.

    Args:
        values: of any shape.
        white: what becomes 255, and so do larger values; None is 65535 for 16-bit values, and refuses others.

    Raises:
        ValueError: nothing tells which value is white, or values are negative or not finite.
    """
    if values.dtype == np.uint8:
        return values
    if values.dtype.kind not in "uif":
        raise ValueError(f"its pixels are {values.dtype}, not numbers from black to white")
    if white is None:
        if values.dtype.kind != "u" or values.dtype.itemsize != 2:
            raise ValueError(f"{values.dtype.name} pixels, whose white nothing tells: give its value with --white")
        white = 65535
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise ValueError("pixels that are not finite")
    if values.dtype.kind != "u" and values.size and values.min() < 0:
        raise ValueError("negative pixels, but 0 is black: add the same number to all images")
    found = np.empty(values.shape, dtype=np.uint8)
    rows = max(1, _STRIP * len(values) // max(values.size, 1))
    for top in range(0, len(values), rows):
        found[top : top + rows] = _scaled(values[top : top + rows], white)
    return found


def _scaled(values: np.ndarray, white: float) -> np.ndarray:
    if values.dtype.kind == "f" or not float(white).is_integer():
        return np.floor(np.clip(values.astype(np.float64) / white, 0, 1) * 255 + 0.5)
    top = int(white)
    scaled: np.ndarray = (np.minimum(values, top).astype(np.uint64) * 255 + top // 2) // top
    return scaled


def picture_of(values: np.ndarray, channels: int, white: float | None) -> Picture:
    """An array as an image: RGB for 3 channels, else uint8 (H, W, C).

    Args:
        values: (H, W), (H, W, C) or (C, H, W); both fit: (H, W, C). Grey becomes RGB with equal channels, and RGB grey,
            if the other is wanted.
        channels: C that is wanted.
        white: of `to_8_bit`.

    Raises:
        ValueError: the array has another shape, no pixels or too many, or `to_8_bit` refuses its values.
    """
    values = channels_last(values, channels)
    height, width, found = values.shape
    check_pixels((width, height * -(-found // 3)), None)
    pixels = np.ascontiguousarray(to_8_bit(values, white))
    if channels not in (1, 3):
        return pixels
    image = Image.fromarray(pixels[:, :, 0] if found == 1 else pixels)
    return image.convert("RGB") if channels == 3 else np.array(image.convert("L"))[:, :, None]


def channels_last(values: np.ndarray, channels: int) -> np.ndarray:
    """The array as (H, W, C).

    Raises:
        ValueError: it has another shape.
    """
    allowed = (1, 3) if channels in (1, 3) else (channels,)
    if values.ndim == 2 and 1 in allowed:
        return values[:, :, None]
    for axis in (2, 0) if values.ndim == 3 else ():
        if values.shape[axis] in allowed:
            return np.moveaxis(values, axis, 2)
    shape = " × ".join(map(str, values.shape))
    raise ValueError(f"it is an array of {shape} numbers, not of {channels} channels: set --channels to what it has")


def read_npy(content: bytes) -> np.ndarray:
    """The array of a .npy file; one of Python objects, which would run code, is refused.

    Raises:
        ValueError: it is damaged, or holds no plain numbers.
    """
    shape, dtype, start = _npy_header(content)
    if dtype.kind not in "uif":
        raise ValueError(f"it holds {'objects' if dtype.hasobject else dtype}, not numbers")
    needed = int(np.prod(shape, dtype=object)) * dtype.itemsize
    if len(content) - start != needed:
        raise ValueError(f"it has {len(content) - start} bytes instead of {needed}")
    array: np.ndarray = np.load(io.BytesIO(content), allow_pickle=False)
    return array


def npy_shape(content: bytes) -> tuple[int, ...]:
    """The shape of the array of a .npy file."""
    return _npy_header(content)[0]


def read_tiff(content: bytes, channels: int) -> np.ndarray:
    """The bands of a TIFF file: those of its first page, or one of each page if there are as many pages.

    Its descriptions, which may name other files, are not read.

    Raises:
        Exception: nearly any, on a damaged file; ValueError if the package that reads it is missing.
    """
    try:
        import tifffile
    except ImportError as error:
        raise ValueError(
            'TIFF with other than 1 or 3 channels takes a package that is not installed: pip install "delta-tune[tiff]"'
        ) from error
    with tifffile.TiffFile(io.BytesIO(content), is_ome=False, is_imagej=False, is_shaped=False) as file:
        first: Any = file.pages.first
        pages = list(file.pages)[:channels] if first.ndim == 2 and len(file.pages) == channels else [first]
        if first.tags.valueof(274, 1) != 1:
            raise ValueError("its orientation tag turns it: save it upright")
        rows, columns, bands = first.imagelength, first.imagewidth, max(first.samplesperpixel, len(pages))
        size = (columns, rows * -(-bands // 3))
        check_pixels(size, None)
        if any(page.shape != first.shape or page.dtype != first.dtype for page in pages):
            raise ValueError("its pages differ in size or type")
        with DECODING.reserve(size, None):
            return np.stack([page.asarray() for page in pages]) if len(pages) > 1 else first.asarray()


def to_npy(pixels: Pixels) -> bytes:
    """Pixels (H, W, C) as a .npy file."""
    file = io.BytesIO()
    np.save(file, pixels, allow_pickle=False)
    return file.getvalue()


def _npy_header(content: bytes) -> tuple[tuple[int, ...], np.dtype[Any], int]:
    """Shape, type of the numbers, and where they begin."""
    file = io.BytesIO(content)
    version = npy.read_magic(file)
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, _, dtype = read(file)
    return shape, dtype, file.tell()
