"""oneDNN's fused convolutions, the ones that `torch.compile` uses: private operators of PyTorch, behind one guard."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

Geometry = tuple[tuple[int, int], tuple[int, int], tuple[int, int], int]
"""Padding, stride, dilation and groups."""


@functools.cache
def available() -> bool:
    """Whether this PyTorch has the operators, and they compute what is expected of them; checked once per process."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    x = torch.linspace(-1, 1, 32).view(1, 2, 4, 4).contiguous(memory_format=torch.channels_last)
    weight, bias, geometry = torch.linspace(-1, 1, 36).view(2, 2, 3, 3), torch.tensor([0.1, -0.1]), _SAME_3X3
    plain = F.conv2d(x, weight, bias, padding=1)
    try:
        packed = pack(weight, geometry, x.shape)
        pairs = [
            (convolve(x, packed, bias, geometry), plain),
            (convolve(x, packed, bias, geometry, "hardtanh", (0.0, 1.0)), plain.clamp(0, 1)),
            (convolve_and_add(x, packed, bias, geometry, x, relu=True, overwrite=False), (plain + x).relu()),
            (convolve_and_add(x, packed, bias, geometry, x.clone(), relu=False, overwrite=True), plain + x),
        ]
    except (AttributeError, RuntimeError, TypeError):  # renamed, or with other arguments
        return False
    return all(torch.allclose(fused, expected, rtol=1e-4, atol=1e-5) for fused, expected in pairs)


_SAME_3X3: Geometry = ((1, 1), (1, 1), (1, 1), 1)


def pack(weight: Tensor, geometry: Geometry, shape: torch.Size) -> Tensor:
    """A weight (O, I / groups, kh, kw) laid out for inputs of `shape` (B, I, H, W)."""
    reorder: Callable[..., Tensor] = torch._C._nn.mkldnn_reorder_conv2d_weight
    return reorder(weight.to_mkldnn(), *geometry, list(shape))


def convolve(
    x: Tensor,
    packed: Tensor,
    bias: Tensor | None,
    geometry: Geometry,
    activation: str = "none",
    scalars: tuple[float, ...] = (),
) -> Tensor:
    """activation(conv(x)); the activation and its parameters as oneDNN names them."""
    y: Tensor = torch.ops.mkldnn._convolution_pointwise(x, packed, bias, *geometry, activation, scalars, "")
    return y


def convolve_and_add(
    x: Tensor, packed: Tensor, bias: Tensor | None, geometry: Geometry, addend: Tensor, *, relu: bool, overwrite: bool
) -> Tensor:
    """conv(x) + addend, perhaps through a ReLU; with `overwrite` in the memory of `addend`, which is channels_last."""
    rest: tuple[Any, ...] = (packed, bias, *geometry, "add", None, "relu" if relu else None, [], None)
    y: Tensor
    if overwrite:
        y = torch.ops.mkldnn._convolution_pointwise_.binary(addend, x, *rest)
    else:
        y = torch.ops.mkldnn._convolution_pointwise.binary(x, addend, *rest)
    return y
