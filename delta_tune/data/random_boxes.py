"""Random boxes in square images, as torchvision draws them for RandomResizedCrop and RandomErasing."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_ATTEMPTS = 10
DRAWS = 2 + 2 * _ATTEMPTS
"""Uniform numbers per box: top, left; then area and ratio for each attempt."""


def random_boxes(
    draws: Tensor, size: int, *, area: tuple[float, float], ratio: tuple[float, float], largest: int, otherwise: int
) -> Tensor:
    """Boxes (B, 4: top, left, height, width) in whole pixels, from uniform numbers (B, `DRAWS`).

    Args:
        draws: uniform in [0, 1), on the CPU.
        size: side of the images.
        area: range of the box's area, as a fraction of the image's.
        ratio: range of width / height, whose logarithm is uniform.
        largest: side in pixels that a box may have; the first attempt with two such sides is taken,
        otherwise: or, if none has, a square of this side.
    """
    position, attempts = draws[:, :2], draws[:, 2:].double().view(len(draws), _ATTEMPTS, 2)
    areas = size**2 * (area[0] + (area[1] - area[0]) * attempts[:, :, 0])
    low, high = math.log(ratio[0]), math.log(ratio[1])
    ratios = torch.exp(low + (high - low) * attempts[:, :, 1])
    sides = torch.stack([torch.sqrt(areas / ratios), torch.sqrt(areas * ratios)], dim=2).round()
    fits = (sides <= largest).all(dim=2) & (sides > 0).all(dim=2)
    first = fits.long().argmax(dim=1)
    sides = sides[torch.arange(len(draws)), first]
    sides = torch.where(fits.any(dim=1)[:, None], sides, float(otherwise)).long()
    return torch.cat([(position * (size - sides + 1)).long(), sides], dim=1)
