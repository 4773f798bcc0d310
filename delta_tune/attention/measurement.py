"""Measure each layer's channel losses with growing rounds of images until its attention weights are reliable.

Half of the images decide when a layer is done; the other half measure the reliability of its weights. Using the same
images would be biased, because rounds end when the weights look good. The weights themselves use all images.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

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
from delta_tune.models.devices import to_device

RELIABLE = 0.8
"""Split-half reliability at which a layer is done."""
FIRST_ROUND = 56
MAX_PROBE_IMAGES = 512
BYTE_BUDGET = 2**30

Losses = Callable[[range, tuple[str, ...]], dict[str, Tensor]]
"""Computes losses per image, {layer: float32 (B, C)}, of the probe images at these positions, or only of the first of
them if its time is over."""


class Prober(Protocol):
    """Computes losses of a job's probe images."""

    cut_short: bool
    """Whether its time was over before it had the losses of all images that it was asked for."""

    def losses(self, positions: range, layers: tuple[str, ...]) -> dict[str, Tensor]:
        """Losses of the images at these positions: {layer: float32 (B, C)}."""

    def first_order(self, positions: range, layers: tuple[str, ...]) -> dict[str, Tensor]:
        """The first-order estimate of the same losses."""


@dataclass(frozen=True, kw_only=True)
class ProbeJob:
    """Everything a process needs to compute losses of probe images. Plain arrays, so Ray shares it without copies."""

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
        """A worker on `device`, with the network built."""
        return ProbeWorker(self, device)


class ProbeWorker:
    """Computes losses of probe images on one device."""

    cut_short = False

    def __init__(self, prober: ProbeJob, device: torch.device) -> None:
        self._prober, self._device = prober, device
        self.model = probe_network(prober.backbone, prober.head, prober.num_classes).to(device)

    @cached_property
    def _ablation(self) -> Ablation:
        example, _ = self._batch(range(min(2, len(self._prober.labels))))
        return Ablation(self.model, example, self._prober.layers, self._prober.backbone.layouts)

    @property
    def notes(self) -> list[str]:
        """Which layers are slow, and why."""
        return self._ablation.notes if self._prober.estimator == "exact" else []

    def losses(self, positions: range, layers: tuple[str, ...]) -> dict[str, Tensor]:
        """Losses of the images at these positions: {layer: float32 (B, C)}."""
        if self._prober.estimator == "exact":
            return self._ablation.losses(*self._batch(positions), layers, BYTE_BUDGET)
        return self.first_order(positions, layers)

    def first_order(self, positions: range, layers: tuple[str, ...]) -> dict[str, Tensor]:
        """The first-order estimate of the same losses."""
        layouts = self._prober.backbone.layouts
        return first_order_losses_per_image(
            self.model, *self._batch(positions), layers, layouts=layouts, batch_size=IMAGES_AT_ONCE
        )

    def _batch(self, positions: range) -> tuple[Tensor, Tensor]:
        where = slice(positions.start, positions.stop)
        pixels, labels = self._prober.pixels[where].copy(), self._prober.labels[where].copy()
        preprocessing: Preprocessing = self._prober.backbone.preprocessing
        return center_crop(to_device(pixels, self._device), preprocessing), to_device(labels, self._device)


def probe_network(backbone: Backbone, head: dict[str, np.ndarray], num_classes: int) -> nn.Module:
    """The source with the probe head, in eval mode."""
    model = build_target(backbone, num_classes, torch.Generator().manual_seed(0)).eval().requires_grad_(False)
    state = {name: torch.from_numpy(np.array(value)) for name, value in head.items()}
    model.get_submodule(backbone.head).load_state_dict(state)
    return model


Runner = Callable[[ProbeJob, torch.device, Callable[[str], None]], AbstractContextManager[Prober]]
"""Decides where losses are computed; takes the job, the device and a function that prints notes."""


@contextmanager
def in_this_process(job: ProbeJob, device: torch.device, say: Callable[[str], None]) -> Iterator[Prober]:
    """A runner that computes in this process."""
    ready = job.on(device)
    for note in ready.notes:
        say(f"          {note}.")
    yield ready


def round_sizes(images: int, most: int = MAX_PROBE_IMAGES) -> list[int]:
    """How many of `images` images, at `most`, have been probed after each round; each adds half as many again."""
    limit, sizes = min(images, most), [FIRST_ROUND]
    while sizes[-1] < limit:
        sizes.append(IMAGES_AT_ONCE * math.ceil(1.5 * sizes[-1] / IMAGES_AT_ONCE))
    return [*sizes[:-1], limit]


def measure_layers(
    images: ProbeImages,
    layers: tuple[str, ...],
    ablate: Losses,
    *,
    seed: int,
    estimator: AttentionEstimator = "exact",
    reliable: float = RELIABLE,
    most: int = MAX_PROBE_IMAGES,
) -> Iterator[dict[str, LayerAttention]]:
    """Probe each layer until its weights reach the wanted reliability, or the images or the time run out.

    Yields the layers that are done, each once. Layers whose time is over come last, as reliable as they are; those
    without any image do not come.

    A layer's result does not depend on which other layers are measured with it, unless the time is over.
    """
    found: dict[str, list[Tensor]] = {layer: [] for layer in layers}
    active, start, sizes = layers, 0, round_sizes(len(images), most)
    for stop in sizes:
        for layer, losses in ablate(range(start, stop), active).items():
            found[layer].append(losses)
        start, done = stop, {}
        so_far = {layer: torch.cat(found[layer]) for layer in active}
        counts = {len(losses) for losses in so_far.values()}
        weights = {count: torch.from_numpy(images.weights(count)) for count in counts if count}
        is_last = stop == sizes[-1] or min(counts) < stop
        for layer, losses in so_far.items():
            if (count := len(losses)) == 0:
                continue
            if is_last or _half_reliability(losses, weights[count], 0, seed) >= reliable:
                done[layer] = LayerAttention(
                    losses=population_mean(losses, weights[count], len(images)).float().numpy(),
                    reliability=_half_reliability(losses, weights[count], 1, seed),
                    images=count,
                    estimator=estimator,
                )
        active = tuple(layer for layer in active if layer not in done)
        if done:
            yield done
        if is_last or not active:
            return


def add_first_order_agreement(
    prober: Prober, images: ProbeImages, measured: Mapping[str, LayerAttention]
) -> dict[str, LayerAttention]:
    """Add Spearman's correlation of the first-order estimate, on a first round of images, with the exact losses.

    It is left out if the time is over.
    """
    if prober.cut_short:
        return dict(measured)
    count = min(FIRST_ROUND, len(images))
    weights = torch.from_numpy(images.weights(count))
    estimates = prober.first_order(range(count), tuple(measured))
    if prober.cut_short:
        return dict(measured)
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
    """Estimate the mean over all `images` from a weighted sample, losses (N, C) and weights (N,): float64 (C,)."""
    return (losses.double() * weights[:, None]).sum(0) / images


def _half_reliability(losses: Tensor, weights: Tensor, half: int, seed: int) -> float:
    """Reliability of the weights of all images, estimated from every second image from `half` on; NaN if too few."""
    part = losses[half::2]
    if len(part) < 4:  # each quarter needs at least two images
        return math.nan
    generator = torch.Generator().manual_seed(seed)
    return split_half_reliability(part, generator, weights=weights[half::2], images=len(losses))
