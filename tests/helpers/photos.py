"""Pictures that look like photos to a perceptual hash: smooth shapes in colour, no two alike."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image


def photo(seed, size=(120, 90)):
    """Coarse noise, enlarged smoothly."""
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)


def recompressed(image, quality=40):
    """The image as a JPEG of that quality gives it back."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(io.BytesIO(file.getvalue())).convert("RGB")
