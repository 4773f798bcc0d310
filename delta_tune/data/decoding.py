"""Decode the content of an image file to RGB, whatever its format, metadata and kind of pixels."""

from __future__ import annotations

import ctypes
import io
import logging
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import numpy as np
from PIL import ExifTags, Image, TiffImagePlugin, _imaging

from delta_tune.data.limits import DECODING, check_pixels
from delta_tune.data.metadata import without_metadata

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM", "TGA", "ICO")
"""Names that Pillow gives to the formats that are read. None starts another program, as PostScript does."""

_STRIP = 2**22
"""Pixels that are converted to RGB at a time: conversions need up to 30 bytes for each."""

_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What turns an image upright, by its EXIF orientation."""

logging.getLogger("PIL").addHandler(logging.NullHandler())  # else Python prints its errors where nobody set up logging
# libtiff, too, prints its errors; a Pillow may be built without it.
with suppress(OSError, AttributeError):
    for _setter in ("TIFFSetErrorHandler", "TIFFSetWarningHandler"):
        getattr(ctypes.CDLL(_imaging.__file__), _setter)(None)


def decode(content: bytes) -> Image.Image:
    """Decode to RGB: upright (EXIF), 16-bit grey scaled to 8 bit, transparency on white.

    Raises:
        Exception: nearly any, as Pillow's decoders do on a damaged file.
    """
    with no_warnings():
        try:
            return _decode(content)
        except Exception:  # see above
            pixels_only = without_metadata(content)
            if pixels_only == content:
                raise
            return _decode(pixels_only)


def to_rgb(image: Image.Image) -> Image.Image:
    """As `decode` does, of an image that is open; its memory may be shared with the result.

    Raises:
        Exception: as `decode`.
    """
    if image.format == "EPS":
        raise ValueError("PostScript, which is a program")
    check_pixels(image.size, image.format)
    white = _white_level(image)
    image.load()
    check_pixels(image.size, image.format)  # in an ICO the size of the picture may be another than the file says
    if (method := _TRANSPOSE.get(_orientation(image))) is not None:
        image = image.transpose(method)
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    if image.width * image.height <= _STRIP:
        return _strip_to_rgb(image, white)
    converted = Image.new("RGB", image.size)
    rows = max(1, _STRIP // image.width)
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(top + rows, image.height)))
        converted.paste(_strip_to_rgb(strip, white), (0, top))
    return converted


def _decode(content: bytes) -> Image.Image:
    image: Image.Image = Image.open(io.BytesIO(content), formats=FORMATS)
    check_pixels(image.size, image.format)
    with DECODING.reserve(image.size, image.format):
        return to_rgb(image)


def _orientation(image: Image.Image) -> Any:
    try:
        return image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # Pillow raises nearly every built-in exception on odd tags, and they concern no pixel
        return None


def _white_level(image: Image.Image) -> int:
    """The value of white in an image with one channel of integers; 255 for other images.

    Raises:
        ValueError: nothing tells which values are black and white, or Pillow reads them wrongly.
    """
    advice = "save all images as 8- or 16-bit grey with one scale"
    if image.mode == "F":
        raise ValueError(f"floating-point pixels (mode F), whose black and white nothing tells: {advice}")
    if image.mode == "I" and image.format != "PPM":  # whose decoder scales to 16 bits
        raise ValueError(f"32-bit or signed pixels (mode I), whose black and white nothing tells: {advice}")
    is_16_bit = image.mode == "I" or image.mode.startswith("I;16")
    white = 65535 if is_16_bit else 255
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        tags = image.tag_v2
        if 2 in np.atleast_1d(tags.get(TiffImagePlugin.SAMPLEFORMAT, 1)):
            raise ValueError(f"signed pixels, whose black and white nothing tells: {advice}")
        if is_16_bit and tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0:
            raise ValueError(f"16-bit pixels of which 0 is white: {advice}, and 0 as black")
        if is_16_bit and tags.get(TiffImagePlugin.BITSPERSAMPLE) == (12,):
            return 4095
    return white


def _strip_to_rgb(image: Image.Image, white: int) -> Image.Image:
    if image.mode == "I" or image.mode.startswith("I;16"):  # Pillow's own conversion would clip at 255
        values = np.clip(np.asarray(image), 0, white).astype(np.uint32)
        image = Image.fromarray(((values * 255 + white // 2) // white).astype(np.uint8))
    elif image.has_transparency_data:
        # The colour under transparent pixels is arbitrary; such pictures are usually drawn for a white page.
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return image.convert("RGB")


_lock = threading.Lock()
_num_inside = 0
_filters = ExitStack()


@contextmanager
def no_warnings() -> Iterator[None]:
    """Without Pillow's warnings; threads that are inside together share one change of Python's filters."""
    global _num_inside
    with _lock:
        if _num_inside == 0:
            _filters.enter_context(warnings.catch_warnings())
            warnings.filterwarnings("ignore", module=r"PIL\.")
        _num_inside += 1
    try:
        yield
    finally:
        with _lock:
            _num_inside -= 1
            if _num_inside == 0:
                _filters.close()
