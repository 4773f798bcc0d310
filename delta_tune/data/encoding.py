"""What is kept of an example's file: its content, or the pixels that are cut from it where that is smaller."""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt
from PIL import Image

from delta_tune.data.fitting import Pixels
from delta_tune.data.images import encode_pixels

Digests = npt.NDArray[np.bytes_]
"""S32 (N,): SHA-256 of what was read of each example."""


def digest_of(content: bytes | Image.Image) -> bytes:
    """SHA-256 of a file's content, or of an image's mode, size and pixels."""
    if isinstance(content, bytes):
        return hashlib.sha256(content).digest()
    return hashlib.sha256(f"{content.mode} {content.size} ".encode() + content.tobytes()).digest()


def file_to_keep(content: bytes | Image.Image, fitted: Pixels) -> bytes:
    """The file from which the fitted pixels are read again: the content, or they as PNG if the content is larger.

    A PNG takes about half of the raw pixels.
    """
    return content if isinstance(content, bytes) and len(content) <= fitted.nbytes // 2 else encode_pixels(fitted)


def as_digests(found: list[bytes]) -> Digests:
    """Digests of 32 bytes each as one array."""
    return np.frombuffer(b"".join(found), dtype="S32")
