"""Read a split's examples with threads: hash each, check that it decodes, store it decoded or encoded."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from PIL import Image

from delta_tune.data.fitting import Pixels
from delta_tune.data.images import (
    DamagedImage,
    DecodedImages,
    EncodedImages,
    Preprocessing,
    damage_reason,
    encode_pixels,
    fit,
    num_decoding_threads,
    open_picture,
    pack_files,
    with_border,
)
from delta_tune.data.sources.base import Examples
from delta_tune.data.splits import Indices

_CHUNK = 512  # images in flight: bounds the memory of finished but uncollected images


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadExamples:
    """The readable examples of one split, in order."""

    images: DecodedImages | EncodedImages
    kept: Indices
    """Their positions among the requested indices."""
    digests: list[bytes]
    damaged: list[DamagedImage]
    num_left_out: int


def read_examples(
    examples: Examples,
    indices: Indices,
    preprocessing: Preprocessing,
    *,
    decode: bool,
    leave_out: set[bytes],
    advance: Callable[[], None],
) -> ReadExamples:
    """Read examples with threads, in order; images whose digest is in `leave_out` are dropped."""
    size = preprocessing.stored_size

    def load(index: int) -> tuple[bytes, Pixels | bytes | None] | DamagedImage:
        try:
            content = examples.read(index)
            digest = _digest(content)
            if digest in leave_out:
                return digest, None
            picture = open_picture(content, preprocessing.channels, preprocessing.white)
            fitted = fit(picture, preprocessing)
        except (OSError, DamagedImage) as error:
            return DamagedImage(examples.names[index], damage_reason(error))
        if decode:
            return digest, with_border(fitted, preprocessing)
        # Store the pixels (PNG) if the file is larger than it (a PNG takes about half of the raw pixels).
        if isinstance(content, bytes) and len(content) <= fitted.nbytes // 2:
            return digest, content
        return digest, encode_pixels(fitted)

    pixels = np.empty((len(indices) if decode else 0, size, size, preprocessing.channels), dtype=np.uint8)
    files: list[bytes] = []
    kept: list[int] = []
    digests: list[bytes] = []
    damaged: list[DamagedImage] = []
    num_left_out = 0
    with ThreadPoolExecutor(examples.readers or num_decoding_threads()) as pool:
        for start in range(0, len(indices), _CHUNK):
            for offset, loaded in enumerate(pool.map(load, indices[start : start + _CHUNK].tolist())):
                advance()
                if isinstance(loaded, DamagedImage):
                    damaged.append(loaded)
                    continue
                digest, content = loaded
                if content is None:
                    num_left_out += 1
                    continue
                if isinstance(content, bytes):
                    files.append(content)
                else:
                    pixels[len(kept)] = content
                kept.append(start + offset)
                digests.append(digest)
    images = DecodedImages(pixels[: len(kept)]) if decode else EncodedImages(pack_files(files), preprocessing)
    return ReadExamples(
        images=images,
        kept=np.array(kept, dtype=np.int64),
        digests=digests,
        damaged=damaged,
        num_left_out=num_left_out,
    )


def _digest(content: bytes | Image.Image) -> bytes:
    if isinstance(content, bytes):
        return hashlib.sha256(content).digest()
    return hashlib.sha256(f"{content.mode} {content.size} ".encode() + content.tobytes()).digest()
