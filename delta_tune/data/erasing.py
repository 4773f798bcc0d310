"""Random erasing (arXiv 1708.04896) for a whole batch at once, on its device."""

from __future__ import annotations

import torch
from torch import Tensor

from delta_tune.data.device_copies import to_device
from delta_tune.data.random_boxes import DRAWS, random_boxes

_AREA = (0.02, 0.33)
_RATIO = (1 / 3.3, 1 / 0.3)


def erase(images: Tensor, probability: float, generator: torch.Generator) -> Tensor:
    """Set a rectangle of some images to 0, which is the mean of normalised images.

    Args:
        images: float (B, C, S, S).
        probability: with which an image has a rectangle erased.
        generator: on the CPU.

    Returns:
        float (B, C, S, S).
    """
    num_images, _, size, _ = images.shape
    draws = torch.rand(num_images, 1 + DRAWS, generator=generator)
    boxes = erased_boxes(draws[:, 1:], size) * (draws[:, :1] < probability)
    places = torch.arange(size)
    starts, ends = boxes[:, :2, None], boxes[:, :2, None] + boxes[:, 2:, None]
    rows, columns = to_device((places >= starts) & (places < ends), images.device).unbind(1)
    return images * ~(rows[:, :, None] & columns[:, None, :])[:, None]


def erased_boxes(draws: Tensor, size: int) -> Tensor:
    """Boxes (B, 4: top, left, height, width) from uniform numbers, as torchvision's RandomErasing draws them.

    They are smaller than the image in both directions, or empty if no attempt is.
    """
    return random_boxes(draws, size, area=_AREA, ratio=_RATIO, largest=size - 1, otherwise=0)
