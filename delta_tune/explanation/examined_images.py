"""Images that are opened once for all that is told about them: predictions, embeddings, and what a page shows."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal

import numpy as np
from PIL import Image

from delta_tune.data.batches import EVAL_BATCH_SIZE
from delta_tune.data.fitting import Picture, Pixels
from delta_tune.data.images import DamagedImage, Preprocessing, stored_square
from delta_tune.data.pictures import crop_stored_square
from delta_tune.inference.embeddings import embed_squares
from delta_tune.inference.inputs import Images, open_each
from delta_tune.inference.model import Model, Prediction

PICTURE_SIZE = 256


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ShownImage:
    """What is kept of an image for a page."""

    square: Pixels
    """uint8 (R, R, C), what `stored_square` returns."""
    picture: Image.Image
    """What the network sees, 256 × 256."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ExaminedImages:
    """N images, in order."""

    predictions: Sequence[Prediction]
    """Of each, (N,)."""
    embeddings: Sequence[np.ndarray | None]
    """Of the first ones, each float32 (D,); None for one that cannot be read."""
    shown: Sequence[ShownImage | None]
    """Of the first ones, what a page needs; None for one that cannot be read."""


def examine(
    model: Model,
    images: Images,
    *,
    min_confidence: float | Literal["auto"] | None = None,
    num_embedded: int = 0,
    num_shown: int = 0,
) -> ExaminedImages:
    """Predict images, and keep what else is asked for, while each is opened once.

    Args:
        model: that predicts.
        images: as of `Model.predict`.
        min_confidence: as of `Model.predict`.
        num_embedded: how many of the first images to embed, ≥ 0.
        num_shown: how many of the first images a page is to show, ≥ 0. Memory grows with them: R · R · C bytes each,
            and 192 KiB for the picture.

    Raises:
        UserError: as `Model.predict`.
    """
    least = model.least_confidence(min_confidence)
    predictions: list[Prediction] = []
    embeddings: list[np.ndarray | None] = []
    shown: list[ShownImage | None] = []
    each = _open(images, model.preprocessing, num_shown)
    while batch := list(islice(each, EVAL_BATCH_SIZE)):
        squares = [square for square, _ in batch]
        predictions += model.predict_squares(squares, least)
        embeddings += embed_readable(model, squares[: num_embedded - len(embeddings)])
        shown += [kept for _, kept in batch[: num_shown - len(shown)]]
    return ExaminedImages(predictions=predictions, embeddings=embeddings, shown=shown)


def _open(
    images: Images, preprocessing: Preprocessing, num_shown: int
) -> Iterator[tuple[Pixels | DamagedImage, ShownImage | None]]:
    """The stored square of each image, and of the first ones what a page needs."""
    for position, opened in enumerate(open_each(images, preprocessing.channels, preprocessing.white)):
        if isinstance(opened, DamagedImage):
            yield opened, None
            continue
        square = stored_square(opened, preprocessing)
        is_shown = position < num_shown
        yield square, ShownImage(square=square, picture=seen_picture(opened, preprocessing)) if is_shown else None


def embed_readable(model: Model, squares: Sequence[Pixels | DamagedImage]) -> list[np.ndarray | None]:
    """The embedding of each stored square, float32 (D,), from one forward pass; None for an unreadable image."""
    readable = [square for square in squares if not isinstance(square, DamagedImage)]
    if not readable:
        return [None] * len(squares)
    rows = iter(embed_squares(model.network, model.config["backbone"]["head"], np.stack(readable), model.preprocessing))
    return [None if isinstance(square, DamagedImage) else next(rows) for square in squares]


def seen_picture(picture: Picture, preprocessing: Preprocessing, side: int = PICTURE_SIZE) -> Image.Image:
    """The part of a picture that the network sees, `side` × `side` pixels."""
    stored = round(side * preprocessing.stored_size / preprocessing.image_size)
    larger = dataclasses.replace(preprocessing, image_size=side, stored_size=stored)
    return crop_stored_square(stored_square(picture, larger), larger)
