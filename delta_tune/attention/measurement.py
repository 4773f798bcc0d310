"""How much probing is enough: images in growing rounds until each layer's weights repeat themselves, layer by layer.

Half of the images decide when a layer is done, the other half say how reliable its weights are: the same images would
flatter them, because the rounds end when they look good. The weights come from all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from delta_tune.attention.ablation import IMAGES_AT_ONCE, Ablation
from delta_tune.attention.channel_losses import first_order_losses_per_image
from delta_tune.attention.layer_attention import LayerAttention
from delta_tune.attention.probe_sample import ProbeImages
from delta_tune.attention.weights import rank_correlation, split_half_reliability
from delta_tune.config import AttentionEstimator
from delta_tune.data.augmentation import center_crop
from delta_tune.data.images import Preprocessing
from delta_tune.models.backbones import Backbone, build_target

RELIABLE = 0.8
"""Split-half reliability at which a layer is done."""
FIRST_ROUND = 56
MAX_PROBE_IMAGES = 512
BYTE_BUDGET = 2**30

Ablate = Callable[[range, tuple[str, ...]], dict[str, Tensor]]
"""Losses per image, {layer: float32 (B, C)}, of the probe images at these positions."""


@dataclass(frozen=True, kw_only=True)
class ProbeJob:
    """All that a process needs to compute losses of probe images. Plain arrays, so Ray shares it without copies."""

    backbone: Backbone
    head: dict[str, np.ndarray]
    """State of the trained probe head."""
    num_classes: int
    pixels: np.ndarray
    """uint8 (N, stored, stored, 3), in the order of probing."""
    labels: np.ndarray
    layers: tuple[str, ...]
    estimator: AttentionEstimator

    def on(self, device: torch.device) -> ProbeWorker:
        """With its network built."""
        return ProbeWorker(self, device)


class ProbeWorker:
    """A prober on a device."""

    def __init__(self, prober: ProbeJob, device: torch.device) -> None:
        self._prober, self._device = prober, device
        self.model = probe_network(prober.backbone, prober.head, prober.num_classes).to(device)

    @cached_property
    def _ablation(self) -> Ablation:
        return Ablation(self.model, self._batch(range(min(2, len(self._prober.labels))))[0], self._prober.layers)

    @property
    def notes(self) -> list[str]:
        """Of layers that are slow, and why."""
        return self._ablation.notes if self._prober.estimator == "exact" else []

    def losses(self, positions: range, layers: Sequence[str]) -> dict[str, Tensor]:
        """{layer: float32 (B, C)} of the images at these positions."""
        if self._prober.estimator == "exact":
            return self._ablation.losses(*self._batch(positions), layers, BYTE_BUDGET)
        return self.first_order(positions, layers)

    def first_order(self, positions: range, layers: Sequence[str]) -> dict[str, Tensor]:
        """The first-order estimate of the same."""
        return first_order_losses_per_image(self.model, *self._batch(positions), layers, batch_size=IMAGES_AT_ONCE)

    def _batch(self, positions: range) -> tuple[Tensor, Tensor]:
        where = slice(positions.start, positions.stop)
        pixels, labels = self._prober.pixels[where].copy(), self._prober.labels[where].copy()
        preprocessing: Preprocessing = self._prober.backbone.preprocessing
        images = center_crop(torch.from_numpy(pixels).to(self._device), preprocessing)
        return images, torch.from_numpy(labels).to(self._device)


def probe_network(backbone: Backbone, head: dict[str, np.ndarray], num_classes: int) -> nn.Module:
    """The source with this head, in eval mode."""
    model = build_target(backbone, num_classes, torch.Generator().manual_seed(0)).eval().requires_grad_(False)
    state = {name: torch.from_numpy(np.array(value)) for name, value in head.items()}
    model.get_submodule(backbone.head).load_state_dict(state)
    return model


Runner = Callable[[ProbeJob, torch.device, Callable[[str], None]], AbstractContextManager[Ablate]]
"""Where the losses are computed; it is told the device, and whom to tell of slow layers."""


@contextmanager
def in_this_process(prober: ProbeJob, device: torch.device, say: Callable[[str], None]) -> Iterator[Ablate]:
    """The runner that needs nothing but this process."""
    ready = prober.on(device)
    for note in ready.notes:
        say(f"          {note}.")
    yield ready.losses


def round_sizes(images: int) -> list[int]:
    """How many of `images` images have been probed after each round: half as many again each time."""
    limit, sizes = min(images, MAX_PROBE_IMAGES), [FIRST_ROUND]
    while sizes[-1] < limit:
        sizes.append(IMAGES_AT_ONCE * math.ceil(1.5 * sizes[-1] / IMAGES_AT_ONCE))
    return [*sizes[:-1], limit]


def measure_layers(
    images: ProbeImages,
    layers: tuple[str, ...],
    ablate: Ablate,
    *,
    seed: int,
    estimator: AttentionEstimator = "exact",
    reliable: float = RELIABLE,
) -> dict[str, LayerAttention]:
    """Probe each layer until the weights of one half of the images are as reliable as asked, or the images run out.

    The result of a layer depends on that layer alone, whatever others are measured with it.
    """
    found: dict[str, list[Tensor]] = {layer: [] for layer in layers}
    active, start = layers, 0
    for stop in round_sizes(len(images)):
        for layer, losses in ablate(range(start, stop), active).items():
            found[layer].append(losses)
        start, weights = stop, torch.from_numpy(images.weights(stop))
        active = tuple(
            layer for layer in active if not _half_reliability(torch.cat(found[layer]), weights, 0, seed) >= reliable
        )
        if not active:
            break
    measured = {}
    for layer in layers:
        losses = torch.cat(found[layer])
        weights = torch.from_numpy(images.weights(len(losses)))
        measured[layer] = LayerAttention(
            losses=population_mean(losses, weights, len(images)).float().numpy(),
            reliability=_half_reliability(losses, weights, 1, seed),
            images=len(losses),
            estimator=estimator,
        )
    return measured


def add_first_order_agreement(
    ready: ProbeWorker, images: ProbeImages, measured: Mapping[str, LayerAttention]
) -> dict[str, LayerAttention]:
    """With Spearman's correlation of the first-order estimate, on a first round of images, with the exact losses."""
    count = min(FIRST_ROUND, len(images))
    weights = torch.from_numpy(images.weights(count))
    estimates = ready.first_order(range(count), tuple(measured))
    return {
        layer: replace(
            each,
            first_order_agreement=rank_correlation(
                population_mean(estimates[layer], weights, len(images)), torch.from_numpy(each.losses)
            ),
        )
        for layer, each in measured.items()
    }


def population_mean(losses: Tensor, weights: Tensor, images: int) -> Tensor:
    """The mean over all `images` from a sample (N, C) with weights (N,), float64 in the order of the sample: (C,)."""
    return (losses.double() * weights[:, None]).sum(0) / images


def _half_reliability(losses: Tensor, weights: Tensor, half: int, seed: int) -> float:
    """Reliability of the weights of all images as every second image, from `half` on, tells it; NaN of too few."""
    part = losses[half::2]
    if len(part) < 4:  # each quarter needs two images for its weights to mean anything
        return math.nan
    generator = torch.Generator().manual_seed(seed)
    return split_half_reliability(part, generator, weights=weights[half::2], images=len(losses))
