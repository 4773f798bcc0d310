"""Look at some training images before all are read: how they are to be resized, and what is told of their values."""

from __future__ import annotations

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from statistics import median
from typing import Literal

import numpy as np

from delta_tune.data.decoding import Glance, glance_at, no_warnings
from delta_tune.data.fitting import Resize
from delta_tune.data.images import Preprocessing
from delta_tune.data.sources.base import Examples
from delta_tune.data.splits import Indices
from delta_tune.data.stored_images import num_decoding_threads

AskedResize = Literal["auto", "crop", "squash", "letterbox"]
LOOKED_AT = 256
"""At most so many images, evenly spaced among those of train."""
LEAST_KEPT = 0.6
"""Images are letterboxed if the median of what the centre crop keeps of them is below it."""
DARK = 1 / 8
"""The plan says so if no value is above this part of 65535."""
_EVERY = 4
"""Of one in so many images all values are looked at, where there are more than 8 bits."""
_SAYS = {"squash": "whole, both sides to the size of the input", "letterbox": "whole, with a border of the mean colour"}


@dataclass(frozen=True, slots=True)
class FirstLook:
    """What some training images tell."""

    kept: tuple[float, ...]
    """The share of each image that its central square has, in (0, 1]."""
    num_grey: int = 0
    """Images with one channel, or one and transparency."""
    highest: tuple[float, ...] = ()
    """The largest value of images of more than 8 bits, of every `_EVERY`-th image."""

    @property
    def usual_kept(self) -> float:
        """The median share that the central square has; 1 if no header could be read."""
        return median(self.kept) if self.kept else 1.0


def look_at(examples: Examples, indices: Indices, channels: int = 3) -> FirstLook:
    """Look at no more than `LOOKED_AT` images, evenly spaced; those that cannot be read are left out."""
    chosen = np.unique(np.linspace(0, len(indices) - 1, min(len(indices), LOOKED_AT)).round().astype(np.int64))

    def glance(position: int) -> Glance | None:
        try:
            content = examples.read(int(indices[chosen[position]]))
            return glance_at(content, channels, with_highest=position % _EVERY == 0)
        except (
            Exception
        ):  # decoders raise nearly every built-in exception on a damaged file, which reading it will tell
            return None

    with no_warnings(), ThreadPoolExecutor(examples.readers or num_decoding_threads()) as pool:
        found = [each for each in pool.map(glance, range(len(chosen))) if each is not None]
    return FirstLook(
        kept=tuple(min(each.size) / max(each.size) for each in found),
        num_grey=sum(each.is_grey for each in found),
        highest=tuple(each.highest for each in found if each.highest is not None),
    )


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
    look = look_at(examples, indices, preprocessing.channels)
    settled, sentence = settle_resize(resize, look)
    notes = [sentence] if sentence else []
    return dataclasses.replace(preprocessing, resize=settled), notes + value_notes(look, preprocessing)


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


def value_notes(look: FirstLook, preprocessing: Preprocessing) -> list[str]:
    """Sentences on grey images that are read as RGB, and on values far below or above white."""
    notes = []
    if look.kept and look.num_grey == len(look.kept) and preprocessing.channels == 3:
        notes.append(
            f"The images are grey ({len(look.kept)} of train were looked at) and are read as RGB with equal channels; "
            f"--channels 1 reads one."
        )
    if not look.highest:
        if look.kept and preprocessing.white is not None:
            notes.append(
                f"No image has more than 8 bits, for which --white is ({len(look.kept)} of train were looked at)."
            )
        return notes
    highest, looked_at = max(look.highest), f"{len(look.highest)} of train were looked at"
    if preprocessing.white is None and highest < DARK * 65535:
        white = 2 ** max(1, int(highest).bit_length()) - 1
        notes.append(
            f"The images of 16 bits have no value above {highest:.0f} of 65535 ({looked_at}), so they are read as "
            f"nearly black; --white {white} reads {white} as white."
        )
    if preprocessing.white is not None and highest > preprocessing.white:
        notes.append(
            f"The images have values up to {highest:g} ({looked_at}); those above {preprocessing.white:g}, which is "
            f"--white, are read as white."
        )
    return notes
