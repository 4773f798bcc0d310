"""What is kept of an example's file: its content, or the square that is cut from it where that is smaller."""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt
from PIL import Image

from delta_tune.data.images import Pixels, to_png

Digests = npt.NDArray[np.bytes_]
"""S32 (N,): SHA-256 of what was read of each example."""


def digest_of(content: bytes | Image.Image) -> bytes:
    """SHA-256 of a file's content, or of an image's mode, size and pixels."""
    if isinstance(content, bytes):
        return hashlib.sha256(content).digest()
    return hashlib.sha256(f"{content.mode} {content.size} ".encode() + content.tobytes()).digest()


def file_to_keep(content: bytes | Image.Image, square: Pixels) -> bytes:
    """The file from which the square is decoded again: the content, or the square as PNG if the content is larger.

    A PNG takes about half of the raw square.
    """
    return content if isinstance(content, bytes) and len(content) <= square.nbytes // 2 else to_png(square)


def as_digests(found: list[bytes]) -> Digests:
    """Digests of 32 bytes each as one array."""
    return np.frombuffer(b"".join(found), dtype="S32")
