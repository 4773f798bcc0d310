"""Convolutions as plain data, with what follows them fused in: the arithmetic under the ablation engine.

On CPU in float32 they run through oneDNN's fused kernels, where this PyTorch has them, on weights that were packed
once; elsewhere through `torch.nn.functional`. Activations are `channels_last`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, TypeGuard, cast

import torch
import torch.nn.functional as F
from timm.layers import Conv2dSame  # type: ignore[attr-defined]
from torch import Tensor, nn

from delta_tune.models import onednn


@dataclass(frozen=True, slots=True)
class Activation:
    """An elementwise function: its oneDNN name, and an implementation that may write to its argument."""

    name: str
    scalars: tuple[float, ...]
    in_place: Callable[[Tensor], Tensor]


RELU = Activation("relu", (), torch.relu_)


def activation_of(module: nn.Module) -> Activation | None:
    """The oneDNN activation of `module`; None if oneDNN has none."""
    match module:
        case nn.ReLU():
            return RELU
        case nn.Hardtanh():  # ReLU6 is a subclass of Hardtanh
            low, high = float(module.min_val), float(module.max_val)
            return Activation("hardtanh", (low, high), lambda x: x.clamp_(low, high))
        case nn.SiLU():
            return Activation("swish", (), lambda x: F.silu(x, inplace=True))
        case nn.Hardswish():
            return Activation("hardswish", (), lambda x: F.hardswish(x, inplace=True))
        case nn.Sigmoid():
            return Activation("sigmoid", (), torch.sigmoid_)
        case nn.Hardsigmoid():
            return Activation("hardsigmoid", (), lambda x: F.hardsigmoid(x, inplace=True))
    return None


@dataclass(slots=True, eq=False)
class Affine:
    """A batch norm in eval mode: x · scale + shift, both (C,)."""

    scale: Tensor
    shift: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return torch.addcmul(self.shift[:, None, None], x, self.scale[:, None, None])

    def channels(self, start: int, stop: int) -> Affine:
        return Affine(self.scale[start:stop], self.shift[start:stop])


@dataclass(slots=True, eq=False)
class Conv:
    """A convolution without a module. `padding` "same" is TensorFlow's: minimal, an odd pixel goes to the end."""

    weight: Tensor
    bias: Tensor | None
    stride: tuple[int, int]
    padding: tuple[int, int] | Literal["same"]
    dilation: tuple[int, int]
    groups: int
    _packed: dict[torch.Size, Tensor] = field(default_factory=dict)
    _folded: tuple[Affine, Conv] | None = None

    @property
    def depthwise(self) -> bool:
        return self.groups > 1 and self.weight.shape[:2] == (self.groups, 1)

    @property
    def pointwise(self) -> bool:
        """1×1 without padding, any stride: each output position reads one input position."""
        return self.weight.shape[2:] == (1, 1) and self.padding in ((0, 0), "same")

    def channels(self, start: int, stop: int) -> Conv:
        """A depthwise convolution of only the channels [start, stop)."""
        assert self.depthwise
        bias = None if self.bias is None else self.bias[start:stop]
        return Conv(self.weight[start:stop], bias, self.stride, self.padding, self.dilation, stop - start)

    def folded(self, affine: Affine) -> Conv:
        """This convolution followed by `affine`; cached, so weights are packed only once."""
        if self._folded is None or self._folded[0] is not affine:
            bias = affine.shift if self.bias is None else torch.addcmul(affine.shift, self.bias, affine.scale)
            weight = self.weight * affine.scale[:, None, None, None]
            self._folded = affine, Conv(weight, bias, self.stride, self.padding, self.dilation, self.groups)
        return self._folded[1]

    def pad(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """`x`, padded only if "same" is not symmetric, and the padding that remains for the convolution."""
        if self.padding != "same":
            return x, self.padding
        totals = [
            max((math.ceil(size / stride) - 1) * stride + (kernel - 1) * dilation + 1 - size, 0)
            for size, kernel, stride, dilation in zip(
                x.shape[-2:], self.weight.shape[-2:], self.stride, self.dilation, strict=True
            )
        ]
        if all(total % 2 == 0 for total in totals):
            return x, (totals[0] // 2, totals[1] // 2)
        (top, left), (bottom, right) = ([t // 2 for t in totals], [t - t // 2 for t in totals])
        return F.pad(x, [left, right, top, bottom]), (0, 0)

    def __call__(
        self, x: Tensor, activation: Activation | None = None, addend: Tensor | None = None, overwrite: bool = False
    ) -> Tensor:
        """activation(conv(x) + addend), (B, O, H', W'); reuses the memory of `addend` if allowed."""
        x, padding = self.pad(x)
        if x.device.type == "cpu" and x.dtype == torch.float32 and onednn.available():
            return self._onednn(x, padding, activation, addend, overwrite)
        y = F.conv2d(x, self.weight, self.bias, self.stride, padding, self.dilation, self.groups)
        if addend is not None:
            y += addend
        return y if activation is None else activation.in_place(y)

    def _onednn(
        self,
        x: Tensor,
        padding: tuple[int, int],
        activation: Activation | None,
        addend: Tensor | None,
        overwrite: bool,
    ) -> Tensor:
        geometry = (padding, self.stride, self.dilation, self.groups)
        x = x.contiguous(memory_format=torch.channels_last)
        if (packed := self._packed.get(x.shape[2:])) is None:
            packed = self._packed[x.shape[2:]] = onednn.pack(self.weight, geometry, x.shape)
        if addend is None:
            name, scalars = (activation.name, activation.scalars) if activation else ("none", ())
            return onednn.convolve(x, packed, self.bias, geometry, name, scalars)
        relu = activation is RELU
        overwrite = overwrite and addend.is_contiguous(memory_format=torch.channels_last)
        y = onednn.convolve_and_add(x, packed, self.bias, geometry, addend, relu=relu, overwrite=overwrite)
        return y if relu or activation is None else activation.in_place(y)


def is_plain(module: nn.Module) -> TypeGuard[nn.Conv2d]:
    """Whether a module convolves with its stored weight; timm's standardised convolutions do not."""
    return type(module) in (nn.Conv2d, Conv2dSame)


def conv_of(module: nn.Module) -> Conv | None:
    """The `Conv` of a module, sharing its weights; None if `Conv` cannot express it."""
    if not is_plain(module) or module.padding_mode != "zeros":
        return None
    padding: Any = "same" if isinstance(module, Conv2dSame) else module.padding
    if type(module) is nn.Conv2d and isinstance(padding, str):
        return None  # torch's own "same" is not TensorFlow's
    bias = None if module.bias is None else module.bias.detach()
    stride, dilation = cast(tuple[int, int], module.stride), cast(tuple[int, int], module.dilation)
    return Conv(module.weight.detach(), bias, stride, padding, dilation, module.groups)
