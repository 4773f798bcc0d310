"""Decode the content of an image file to the channels wanted, whatever its format, metadata and kind of pixels."""

from __future__ import annotations

import ctypes
import io
import logging
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import ExifTags, Image, TiffImagePlugin, _imaging

from delta_tune.data.arrays import NPY, TIFF, channels_last, picture_of, read_npy, read_tiff, to_8_bit
from delta_tune.data.fitting import Picture
from delta_tune.data.limits import DECODING, check_pixels
from delta_tune.data.metadata import without_metadata

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM", "TGA", "ICO")
"""Names that Pillow gives to the formats that are read. None starts another program, as PostScript does."""

_DEEP_PNG = (b"\x10\2", b"\x10\4", b"\x10\6")
"""Bits and kind of colour of PNG files with several channels of 16 bits."""
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


def decode(content: bytes, channels: int = 3, white: float | None = None) -> Picture:
    """Decode an image file, upright (EXIF).

    Args:
        content: of an image file, or of a .npy file.
        channels: 3 gives RGB, with transparency on white; 1 grey; 2 and 4 grey and RGB with transparency; any number
            the channels of an array or a TIFF.
        white: of `to_8_bit`, for pixels of more than 8 bits.

    Returns:
        RGB, or uint8 (H, W, C) for other channels than 3.

    Raises:
        Exception: nearly any, as Pillow's decoders do on a damaged file.
    """
    with no_warnings():
        if content.startswith(NPY):
            return picture_of(read_npy(content), channels, white)
        if content.startswith(TIFF) and _takes_tifffile(content, channels, white):
            return picture_of(read_tiff(content, channels), channels, white)
        try:
            return _decode(content, channels, white)
        except Exception:  # see above
            if content.startswith(TIFF) and (bands := _bands(content)) > 4:
                raise ValueError(f"a TIFF of {bands} channels: --channels {bands} reads them") from None
            pixels_only = without_metadata(content)
            if pixels_only == content:
                raise
            return _decode(pixels_only, channels, white)


def to_channels(image: Image.Image, channels: int, white: float | None) -> Picture:
    """As `decode` does, of an image that is open; its memory may be shared with the result.

    Raises:
        Exception: as `decode`; ValueError if the image has other channels.
    """
    if channels == 3:
        return to_rgb(image, white)
    if channels == 1:
        return np.array(to_rgb(image, white).convert("L"))[:, :, None]
    mode = {2: "LA", 4: "RGBA"}.get(channels)
    is_colour = image.mode not in ("1", "L", "LA", "La")
    if mode is None or not image.has_transparency_data or (channels == 2 and is_colour):
        raise ValueError(f"it has {_kind(image)}, not {channels} channels: set --channels to what it has")
    return np.array(_upright(image, white)[0].convert(mode))


def to_rgb(image: Image.Image, white: float | None = None) -> Image.Image:
    """As `to_channels` does for 3 channels.

    Raises:
        Exception: as `decode`.
    """
    image, level = _upright(image, white)
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    if image.width * image.height <= _STRIP:
        return _strip_to_rgb(image, level)
    converted = Image.new("RGB", image.size)
    rows = max(1, _STRIP // image.width)
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(top + rows, image.height)))
        converted.paste(_strip_to_rgb(strip, level), (0, top))
    return converted


@dataclass(frozen=True, slots=True)
class Glance:
    """What can be told of an image before it is decoded."""

    size: tuple[int, int]
    """Width and height in pixels, as they are stored."""
    is_grey: bool
    highest: float | None
    """The largest value of an image of more than 8 bits."""


def glance_at(source: bytes | Image.Image, channels: int, *, with_highest: bool) -> Glance:
    """Look at an image's header, and at its values if they are of more than 8 bits and `with_highest`.

    Raises:
        Exception: as `decode`.
    """
    if isinstance(source, Image.Image):
        return _glance_at_image(source, with_highest)
    if source.startswith(NPY) or (source.startswith(TIFF) and channels not in (1, 3)):
        values = channels_last(read_npy(source) if source.startswith(NPY) else read_tiff(source, channels), channels)
        highest = float(values.max()) if with_highest and values.dtype.itemsize > 1 else None
        return Glance((values.shape[1], values.shape[0]), values.shape[2] == 1, highest)
    with Image.open(io.BytesIO(source), formats=FORMATS) as image:
        return _glance_at_image(image, with_highest)


def _glance_at_image(image: Image.Image, with_highest: bool) -> Glance:
    is_deep = image.mode in ("I", "F") or image.mode.startswith("I;16")
    is_scaled = image.format == "PPM" or (is_deep and _white_level(image, 65535.0) != 65535)
    check_pixels(image.size, image.format)
    highest = None
    if with_highest and is_deep and not is_scaled:
        with DECODING.reserve(image.size, image.format):
            highest = float(np.asarray(image).max())
    return Glance(image.size, is_deep or image.mode in ("1", "L", "LA", "La"), highest)


def _upright(image: Image.Image, white: float | None) -> tuple[Image.Image, float]:
    """The image, loaded and upright, and the value of white in it."""
    if image.format == "EPS":
        raise ValueError("PostScript, which is a program")
    check_pixels(image.size, image.format)
    level = _white_level(image, white)
    image.load()
    check_pixels(image.size, image.format)  # in an ICO the size of the picture may be another than the file says
    if (method := _TRANSPOSE.get(_orientation(image))) is not None:
        image = image.transpose(method)
    return image, level


def _decode(content: bytes, channels: int, white: float | None) -> Picture:
    if white is not None and content.startswith(b"\x89PNG") and content[24:26] in _DEEP_PNG:
        raise ValueError("16-bit colour or transparency in a PNG, of which only the upper 8 bits are read: save .npy")
    image: Image.Image = Image.open(io.BytesIO(content), formats=FORMATS)
    check_pixels(image.size, image.format)
    with DECODING.reserve(image.size, image.format):
        return to_channels(image, channels, white)


def _takes_tifffile(content: bytes, channels: int, white: float | None) -> bool:
    """Whether Pillow does not read so many channels of a TIFF, or of more than 8 bits only the upper ones."""
    if channels not in (1, 2, 3, 4):
        return True
    try:
        with Image.open(io.BytesIO(content), formats=("TIFF",)) as image:
            assert isinstance(image, TiffImagePlugin.TiffImageFile)
            bits = image.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE, (1,))
            is_deep, mode = len(bits) > 1 and max(bits) > 8, image.mode
    except Exception:  # Pillow cannot read it at all, perhaps for its depth
        return channels in (2, 4) or white is not None
    if channels in (1, 3):
        return is_deep and white is not None
    return is_deep or mode != {2: "LA", 4: "RGBA"}[channels]


def _bands(content: bytes) -> int:
    """The channels of a TIFF that Pillow cannot read; 0 if its header is damaged."""
    try:
        directory = TiffImagePlugin.ImageFileDirectory_v2(content[:8])
        with io.BytesIO(content) as file:
            file.seek(directory.next)
            directory.load(file)
        return int(directory.get(TiffImagePlugin.SAMPLESPERPIXEL, 1))
    except Exception:  # see `decode`
        return 0


def _kind(image: Image.Image) -> str:
    transparent = " with transparency" if image.has_transparency_data else ""
    return f"the colours {image.mode}{transparent}"


def _orientation(image: Image.Image) -> Any:
    try:
        return image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # Pillow raises nearly every built-in exception on odd tags, and they concern no pixel
        return None


def _white_level(image: Image.Image, given: float | None) -> float:
    """The value of white in an image with one channel: `given` if it has more than 8 bits; 255 for other images.

    Raises:
        ValueError: nothing tells which values are black and white, or Pillow reads them wrongly.
    """
    advice = "save all images as 8- or 16-bit grey with one scale"
    if image.mode == "F" and given is None:
        raise ValueError(f"floating-point pixels (mode F), whose black and white nothing tells: {advice}")
    if image.mode == "I" and image.format != "PPM" and given is None:  # whose decoder scales to 16 bits
        raise ValueError(f"32-bit or signed pixels (mode I), whose black and white nothing tells: {advice}")
    is_16_bit = image.mode == "I" or image.mode.startswith("I;16")
    white: float = 65535 if is_16_bit else 255
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        tags = image.tag_v2
        if 2 in np.atleast_1d(tags.get(TiffImagePlugin.SAMPLEFORMAT, 1)):
            raise ValueError(f"signed pixels, whose black and white nothing tells: {advice}")
        if is_16_bit and tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0:
            raise ValueError(f"16-bit pixels of which 0 is white: {advice}, and 0 as black")
        if is_16_bit and tags.get(TiffImagePlugin.BITSPERSAMPLE) == (12,):
            white = 4095
    is_deep = is_16_bit or image.mode == "F"
    return given if given is not None and is_deep and image.format != "PPM" else white


def _strip_to_rgb(image: Image.Image, white: float) -> Image.Image:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):  # Pillow's own conversion would clip at 255
        image = Image.fromarray(to_8_bit(np.asarray(image), white))
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
