"""Several networks, or a network on an image and its mirror image, as one network: probabilities are averaged."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from delta_tune.labels.kinds import LabelKind
from delta_tune.labels.one_label import ONE_LABEL


class Ensemble(nn.Module):
    """Logits whose probabilities are the means of the members'; images (N, 3, S, S) to (N, K)."""

    def __init__(self, members: Sequence[nn.Module], kind: LabelKind = ONE_LABEL) -> None:
        super().__init__()
        self.members, self._kind = nn.ModuleList(members), kind

    def forward(self, images: Tensor) -> Tensor:
        return self._kind.log_mean([member(images) for member in self.members])


class Flipped(nn.Module):
    """Logits whose probabilities are the means of those of an image and its mirror image; (N, 3, S, S) to (N, K)."""

    def __init__(self, network: nn.Module, kind: LabelKind = ONE_LABEL) -> None:
        super().__init__()
        self.network, self._kind = network, kind

    def forward(self, images: Tensor) -> Tensor:
        return self._kind.log_mean([self.network(images), self.network(images.flip(3))])


def combine(networks: Sequence[nn.Module], kind: LabelKind = ONE_LABEL, *, flip: bool = False) -> nn.Module:
    """One network of several; a single one stays as it is.

    Args:
        networks: with the same inputs and outputs.
        kind: of the labels that they predict.
        flip: whether it averages the image and its mirror image.
    """
    network = networks[0] if len(networks) == 1 else Ensemble(networks, kind)
    return Flipped(network, kind) if flip else network


def members_of(network: nn.Module) -> list[nn.Module]:
    """The networks that `combine` made this one of."""
    inner = network.network if isinstance(network, Flipped) else network
    return list(inner.members) if isinstance(inner, Ensemble) else [inner]
