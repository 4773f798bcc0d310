"""How a layer's output is laid out: where its channels, its positions and its prefix tokens are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

PREFIX = "prefix"
"""Behind a layer's name, the part of its output that has no position in the image."""


@dataclass(frozen=True, slots=True)
class MapLayout:
    """The layout of a layer's output: (B, C, H, W); (B, H, W, C); or (B, T, C), perhaps with tokens before the image's.

    Channels are the embedding dimension, positions the tokens of the image. The tokens before them (class,
    distillation, registers) stand for no place in it and are much larger or smaller than those of the image, so they
    are compared apart.
    """

    channels_last: bool = False
    """Whether the channels are the last dimension, not the second."""
    prefix_tokens: int = 0
    """Tokens before those of the image in (B, T, C)."""
    in_order: bool = True
    """Whether the positions come row by row; those of (B, windows, positions of a window, C) do not."""

    @property
    def channel_dim(self) -> int:
        """The dimension of the channels."""
        return -1 if self.channels_last else 1

    def part_names(self, layer: str) -> tuple[str, ...]:
        """Names of the layer's parts, in the order of `parts`: the positions have the layer's own."""
        return (layer, f"{layer}:{PREFIX}") if self.prefix_tokens else (layer,)

    def parts(self, output: Tensor) -> list[Tensor]:
        """The positions as a map (B, C, H, W), of tokens H = T and W = 1; then the prefix tokens, if there are any.

        All are views. Those of channels-last outputs are contiguous in torch's `channels_last` format, unless prefix
        tokens lie between the images.
        """
        if not self.channels_last:
            return [output]
        if output.ndim == 4:
            return [output.permute(0, 3, 1, 2)]
        tokens = output.transpose(1, 2).unsqueeze(3)
        first = self.prefix_tokens
        return [tokens[:, :, first:], tokens[:, :, :first]] if first else [tokens]

    def squares(self, output: Tensor) -> Tensor | None:
        """The positions as squares (B, C, S, S) in the image's order; None if they are none."""
        if not self.in_order:
            return None
        positions = self.parts(output)[0]
        if self.channels_last and output.ndim == 3:
            side = math.isqrt(positions.shape[2])
            return positions.reshape(*positions.shape[:2], side, side) if side * side == positions.shape[2] else None
        return positions if positions.shape[2] == positions.shape[3] else None

    def switch_off(self, output: Tensor, channel: int) -> Tensor:
        """A copy whose channel `channel` is 0 at all positions and prefix tokens."""
        copy = output.clone()
        copy.select(self.channel_dim, channel).zero_()
        return copy

    def sum_positions(self, tensor: Tensor) -> Tensor:
        """The sum over positions and prefix tokens of a tensor that has the output's shape: (B, C)."""
        if self.channels_last:
            return tensor.flatten(1, -2).sum(1)
        return tensor.flatten(2).sum(2)

    def channels_of(self, output: Tensor) -> int:
        """The number of channels C."""
        return output.shape[self.channel_dim]


CHANNELS_FIRST = MapLayout()
"""(B, C, H, W), as convolutions return it."""


def named_parts(outputs: Mapping[str, Tensor], layouts: Mapping[str, MapLayout]) -> dict[str, Tensor]:
    """Part name → map (B, C, H, W) of layers' outputs; a layer without a layout returns (B, C, H, W)."""
    parts: dict[str, Tensor] = {}
    for layer, output in outputs.items():
        layout = layouts.get(layer, CHANNELS_FIRST)
        parts.update(zip(layout.part_names(layer), layout.parts(output), strict=True))
    return parts


def describe_layers(
    layers: Sequence[str], channels: Mapping[str, int], layouts: Mapping[str, MapLayout]
) -> tuple[str, str]:
    """Layers with their channels, and a sentence on what these are; it is empty if all return (B, C, H, W)."""
    named = ", ".join(f"{name} ({channels[name]})" for name in layers)
    tokens = [layout.prefix_tokens for name in layers if (layout := layouts.get(name, CHANNELS_FIRST)).channels_last]
    if not tokens:
        return named, ""
    most = max(tokens)
    apart = {0: "", 1: "; the class token is compared apart"}.get(most, f"; {most} further tokens are compared apart")
    return named, f"They hold a vector for each place of the image, whose entries are the channels{apart}."
