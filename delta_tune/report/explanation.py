"""The page of `predict --explain`: each image, where the model looks in it, how sure it is, and what it has seen."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from PIL import Image

from delta_tune.data.fitting import Picture
from delta_tune.data.images import DamagedImage, Preprocessing, open_picture, stored_square
from delta_tune.data.pictures import crop_stored_square
from delta_tune.explanation.attended_channels import Attention
from delta_tune.explanation.explain import Explanation, explain, layer_of
from delta_tune.explanation.heat_maps import BATCH_SIZE
from delta_tune.explanation.nearest import NearestImage, NearestImages
from delta_tune.explanation.similarity import UNLIKE
from delta_tune.filesystem.atomic import atomic_write
from delta_tune.inference.model import Model, Prediction
from delta_tune.models.hooked_layers import MapLayer
from delta_tune.report.feature_map_images import stack_tiles
from delta_tune.report.heat_map_drawing import draw_heat_map, legend_css, to_jpeg
from delta_tune.report.templates import page_templates

TEMPLATE = "explanation.html.jinja"
MOST_IMAGES = 200
"""Of a page: one of more takes a browser long to open."""
FIRST_CLASSES = 5
"""Whose probabilities are shown."""
PICTURE_SIZE = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class Bar:
    """A class and its probability."""

    label: str
    probability: float
    is_there: bool
    """Whether it is an answer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DrawnMap:
    """A heat map over its picture."""

    label: str
    picture: bytes
    """JPEG."""
    is_empty: bool
    """Whether nothing in the image speaks for the label."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DrawnLayer:
    """Maps of the most attended channels of a layer."""

    layer: str
    channels: tuple[tuple[int, float], ...]
    """Channel and weight, 1 for an equal share."""
    picture: bytes
    """PNG."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """What the page shows of one image."""

    name: str
    error: str | None = None
    """A sentence if it cannot be read; nothing else is there then."""
    answer: str = ""
    unsure: bool = False
    picture: bytes = b""
    """What the network sees, as JPEG."""
    bars: tuple[Bar, ...] = ()
    maps: tuple[DrawnMap, ...] = ()
    layers: tuple[DrawnLayer, ...] = ()
    nearest: tuple[NearestImage, ...] = ()
    typicality: float | None = None

    @property
    def is_unlike(self) -> bool:
        """Whether it is unlike the training images."""
        return self.typicality is not None and self.typicality < UNLIKE


def write_explanations(
    file: Path,
    model: Model,
    names: Sequence[str | Path],
    predictions: Sequence[Prediction],
    *,
    attention: Attention,
    nearest: NearestImages,
    classes: int = FIRST_CLASSES,
) -> None:
    """Write a self-contained page that explains predictions, of the first 200 images.

    Args:
        file: HTML.
        model: that predicted.
        names: paths of the images, (N,).
        predictions: of them, (N,).
        attention: of the model's source; empty without.
        nearest: training images that are like these images.
        classes: of an image, whose probabilities are shown, ≥ 1.

    Raises:
        UserError: no map of the model's network tells places apart.
    """
    layer, shown = layer_of(model), slice(0, MOST_IMAGES)
    found = _entries(model, names[shown], predictions[shown], layer, attention, classes)
    alike = zip(nearest.of_each[shown], nearest.typicality[shown], strict=True)
    entries = [
        dataclasses.replace(entry, nearest=images, typicality=typicality)
        for entry, (images, typicality) in zip(found, alike, strict=True)
    ]
    text = (
        page_templates()
        .get_template(TEMPLATE)
        .render(
            entries=entries,
            left_out=len(names) - len(entries),
            unsure=sum(entry.unsure for entry in entries),
            damaged=sum(entry.error is not None for entry in entries),
            written=datetime.now(UTC).isoformat(timespec="seconds"),
            legend=legend_css(),
            layer=layer,
            image_size=model.preprocessing.image_size,
            networks=int(model.config.get("networks", 1)),
            backbone=model.config["backbone"]["model"],
            is_calibrated="temperature" in model.config,
            several=model.thresholds is not None,
            has_attention=bool(attention),
            nearest_sentence=nearest.note,
        )
    )
    with atomic_write(file) as partial:
        partial.write_text(text, encoding="utf-8", errors="backslashreplace")


def seen_picture(picture: Picture, preprocessing: Preprocessing, side: int = PICTURE_SIZE) -> Image.Image:
    """The part of a picture that the network sees, `side` × `side` pixels."""
    stored = round(side * preprocessing.stored_size / preprocessing.image_size)
    larger = dataclasses.replace(preprocessing, image_size=side, stored_size=stored)
    return crop_stored_square(stored_square(picture, larger), larger)


def _entries(
    model: Model,
    names: Sequence[str | Path],
    predictions: Sequence[Prediction],
    layer: MapLayer,
    attention: Attention,
    classes: int,
) -> Iterator[Entry]:
    each_image = list(zip(names, predictions, strict=True))
    for start in range(0, len(each_image), BATCH_SIZE):
        batch = each_image[start : start + BATCH_SIZE]
        pictures = [_opened(model, name, prediction) for name, prediction in batch]
        readable = [picture for picture in pictures if not isinstance(picture, str)]
        known = [each for picture, (_, each) in zip(pictures, batch, strict=True) if not isinstance(picture, str)]
        explained: Iterator[Explanation] = iter(())
        if readable:
            squares = np.stack([stored_square(picture, model.preprocessing) for picture in readable])
            explained = iter(explain(model, squares, known, layer, attention))
        for picture, (name, prediction) in zip(pictures, batch, strict=True):
            if isinstance(picture, str):
                yield Entry(name=str(name), error=picture)
            else:
                yield _entry(model, str(name), picture, prediction, next(explained), classes)


def _opened(model: Model, name: str | Path, prediction: Prediction) -> Picture | str:
    """An image, or why it cannot be read."""
    if prediction.error is not None:
        return prediction.error
    try:
        return open_picture(name, model.preprocessing.channels, model.preprocessing.white)
    except DamagedImage as error:  # it was there when it was predicted
        return str(error)


def _entry(
    model: Model, name: str, picture: Picture, prediction: Prediction, explanation: Explanation, classes: int
) -> Entry:
    seen = seen_picture(picture, model.preprocessing)
    ranked = sorted(prediction.probabilities.items(), key=lambda item: -item[1])
    there = set(prediction.labels)
    return Entry(
        name=name,
        answer=", ".join(prediction.labels) or "none of the labels",
        unsure=prediction.unsure,
        picture=to_jpeg(seen),
        bars=tuple(
            Bar(label=label, probability=probability, is_there=label in there)
            for label, probability in ranked[: max(classes, len(there))]
        ),
        maps=tuple(
            DrawnMap(label=label, picture=to_jpeg(draw_heat_map(seen, each)), is_empty=not each.any())
            for label, each in explanation.maps.items()
        ),
        layers=tuple(
            DrawnLayer(
                layer=each.layer,
                channels=tuple(zip(each.channels, each.weights, strict=True)),
                picture=stack_tiles([each.maps]),
            )
            for each in explanation.channels
        ),
    )
