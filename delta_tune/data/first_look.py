"""Look at some training images before any is decoded: how they are to be resized, and what is told of that."""

from __future__ import annotations

import dataclasses
import io
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from statistics import median
from typing import Literal

import numpy as np
from PIL import Image

from delta_tune.data.decoding import FORMATS, no_warnings
from delta_tune.data.fitting import Resize
from delta_tune.data.images import Preprocessing, num_decoding_threads
from delta_tune.data.sources.base import Examples
from delta_tune.data.splits import Indices

AskedResize = Literal["auto", "crop", "squash", "letterbox"]
LOOKED_AT = 256
"""At most so many images, evenly spaced among those of train."""
LEAST_KEPT = 0.6
"""Images are letterboxed if the median of what the centre crop keeps of them is below it."""
_SAYS = {"squash": "whole, both sides to the size of the input", "letterbox": "whole, with a border of the mean colour"}


@dataclass(frozen=True, slots=True)
class FirstLook:
    """What the headers of some training images tell."""

    kept: tuple[float, ...]
    """The share of each image that its central square has, in (0, 1]."""

    @property
    def usual_kept(self) -> float:
        """The median share that the central square has; 1 if no header could be read."""
        return median(self.kept) if self.kept else 1.0


def look_at(examples: Examples, indices: Indices) -> FirstLook:
    """Read the headers of at most `LOOKED_AT` images, evenly spaced; those that cannot be read are left out."""
    chosen = np.unique(np.linspace(0, len(indices) - 1, min(len(indices), LOOKED_AT)).round().astype(np.int64))
    with no_warnings(), ThreadPoolExecutor(examples.readers or num_decoding_threads()) as pool:
        sizes = pool.map(lambda index: _size(examples, index), indices[chosen].tolist())
        return FirstLook(tuple(min(size) / max(size) for size in sizes if size is not None))


def settle_preprocessing(
    preprocessing: Preprocessing, resize: AskedResize, examples: Examples, indices: Indices
) -> tuple[Preprocessing, list[str]]:
    """The preprocessing for the training images at `indices`, and sentences on it.

    Args:
        preprocessing: of the backbone.
        resize: as asked.
        examples: of train.
        indices: those that are used.
    """
    settled, sentence = settle_resize(resize, look_at(examples, indices))
    return dataclasses.replace(preprocessing, resize=settled), [sentence] if sentence else []


def settle_resize(asked: AskedResize, look: FirstLook) -> tuple[Resize, str]:
    """How images are resized, and a sentence on it; an empty one if it is the centre crop and loses little.

    `auto` is `letterbox` if the centre crop keeps less than `LEAST_KEPT` of the median image, else `crop`.
    """
    kept, looked_at = look.usual_kept, len(look.kept)
    best: Resize = "letterbox" if kept < LEAST_KEPT else "crop"
    of = f"of the median image ({looked_at} of train were looked at)"
    if asked == "auto":
        if best == "crop":
            return best, ""
        return best, (
            f"Images are resized {_SAYS[best]} (letterbox): the centre crop would keep {kept:.0%} {of}, less than "
            f"{LEAST_KEPT:.0%}; --resize crop takes it nevertheless."
        )
    if asked == "crop":
        if best == "crop":
            return asked, ""
        return asked, f"Images are cropped, as asked, which keeps {kept:.0%} {of}; --resize auto would choose {best}."
    sentence = f"Images are resized {_SAYS[asked]} ({asked}), as asked"
    if best == asked:
        return asked, f"{sentence}; the centre crop would keep {kept:.0%} {of}."
    reason = f"which would keep {kept:.0%} {of}" if best == "crop" else "which keeps their proportions"
    return asked, f"{sentence}; --resize auto would choose {best}, {reason}."


def _size(examples: Examples, index: int) -> tuple[int, int] | None:
    """Width and height of an image, as its header tells; None if it cannot be read."""
    try:
        content = examples.read(index)
        if isinstance(content, bytes):
            with Image.open(io.BytesIO(content), formats=FORMATS) as image:
                return image.size
        return content.size
    except Exception:  # Pillow raises nearly every built-in exception on a damaged file, which reading it will tell
        return None
