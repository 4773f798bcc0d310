"""Read a split's examples with threads: hash each, check that it decodes, keep it decoded, or its file."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from delta_tune.data.encoding import Digests, digest_of, file_to_keep
from delta_tune.data.file_keeper import FileKeeper
from delta_tune.data.fitting import Pixels, size_of
from delta_tune.data.images import DamagedImage, Preprocessing, damage_reason, fit, open_picture, with_border
from delta_tune.data.names import Names
from delta_tune.data.sources.base import Examples
from delta_tune.data.splits import Indices
from delta_tune.data.stored_images import DecodedImages, Images, num_decoding_threads

_CHUNK = 512  # images in flight: bounds the memory of finished but uncollected images


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadExamples:
    """The readable examples of one split, in order."""

    images: Images
    kept: Indices
    """Their positions among the requested indices."""
    names: Names
    digests: Digests
    sides: Indices
    """Their short sides in pixels (N,); empty unless they are kept decoded."""
    damaged: list[DamagedImage]
    num_left_out: int


@dataclass(frozen=True, slots=True)
class _Loaded:
    """What becomes of one example."""

    digest: bytes
    content: Pixels | bytes | None
    """The stored square, the file to keep, or nothing if the image is left out."""
    is_there: bool = False
    """Whether the source's own file holds the content."""
    side: int = 0
    """The image's short side, in pixels, where a square is kept."""


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

    def load(index: int) -> _Loaded | DamagedImage:
        try:
            content = examples.read(index)
            digest = digest_of(content)
            if digest in unwanted:
                return _Loaded(digest, None)
            if keeper is not None and (file := keeper.known(digest)) is not None:
                return _Loaded(digest, file, is_there=examples.are_files and file == content)
            picture = open_picture(content, preprocessing.channels, preprocessing.white)
            fitted = fit(picture, preprocessing)
        except (OSError, DamagedImage) as error:
            return DamagedImage(examples.names[index], damage_reason(error))
        if keeper is None:
            return _Loaded(digest, with_border(fitted, preprocessing), side=min(size_of(picture)))
        file = file_to_keep(content, fitted)
        return _Loaded(digest, file, is_there=examples.are_files and file is content)

    stored = len(indices) if keeper is None else 0
    pixels = np.empty((stored, size, size, preprocessing.channels), dtype=np.uint8)
    kept, sides = array("q"), array("q")
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
                if loaded.content is None:
                    num_left_out += 1
                    continue
                if isinstance(loaded.content, bytes):
                    assert keeper is not None, "a square otherwise"
                    keeper.add(loaded.digest, loaded.content, is_there=loaded.is_there)
                else:
                    pixels[len(kept)] = loaded.content
                    sides.append(loaded.side)
                kept.append(start + offset)
                digests += loaded.digest
    positions, found = np.array(kept, dtype=np.int64), np.frombuffer(bytes(digests), dtype="S32")
    rows = indices[positions]
    names = Names.of(examples.names[row] for row in rows.tolist())
    images = DecodedImages(pixels[: len(kept)]) if keeper is None else keeper.images(rows, found, names)
    return ReadExamples(
        images=images,
        kept=positions,
        names=names,
        digests=found,
        sides=np.array(sides, dtype=np.int64),
        damaged=damaged,
        num_left_out=num_left_out,
    )
