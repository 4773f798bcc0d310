"""What a batch of stored pixels becomes before a step of training."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from delta_tune.config import ImageSettings
from delta_tune.data.augmentation import augment
from delta_tune.data.erasing import erase
from delta_tune.data.images import Preprocessing

_STRIDE = 32
"""Of the last feature map of nearly all networks: sizes with the same remainder have the same borders there."""


def training_images(
    pixels: Tensor, settings: ImageSettings, preprocessing: Preprocessing, generator: torch.Generator
) -> Tensor:
    """Augment, normalise, erase and resize training images.

    Args:
        pixels: uint8 (B, R, R, C), R ≥ `preprocessing.image_size` = S.
        settings: what to do.
        preprocessing: input size, mean and std.
        generator: on the CPU.

    Returns:
        float32 (B, C, s, s), channels last in memory, with s = `training_side(S, settings.relative_size)`.
    """
    images = augment(pixels, settings.augmentation, preprocessing, generator)
    if settings.random_erasing:
        images = erase(images, settings.random_erasing, generator)
    side = training_side(preprocessing.image_size, settings.relative_size)
    if side == preprocessing.image_size:
        return images
    return functional.interpolate(images, size=(side, side), mode="bilinear", antialias=True)


def training_side(size: int, relative_size: float) -> int:
    """The side nearest to `relative_size` · `size`, of those from 32 to `size` that leave its remainder modulo 32."""
    sides: list[int] = [size, *range(size - _STRIDE, _STRIDE - 1, -_STRIDE)]
    distances = [abs(side - relative_size * size) for side in sides]
    return sides[distances.index(min(distances))]
