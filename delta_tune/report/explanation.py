"""The page of `predict --explain`: each image, where the model looks in it, how sure it is, and what it has seen."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from PIL import Image

from delta_tune.explanation.attended_channels import Attention
from delta_tune.explanation.examined_images import ExaminedImages
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
    examined: ExaminedImages,
    *,
    attention: Attention,
    nearest: NearestImages,
    classes: int = FIRST_CLASSES,
) -> None:
    """Write a self-contained page that explains the predictions of as many images as `examined.shown` has.

    Args:
        file: HTML.
        model: that predicted.
        names: paths of the images, (N,).
        examined: these images.
        attention: of the model's source; empty without.
        nearest: training images that are like these images.
        classes: of an image, whose probabilities are shown, ≥ 1.

    Raises:
        UserError: no map of the model's network tells places apart.
    """
    layer, shown = layer_of(model), slice(0, len(examined.shown))
    found = _entries(model, names[shown], examined, layer, attention, classes)
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


def _entries(
    model: Model,
    names: Sequence[str | Path],
    examined: ExaminedImages,
    layer: MapLayer,
    attention: Attention,
    classes: int,
) -> Iterator[Entry]:
    each_image = list(zip(names, examined.predictions[: len(names)], examined.shown, strict=True))
    for start in range(0, len(each_image), BATCH_SIZE):
        batch = each_image[start : start + BATCH_SIZE]
        readable = [(prediction, shown.square) for _, prediction, shown in batch if shown is not None]
        explained: Iterator[Explanation] = iter(())
        if readable:
            predictions, squares = zip(*readable, strict=True)
            explained = iter(explain(model, np.stack(squares), predictions, layer, attention))
        for name, prediction, shown in batch:
            if shown is None:
                yield Entry(name=str(name), error=prediction.error)
            else:
                yield _entry(str(name), shown.picture, prediction, next(explained), classes)


def _entry(name: str, seen: Image.Image, prediction: Prediction, explanation: Explanation, classes: int) -> Entry:
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
