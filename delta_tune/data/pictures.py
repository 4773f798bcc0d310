"""What a network sees of an image, as a picture for people."""

from __future__ import annotations

import io

from PIL import Image

from delta_tune.data.fitting import Pixels, center_offset
from delta_tune.data.images import Preprocessing

THUMBNAIL_SIZE = 112


def thumbnail(pixels: Pixels, preprocessing: Preprocessing, size: int = THUMBNAIL_SIZE) -> bytes:
    """A small JPEG of the part of a stored square (R, R, C) that the network sees."""
    stream = io.BytesIO()
    crop_stored_square(pixels, preprocessing).resize((size, size), Image.Resampling.BICUBIC).save(
        stream, "JPEG", quality=80
    )
    return stream.getvalue()


def crop_stored_square(pixels: Pixels, preprocessing: Preprocessing) -> Image.Image:
    """The centre of a stored square (R, R, C): the network's input, its first three channels, or its first one."""
    image = Image.fromarray(pixels[:, :, :3] if pixels.shape[2] > 2 else pixels[:, :, 0])
    start = center_offset(image.width, preprocessing.image_size)
    end = start + preprocessing.image_size
    return image.crop((start, start, end, end))
