"""Pillow's antialiased resampling as matrix products, for images whose size is known only when the graph runs.

Pillow computes an output pixel from the input pixels within the filter's support, which grows with the reduction, by
weights of 22 binary places whose sum is 1, along one side and then along the other, and rounds to whole numbers after
each (`src/libImaging/Resample.c`). Here an axis is cut into blocks of outputs. A block sees a window of the input
alone, so that its product costs as much as its window is wide, not the image. Each weight is a sum of a coarse and a
fine part, few enough bits each that float32 adds up without rounding: the pixels are Pillow's own on any processor.

All functions run as Python, under `torch.export`, and as TorchScript.
"""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 32
"""Outputs of a block, about."""
SUPPORT = {"bilinear": 1, "bicubic": 2}
"""Input pixels to each side that an output sees where nothing is reduced."""


def blocks_of(size: int) -> tuple[int, int]:
    """Number of blocks for `size` outputs, and outputs of each: together at least `size`."""
    count = -(-size // BLOCK)
    return count, -(-size // count)


def triangle(distance: Tensor) -> Tensor:
    """The bilinear filter, of distances ≥ 0."""
    return torch.clamp(1 - distance, min=0)


def cubic(distance: Tensor) -> Tensor:
    """The cubic convolution filter with a = -0.5 (Keys 1981, doi:10.1109/TASSP.1981.1163711), of distances ≥ 0."""
    near = (1.5 * distance - 2.5) * distance * distance + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    return torch.where(distance < 1, near, torch.where(distance < 2, far, torch.zeros_like(distance)))


def windows(side: Tensor, blocks: tuple[int, int], support: int) -> tuple[Tensor, Tensor]:
    """Where the blocks of an axis look, and how they weigh what they see.

    Args:
        side: float64 (5,): pixels of the side; where the part of it begins that is resized, and where it ends; to how
            many outputs; which of these is the first one wanted, below 0 if there is none yet.
        blocks: number, and outputs of each.
        support: of the filter, 1 (triangle) or 2 (cubic).

    Returns:
        Numbers of the pixels, int64 (blocks, length), and weights, float32 (blocks, 2 × outputs, length): first the
        coarse parts for each output, then the fine ones.
    """
    count, outputs = blocks
    start, end = side[1].to(torch.float32), side[2].to(torch.float32)  # as Pillow keeps its boxes
    scale = (end - start).to(torch.float64) / side[3]
    reduction = torch.clamp(scale, min=1)
    numbers = torch.arange(count * outputs, dtype=torch.float64, device=side.device).view(count, outputs)
    centres = start.to(torch.float64) + (side[4] + numbers + 0.5) * scale
    length = as_size(torch.ceil((outputs - 1) * scale + 2 * support * reduction) + 1)
    begins = torch.clamp(torch.floor(centres[:, :1] - support * reduction + 0.5), min=0)
    pixels = begins + torch.arange(length, dtype=torch.float64, device=side.device)
    distances = torch.abs(pixels[:, None] + 0.5 - centres[:, :, None]) / reduction
    weights = triangle(distances) if support == 1 else cubic(distances)
    weights = torch.where(pixels[:, None] < side[0], weights, torch.zeros_like(weights))
    totals = weights.sum(2, keepdim=True)
    weights = weights / torch.where(totals == 0, torch.ones_like(totals), totals)
    whole = torch.floor(weights * 4194304 + 0.5)
    # 14 of the 22 places: sums of 255 times these stay below 2**24 units, as those of 512 times the others do
    coarse = torch.floor(whole / 256 + 0.5) * 256
    parts = torch.cat([coarse, whole - coarse], dim=1) / 4194304
    return torch.clamp(pixels, max=side[0] - 1).to(torch.int64), parts.to(torch.float32)


def rounded_sum(products: Tensor, outputs: int) -> Tensor:
    """Products with the coarse and the fine weights (…, 2 × outputs, M) as pixels of whole numbers (…, outputs, M)."""
    raised = products[..., :outputs, :] + 0.5
    whole = torch.floor(raised)
    # Added at once, float32 would round what is just below a whole number
    rest = torch.floor((raised - whole) + products[..., outputs:, :])
    return torch.clamp(whole + rest, min=0, max=255)


def as_size(value: Tensor) -> int:
    """A whole number ≥ 1, a scalar, as the size of what is computed."""
    size = value.to(torch.int64).item()
    if torch.jit.is_scripting():  # type: ignore[attr-defined]
        return int(size)
    torch._check(size >= 1)
    # In a graph it is a symbol, which `int` would make a constant
    return size  # type: ignore[return-value]
