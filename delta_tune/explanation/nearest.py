"""Which training images look most alike to the model: the nearest ones by the cosine of the embeddings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from delta_tune.config import UserError
from delta_tune.data.batches import EVAL_BATCH_SIZE
from delta_tune.data.loading import Bar
from delta_tune.explanation.embedding_file import EmbeddedImages
from delta_tune.explanation.examined_images import embed_readable
from delta_tune.explanation.similarity import similarities, typicality
from delta_tune.explanation.training_images import training_images
from delta_tune.inference.inputs import Images
from delta_tune.inference.model import Model

COUNT = 5


@dataclass(frozen=True, slots=True)
class NearestImage:
    """A training image."""

    name: str
    """Path, or file and row."""
    label: str
    """Its class; of several labels all that it has, with commas between."""
    similarity: float
    """Cosine of its embedding and that of the image that is explained, in [-1, 1]."""
    thumbnail: bytes
    """JPEG."""


@dataclass(frozen=True, slots=True)
class NearestImages:
    """The nearest training images of each image, or why there are none."""

    of_each: tuple[tuple[NearestImage, ...], ...]
    """For each image, in order, the most similar ones first; none for an image that cannot be read."""
    note: str = ""
    """A sentence if the training images cannot be had, or if they are a sample; else empty."""
    typicality: tuple[float | None, ...] = ()
    """For each image the share of training images that are no more alike to another one than it is to its nearest, in
    [0, 1]: next to 0 it is unlike all that the model was trained on. None where there are no nearest images."""
    are_known: bool = True
    """Whether the training images could be had."""


def nearest_images(
    model: Model,
    folder: str | Path,
    images: Images,
    *,
    count: int = COUNT,
    data: str | Path | None = None,
    progress: Bar | None = None,
) -> NearestImages:
    """Find the training images that look most alike to the model.

    Args:
        model: of the study.
        folder: the study's, or its `best/`, as for `load`.
        images: as of `Model.predict`.
        count: nearest images for each, ≥ 1; fewer if there are fewer training images.
        data: the study's data, if it has moved, or if somebody else began the study.
        progress: bars for what the first call takes, see `training_images`.

    Returns:
        Also if the data cannot be read or is not what it was: then a sentence says so.

    Raises:
        UserError: of the images, as of `Model.predict`.
    """
    vectors = list(_each_embedding(model, images))
    return nearest_to_embeddings(model, folder, vectors, count=count, data=data, progress=progress)


def nearest_to_embeddings(
    model: Model,
    folder: str | Path,
    vectors: Sequence[np.ndarray | None],
    *,
    count: int = COUNT,
    data: str | Path | None = None,
    progress: Bar | None = None,
) -> NearestImages:
    """As `nearest_images`, of images whose embeddings (D,) are there; None for one that cannot be read."""
    try:
        known = training_images(model, folder, data=data, progress=progress)
    except (UserError, OSError, MemoryError) as error:
        cause = str(error) or type(error).__name__
        nothing: tuple[None, ...] = (None,) * len(vectors)
        return NearestImages(((),) * len(vectors), f"The nearest training images are left out: {cause}", nothing, False)
    readable = [vector for vector in vectors if vector is not None]
    rows = iter(nearest(known, np.stack(readable), count, model.classes) if readable else ())
    note = ""
    if len(known) < known.num_all:
        note = f"Nearest among {len(known):,} of the {known.num_all:,} training images, drawn class by class."
    of_each = tuple(() if vector is None else next(rows) for vector in vectors)
    typical = tuple(typicality(known.usual, row[0].similarity) if row else None for row in of_each)
    return NearestImages(of_each, note, typical)


def nearest(
    known: EmbeddedImages, embeddings: np.ndarray, count: int, classes: tuple[str, ...]
) -> list[tuple[NearestImage, ...]]:
    """The `count` training images with the most similar embeddings for each row of `embeddings` (N, D)."""
    found = similarities(known.embeddings, embeddings)
    order = np.argsort(-found, axis=1, kind="stable")[:, :count]
    return [
        tuple(
            NearestImage(
                name=known.names[position],
                label=_label(known, position, classes),
                similarity=float(row[position]),
                thumbnail=known.thumbnails[position],
            )
            for position in chosen.tolist()
        )
        for row, chosen in zip(found, order, strict=True)
    ]


def _label(known: EmbeddedImages, position: int, classes: tuple[str, ...]) -> str:
    label = known.labels[position]
    return classes[label] if np.ndim(label) == 0 else ", ".join(classes[k] for k in np.flatnonzero(label))


def _each_embedding(model: Model, images: Images) -> Iterator[np.ndarray | None]:
    """The embedding (D,) of each image; None for one of several that cannot be read."""
    squares = model.squares(images)
    while batch := list(islice(squares, EVAL_BATCH_SIZE)):
        yield from embed_readable(model, batch)
