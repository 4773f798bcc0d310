"""Read a split's examples with threads: hash each, check that it decodes, keep it decoded, or its file."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from delta_tune.data.encoding import Digests, digest_of, file_to_keep
from delta_tune.data.file_keeper import FileKeeper
from delta_tune.data.fitting import Pixels
from delta_tune.data.images import (
    DamagedImage,
    DecodedImages,
    Images,
    Preprocessing,
    damage_reason,
    fit,
    num_decoding_threads,
    open_picture,
    with_border,
)
from delta_tune.data.names import Names
from delta_tune.data.sources.base import Examples
from delta_tune.data.splits import Indices

_CHUNK = 512  # images in flight: bounds the memory of finished but uncollected images


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadExamples:
    """The readable examples of one split, in order."""

    images: Images
    kept: Indices
    """Their positions among the requested indices."""
    names: Names
    digests: Digests
    damaged: list[DamagedImage]
    num_left_out: int


def read_examples(
    examples: Examples,
    indices: Indices,
    preprocessing: Preprocessing,
    *,
    keeper: FileKeeper | None,
    leave_out: Digests | None,
    advance: Callable[[], None],
) -> ReadExamples:
    """Read examples with threads, in order.

    Args:
        examples: of a source's split.
        indices: of those to read.
        preprocessing: of the backbone.
        keeper: keeps the files; None keeps the images decoded.
        leave_out: digests of images that are dropped.
        advance: called after each image.
    """
    size = preprocessing.stored_size

    unwanted = set() if leave_out is None else {digest.ljust(32, b"\0") for digest in leave_out.tolist()}

    def load(index: int) -> tuple[bytes, Pixels | bytes | None, bool] | DamagedImage:
        """Digest, what is kept (None if nothing is), and whether that is what the source's file holds."""
        try:
            content = examples.read(index)
            digest = digest_of(content)
            if digest in unwanted:
                return digest, None, False
            if keeper is not None and (file := keeper.known(digest)) is not None:
                return digest, file, examples.are_files and file == content
            fitted = fit(open_picture(content, preprocessing.channels, preprocessing.white), preprocessing)
        except (OSError, DamagedImage) as error:
            return DamagedImage(examples.names[index], damage_reason(error))
        if keeper is None:
            return digest, with_border(fitted, preprocessing), False
        file = file_to_keep(content, fitted)
        return digest, file, examples.are_files and file is content

    stored = len(indices) if keeper is None else 0
    pixels = np.empty((stored, size, size, preprocessing.channels), dtype=np.uint8)
    kept = array("q")
    digests = bytearray()
    damaged: list[DamagedImage] = []
    num_left_out = 0
    with ThreadPoolExecutor(examples.readers or num_decoding_threads()) as pool:
        for start in range(0, len(indices), _CHUNK):
            for offset, loaded in enumerate(pool.map(load, indices[start : start + _CHUNK].tolist())):
                advance()
                if isinstance(loaded, DamagedImage):
                    damaged.append(loaded)
                    continue
                digest, content, is_there = loaded
                if content is None:
                    num_left_out += 1
                    continue
                if isinstance(content, bytes):
                    assert keeper is not None, "a square otherwise"
                    keeper.add(digest, content, is_there=is_there)
                else:
                    pixels[len(kept)] = content
                kept.append(start + offset)
                digests += digest
    positions, found = np.array(kept, dtype=np.int64), np.frombuffer(bytes(digests), dtype="S32")
    rows = indices[positions]
    names = Names.of(examples.names[row] for row in rows.tolist())
    images = DecodedImages(pixels[: len(kept)]) if keeper is None else keeper.images(rows, found, names)
    return ReadExamples(
        images=images, kept=positions, names=names, digests=found, damaged=damaged, num_left_out=num_left_out
    )
