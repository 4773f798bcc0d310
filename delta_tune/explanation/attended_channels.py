"""What the channels that DELTA's attention weighs most see in an image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from delta_tune.attention.layer_attention import read_attention_weights
from delta_tune.filesystem.uris import is_uri
from delta_tune.inference.ensemble import members_of
from delta_tune.models.feature_maps import feature_maps
from delta_tune.models.hooked_layers import find_layouts
from delta_tune.results.layout import ATTENTION_FILE, CONFIG_FILE

CHANNELS = 4
"""Of each layer, those with the largest weights."""
Attention = Mapping[str, npt.NDArray[np.float32]]
"""Layer → weights (C,), sum 1."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class AttendedChannels:
    """The channels of one layer with the largest attention, and their maps of one image."""

    layer: str
    channels: tuple[int, ...]
    """The largest weight first."""
    weights: tuple[float, ...]
    """Weights of these channels times the number of channels: 1 is an equal share."""
    maps: npt.NDArray[np.float32]
    """(n, H, W)"""


def attention_beside(folder: str | Path, backbone: str | None = None) -> Attention:
    """The attention that the study of a model has measured; empty if it is not beside the model on this machine.

    Args:
        folder: of the study, or its `best`.
        backbone: label of the model's network; None in a study of one.

    Raises:
        UserError: the file is damaged.
    """
    if is_uri(folder):
        return {}
    is_best = (Path(folder) / CONFIG_FILE).exists()
    return read_attention_weights((Path(folder).parent if is_best else Path(folder)) / ATTENTION_FILE, backbone)


def attended_channels(network: nn.Module, attention: Attention, images: Tensor) -> list[tuple[AttendedChannels, ...]]:
    """What the most attended channels see in each image; of several networks, the first.

    Of a layer of tokens, what its channels are at those of the image; class tokens have no place in it.

    Args:
        network: what `combine` returns.
        attention: of its source; a layer that the network lacks, or that has other channels, is left out.
        images: normalised, (N, C, S, S), on the network's device.

    Returns:
        Of each image, the layers in execution order.
    """
    member = members_of(network)[0]
    layouts = find_layouts(member, attention, images.shape[3], images.shape[1]) if len(images) else {}
    if not layouts:
        return [() for _ in images]
    with torch.inference_mode(), feature_maps(member, list(layouts), stop=True) as reader:
        outputs = dict(reader.run(images))
    squares = {layer: layouts[layer].squares(output) for layer, output in outputs.items()}
    found = {layer: maps.float().cpu().numpy() for layer, maps in squares.items() if maps is not None}
    chosen = {
        layer: np.argsort(-attention[layer], kind="stable")[:CHANNELS]
        for layer, maps in found.items()
        if maps.shape[1] == len(attention[layer])
    }
    return [
        tuple(
            AttendedChannels(
                layer=layer,
                channels=tuple(channels.tolist()),
                weights=tuple((attention[layer][channels] * len(attention[layer])).tolist()),
                maps=found[layer][position][channels],
            )
            for layer, channels in chosen.items()
        )
        for position in range(len(images))
    ]
