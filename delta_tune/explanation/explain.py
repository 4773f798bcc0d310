"""Why a model predicts what it does of some images: heat maps of the classes that matter, and attention's channels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from delta_tune.data.augmentation import center_crop
from delta_tune.data.device_copies import to_device
from delta_tune.data.fitting import Pixels
from delta_tune.explanation.attended_channels import AttendedChannels, Attention, attended_channels
from delta_tune.explanation.heat_maps import HeatMap, heat_maps
from delta_tune.inference.ensemble import members_of
from delta_tune.inference.model import Model, Prediction
from delta_tune.models.hooked_layers import MapLayer, heat_map_layer

MOST_LABELS = 4
"""Labels of an image that get a heat map."""
RIVAL = 0.5
"""From this share of the first class's probability on, the second class gets a heat map too."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Explanation:
    """Why one image is predicted as it is."""

    maps: Mapping[str, HeatMap]
    """Label → where the networks find evidence for it; what `labels_to_explain` returns."""
    channels: tuple[AttendedChannels, ...]
    """Of each layer; empty without attention."""


def labels_to_explain(prediction: Prediction, *, several: bool = False) -> tuple[str, ...]:
    """The labels whose heat maps explain a prediction.

    Of one label an image they are the first class, and the second one if the prediction is unsure or the second class
    has at least half the first one's probability. Of several labels an image they are those that are there, at most 4,
    or the most probable one.

    Args:
        prediction: of an image that can be read.
        several: whether an image may have several labels.
    """
    assert prediction.label is not None
    if several:
        return prediction.labels[:MOST_LABELS] or (prediction.label,)
    (first, high), *others = sorted(prediction.probabilities.items(), key=lambda item: -item[1])[:2]
    if others and (prediction.unsure or others[0][1] >= RIVAL * high):
        return (first, others[0][0])
    return (first,)


def layer_of(model: Model) -> MapLayer:
    """The layer of each of the model's networks at which heat maps are made.

    Raises:
        UserError: no map of the network tells places apart.
    """
    sizes = model.preprocessing
    head = str(model.config["backbone"]["head"])
    return heat_map_layer(members_of(model.network)[0], head, sizes.image_size, sizes.channels)


def explain(
    model: Model, squares: Pixels, predictions: Sequence[Prediction], layer: MapLayer, attention: Attention
) -> list[Explanation]:
    """Explain predictions.

    Args:
        model: that predicted.
        squares: what is kept of the images, uint8 (N, R, R, C), as `stored_square` returns it.
        predictions: of these images, (N,).
        layer: what `layer_of` returns.
        attention: of the model's source; empty without.
    """
    device = next(model.network.parameters()).device
    images = center_crop(to_device(squares, device), model.preprocessing)
    several = model.thresholds is not None
    wanted = [
        (position, label)
        for position, prediction in enumerate(predictions)
        for label in labels_to_explain(prediction, several=several)
    ]
    number = {label: index for index, label in enumerate(model.classes)}
    positions = torch.tensor([position for position, _ in wanted], device=device)
    maps = heat_maps(model.network, layer, images[positions], [number[label] for _, label in wanted], model.kind)
    of_image: list[dict[str, np.ndarray]] = [{} for _ in predictions]
    for (position, label), found in zip(wanted, maps, strict=True):
        of_image[position][label] = found
    channels = attended_channels(model.network, attention, images)
    return [Explanation(maps=each, channels=seen) for each, seen in zip(of_image, channels, strict=True)]
