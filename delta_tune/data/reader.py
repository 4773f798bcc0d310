"""Read a split's examples with threads: hash each, check that it decodes, store it decoded or encoded."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from PIL import Image

from delta_tune.data.images import (
    DamagedImage,
    DecodedImages,
    EncodedImages,
    Pixels,
    Preprocessing,
    damage_reason,
    num_decoding_threads,
    open_image,
    pack_files,
    to_png,
    to_square,
)
from delta_tune.data.sources.base import Examples
from delta_tune.data.splits import Indices
from delta_tune.data.thumbnails import Thumbnail, Thumbnails, stack, thumbnail

_CHUNK = 512  # images in flight: bounds the memory of finished but uncollected images
_REDUCED = 64  # pixels of a side from which a thumbnail is made: more take longer and add nothing


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadExamples:
    """The readable examples of one split, in order."""

    images: DecodedImages | EncodedImages
    kept: Indices
    """Their positions among the requested indices."""
    digests: list[bytes]
    thumbnails: Thumbnails
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
    size, interpolation = preprocessing.stored_size, preprocessing.interpolation

    def load(index: int) -> tuple[bytes, Pixels | bytes | None, Thumbnail | None] | DamagedImage:
        try:
            content = examples.read(index)
            digest = content_digest(content)
            if digest in leave_out:
                return digest, None, None
            image = open_image(content)
            square = to_square(image, size, interpolation)
            # Of the square, for all alike: the same picture in two sizes has the same square
            shared = Image.frombuffer("RGB", (size, size), square, "raw", "RGB", 0, 1)
            small = thumbnail(shared.reduce(max(1, size // _REDUCED)), min(image.size))
        except (OSError, DamagedImage) as error:
            return DamagedImage(examples.names[index], damage_reason(error))
        if decode:
            return digest, square, small
        # Store the square as PNG if the file is larger than it (a PNG takes about half of the raw square).
        if isinstance(content, bytes) and len(content) <= square.nbytes // 2:
            return digest, content, small
        return digest, to_png(square), small

    pixels = np.empty((len(indices) if decode else 0, size, size, 3), dtype=np.uint8)
    files: list[bytes] = []
    kept: list[int] = []
    digests: list[bytes] = []
    thumbnails: list[Thumbnail] = []
    damaged: list[DamagedImage] = []
    num_left_out = 0
    with ThreadPoolExecutor(examples.readers or num_decoding_threads()) as pool:
        for start in range(0, len(indices), _CHUNK):
            for offset, loaded in enumerate(pool.map(load, indices[start : start + _CHUNK].tolist())):
                advance()
                if isinstance(loaded, DamagedImage):
                    damaged.append(loaded)
                    continue
                digest, content, small = loaded
                if content is None or small is None:
                    num_left_out += 1
                    continue
                if isinstance(content, bytes):
                    files.append(content)
                else:
                    pixels[len(kept)] = content
                kept.append(start + offset)
                digests.append(digest)
                thumbnails.append(small)
    images = DecodedImages(pixels[: len(kept)]) if decode else EncodedImages(pack_files(files), size, interpolation)
    return ReadExamples(
        images=images,
        kept=np.array(kept, dtype=np.int64),
        digests=digests,
        thumbnails=stack(thumbnails),
        damaged=damaged,
        num_left_out=num_left_out,
    )


def content_digest(content: bytes | Image.Image) -> bytes:
    """SHA-256 of a file, or of the pixels of an image that has none."""
    if isinstance(content, bytes):
        return hashlib.sha256(content).digest()
    return hashlib.sha256(f"{content.mode} {content.size} ".encode() + content.tobytes()).digest()
