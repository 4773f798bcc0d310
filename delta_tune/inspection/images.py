"""Read every image of a data set once, and keep a few facts and a small copy of each."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFile

from delta_tune.data.decoding import FORMATS, no_warnings
from delta_tune.data.encoding import digest_of
from delta_tune.data.fitting import Pixels, size_of
from delta_tune.data.images import DamagedImage, Preprocessing, damage_reason, open_picture, stored_square
from delta_tune.data.sources.base import Examples
from delta_tune.data.splits import Indices
from delta_tune.data.stored_images import num_decoding_threads
from delta_tune.data.thumbnails import Thumbnail, thumbnail, thumbnail_of_pixels

CHUNK = 256
"""Images whose facts, or squares, are in memory before they are taken on."""
COLOURLESS = 2
"""Levels by which the colour of grey pixels may be off."""
KINDS = ("grey", "transparent", "16-bit", "CMYK", "palette", "turned by EXIF")


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageFacts:
    """What is known of an image that can be read."""

    name: str
    split: str
    labels: tuple[str, ...]
    """Its class, or several labels."""
    digest: bytes
    """Of the file."""
    bytes: int | None
    """Size of the file; None if the source gives pixels."""
    width: int
    """In pixels, once it is upright."""
    height: int
    format: str
    """As Pillow names it; "none" if the source gives pixels."""
    kinds: frozenset[str]
    """Those of `KINDS` that it is."""

    @property
    def label(self) -> str:
        """The labels in words."""
        return " + ".join(self.labels) or "(none)"

    @property
    def aspect_ratio(self) -> float:
        """Long side by short side."""
        return max(self.width, self.height) / min(self.width, self.height)


@dataclass(frozen=True, kw_only=True, slots=True)
class Form:
    """In which form pixels are read."""

    channels: int = 3
    white: float | None = None
    """As of `Preprocessing`."""
    preprocessing: Preprocessing | None = None
    """Of the network that judges the labels; None if none does."""


Found = tuple[ImageFacts, Thumbnail, Pixels | None]


def read_images(
    examples: Examples,
    indices: Indices,
    labels: Sequence[tuple[str, ...]],
    split: str,
    form: Form,
    advance: Callable[[], None],
) -> Iterator[list[Found | DamagedImage]]:
    """Read images with threads, in chunks, in order; of a chunk only facts stay unless the caller keeps more.

    Args:
        examples: of a split of the source.
        indices: (N,) which of them.
        labels: (N,) those of each.
        split: which they belong to.
        form: of the pixels.
        advance: called after each image.
    """

    def read(position: int) -> Found | DamagedImage:
        index = int(indices[position])
        try:
            content = examples.read(index)
            picture = open_picture(content, form.channels, form.white)
            small = thumbnail(picture) if isinstance(picture, Image.Image) else thumbnail_of_pixels(picture, 255)
            facts = _facts(content, size_of(picture), small, examples.names[index], split, labels[position])
            found = facts, small, None if form.preprocessing is None else stored_square(picture, form.preprocessing)
        except (OSError, DamagedImage) as error:
            return DamagedImage(examples.names[index], damage_reason(error))
        return found

    with ThreadPoolExecutor(examples.readers or num_decoding_threads()) as pool:
        for start in range(0, len(indices), CHUNK):
            chunk = []
            for found in pool.map(read, range(start, min(start + CHUNK, len(indices)))):
                chunk.append(found)
                advance()
            yield chunk


def _facts(
    content: bytes | Image.Image,
    size: tuple[int, int],
    small: Thumbnail,
    name: str,
    split: str,
    labels: tuple[str, ...],
) -> ImageFacts:
    _, colour, _ = small
    kind, kinds = "none", set[str]()
    if isinstance(content, bytes):
        kind, kinds = _header(content)
    elif content.mode in ("1", "L", "LA"):
        kinds = {"grey"}
    if np.abs(colour.astype(int) - 128).max() <= COLOURLESS:
        kinds.add("grey")
    return ImageFacts(
        name=name,
        split=split,
        labels=labels,
        digest=digest_of(content),
        bytes=len(content) if isinstance(content, bytes) else None,
        width=size[0],
        height=size[1],
        format=kind,
        kinds=frozenset(kinds),
    )


def _header(content: bytes) -> tuple[str, set[str]]:
    """Format and kinds of a file that can be read, without its pixels."""
    try:
        with no_warnings(), Image.open(io.BytesIO(content), formats=FORMATS) as image:
            kinds: set[str] = set()
            if image.mode in ("1", "L", "LA", "I", "F") or image.mode.startswith("I;16"):
                kinds.add("grey")
            if image.has_transparency_data:
                kinds.add("transparent")
            if image.mode in ("CMYK", "YCCK"):
                kinds.add("CMYK")
            if image.mode in ("P", "PA"):
                kinds.add("palette")
            if _has_16_bits(content, image):
                kinds.add("16-bit")
            if image.getexif().get(0x0112, 1) not in (0, 1):
                kinds.add("turned by EXIF")
            return image.format or "none", kinds
    except Exception:  # Pillow refuses odd metadata beside sound pixels with nearly every built-in exception
        return "with odd metadata", set()


def _has_16_bits(content: bytes, image: ImageFile.ImageFile) -> bool:
    if image.mode.startswith("I;16") or image.mode == "I":
        return True
    if image.format == "PNG":  # of whose colours Pillow keeps eight bits, and says so nowhere
        return content[24:25] == b"\x10"
    tags = getattr(image, "tag_v2", None)
    return tags is not None and max(tags.get(258, (8,))) > 8
