"""Sources of images with several labels each: drawn ones, and pairs of real photos."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import numpy as np
from PIL import Image

from delta_tune.data import cutting
from delta_tune.data.sources.base import Examples, Source


@contextmanager
def source_of(source):
    """Let any `data` that is loaded while the block runs be this source."""
    with mock.patch.object(cutting, "find_source", return_value=source):
        yield


COLOURS = ("blue", "green", "red")
SHARES = (0.5, 0.35, 0.2)
"""Of the images that have each."""


def coloured_squares(counts, seed=0, size=80):
    """Noise on which each label is a square of its colour in a place of its own; some images have none.

    Args:
        counts: split → number of images.
        seed: of labels and pixels.
        size: pixels of a side.
    """
    rng = np.random.default_rng(seed)
    splits = {}
    for split, count in counts.items():
        there = rng.random((count, 3)) < SHARES
        there[:3] |= np.eye(3, dtype=bool)[: len(there[:3])]
        images = []
        for row in there:
            pixels = rng.integers(0, 120, (size, size, 3))
            for k in np.flatnonzero(row):
                pixels[8 : size - 8, 8 + 22 * k : 26 + 22 * k, 2 - k] += 130
            images.append(Image.fromarray(pixels.astype(np.uint8)))
        splits[split] = Examples(
            labels=[tuple(COLOURS[k] for k in np.flatnonzero(row)) for row in there],
            names=[f"{split}/{i}.png" for i in range(count)],
            read=images.__getitem__,
        )
    return Source(name="squares", splits=splits)


def photos_side_by_side(folder, counts, seed=0):
    """A flower on the left, a piece of clothing on the right, or one of them alone: real photos with one or two labels.

    Args:
        folder: with `flowers17/train` and `clothing/train`.
        counts: split → number of images; no photo is in two.
        seed: of the pairs.
    """
    rng = np.random.default_rng(seed)
    total, side = sum(counts.values()), 160

    def photos(name, classes):
        files = [
            (file, label.name)
            for label in sorted((Path(folder) / name / "train").iterdir())[:classes]
            for file in sorted(label.iterdir())[:80]
        ]
        return [files[i] for i in rng.permutation(len(files))[:total]]

    pairs = list(zip(photos("flowers17", 6), photos("clothing", 6), strict=True))
    assert len(pairs) == total, "there are fewer photos"
    alone = rng.choice(4, size=total)  # 0: the flower, 1: the clothing, else both

    def image(number):
        joint = Image.new("RGB", (2 * side, 2 * side), (128, 128, 128))
        for place, (file, _) in enumerate(pairs[number]):
            if alone[number] in (place, 2, 3):
                with Image.open(file) as opened:
                    photo = opened.convert("RGB").resize((side, 2 * side))
                joint.paste(photo, (place * side, 0))
        return joint

    splits, start = {}, 0
    for split, count in counts.items():
        numbers = range(start, start + count)
        splits[split] = Examples(
            labels=[tuple(pairs[n][place][1] for place in (0, 1) if alone[n] in (place, 2, 3)) for n in numbers],
            names=[f"{split}/{n}.jpg" for n in numbers],
            read=lambda index, start=start: image(start + index),
        )
        start += count
    return Source(name="side-by-side", splits=splits)
