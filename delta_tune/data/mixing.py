"""Mixup (arXiv 1710.09412) and CutMix (arXiv 1905.04899): each image is mixed with its neighbour in the batch."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from delta_tune.config import ImageSettings
from delta_tune.labels.kinds import kind_of


def mix(
    images: Tensor, labels: Tensor, num_classes: int, settings: ImageSettings, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Mix images and their labels, with one share of the own image, from Beta(a, a), for the whole batch.

    Args:
        images: float (B, C, S, S).
        labels: int64 (B,), or float32 (B, K) of several labels an image; on the device of the images.
        num_classes: K.
        settings: `mixup` and `cutmix` are their a, 0 for none; if both are above 0, each has half of the batches.
        generator: on the CPU; not used if both are 0.

    Returns:
        Images, and probabilities of the classes, float32 (B, K); what was given, if both are 0.
    """
    if not settings.mixes:
        return images, labels
    which, quantile, top, left = torch.rand(4, dtype=torch.float64, generator=generator).tolist()
    if settings.mixup and not (settings.cutmix and which < 0.5):
        share = beta_quantile(settings.mixup, quantile)
        images = torch.lerp(images.roll(1, 0), images, share)
    else:
        images, share = _cut(images, beta_quantile(settings.cutmix, quantile), top, left)
    classes = kind_of(labels).shares(labels, num_classes)
    return images, torch.lerp(classes.roll(1, 0), classes, share)


def beta_quantile(a: float, quantile: float) -> float:
    """The quantile ∈ [0, 1] of the distribution Beta(a, a)."""
    from scipy import special  # takes a second, which a study's start need not wait for

    return float(special.betaincinv(a, a, quantile))


def _cut(images: Tensor, share: float, top: float, left: float) -> tuple[Tensor, float]:
    """Paste a square of the neighbour; the images, and the share of the own pixels that are left.

    The square covers 1 − `share` of an image, less what is outside: its centre is anywhere, at (top, left) ∈ [0, 1)²,
    as torchvision has it.
    """
    size = images.shape[-1]
    half = int(math.sqrt(1 - share) / 2 * size)
    row, column = int(top * size), int(left * size)
    rows = slice(max(row - half, 0), min(row + half, size))
    columns = slice(max(column - half, 0), min(column + half, size))
    pasted = images.clone()
    pasted[:, :, rows, columns] = images.roll(1, 0)[:, :, rows, columns]
    return pasted, 1 - (rows.stop - rows.start) * (columns.stop - columns.start) / size**2
