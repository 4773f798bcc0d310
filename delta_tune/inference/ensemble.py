"""Several networks, or a network on an image and its mirror image, as one network: probabilities are averaged."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Ensemble(nn.Module):
    """The log of the members' mean probabilities, whose softmax are these means; images (N, 3, S, S) to (N, K)."""

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, images: Tensor) -> Tensor:
        return _log_mean([member(images) for member in self.members])


class Flipped(nn.Module):
    """The log of a network's mean probabilities for the image and its mirror image; images (N, 3, S, S) to (N, K)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return _log_mean([self.network(images), self.network(images.flip(3))])


def _log_mean(logits: Sequence[Tensor]) -> Tensor:
    """log(mean(softmax)) of several logits (N, K)."""
    return torch.stack([each.log_softmax(1) for each in logits]).logsumexp(0) - math.log(len(logits))


def combine(networks: Sequence[nn.Module], *, flip: bool = False) -> nn.Module:
    """One network of several; a single one stays as it is.

    Args:
        networks: with the same inputs and outputs.
        flip: whether it averages the image and its mirror image.
    """
    network = networks[0] if len(networks) == 1 else Ensemble(networks)
    return Flipped(network) if flip else network


def members_of(network: nn.Module) -> list[nn.Module]:
    """The networks that `combine` made this one of."""
    inner = network.network if isinstance(network, Flipped) else network
    return list(inner.members) if isinstance(inner, Ensemble) else [inner]
