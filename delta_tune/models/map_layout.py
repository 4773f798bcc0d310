"""Where the channels of a layer's output are."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class MapLayout:
    """Where the channels of a layer's output are, and how many of its tokens are no positions of the image."""

    channels_last: bool
    prefix_tokens: int

    def switch_off(self, output: Tensor, channel: int) -> Tensor:
        """A copy of the layer's output with this channel 0 everywhere."""
        output = output.clone()
        output.select(-1 if self.channels_last else 1, channel).zero_()
        return output

    def sum_positions(self, tensor: Tensor) -> Tensor:
        """The sum over positions and prefix tokens: (B, C)."""
        if self.channels_last:
            return tensor.flatten(1, -2).sum(1) if tensor.dim() > 2 else tensor
        return tensor.flatten(2).sum(2) if tensor.dim() > 2 else tensor
