"""Stochastic depth (arXiv 1603.09382): in training, an image skips a residual branch now and then."""

from __future__ import annotations

from torch import nn

from delta_tune.config import UserError


def set_drop_path(network: nn.Module, largest: float, model: str) -> None:
    """Set how probable it is that an image skips a branch; the probabilities keep their proportions.

    Args:
        network: built with its library's modules for it: `StochasticDepth` of torchvision, `DropPath` of timm.
        largest: the largest probability, in [0, 1); 0 switches them off.
        model: the network's name, for the message.

    Raises:
        UserError: the network has no such modules, and `largest` is not 0.
    """
    from timm.layers import DropPath  # type: ignore[attr-defined]
    from torchvision.ops import StochasticDepth

    names = {DropPath: "drop_prob", StochasticDepth: "p"}
    branches = [(part, names[type(part)]) for part in network.modules() if type(part) in names]
    own = max((getattr(part, name) for part, name in branches), default=0.0)
    if own == 0 < largest:
        raise UserError(
            f"drop_path is {largest:g}, but {model} has no residual branches that its library can drop; leave "
            "drop_path out, or name a network that has them, such as timm:resnet50."
        )
    for part, name in branches if own else ():
        setattr(part, name, getattr(part, name) / own * largest)
