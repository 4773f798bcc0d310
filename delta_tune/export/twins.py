"""Networks that torchvision and timm both have: the weights of one are those of the other, under other names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

_SAME_NAME = (
    *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "wide_resnet50_2", "wide_resnet101_2"),
    *("resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d"),
    *("densenet121", "densenet161", "densenet169", "densenet201"),
    *("vgg11", "vgg13", "vgg16", "vgg19", "vgg11_bn", "vgg13_bn", "vgg16_bn", "vgg19_bn"),
    *("convnext_tiny", "convnext_small", "convnext_base", "convnext_large"),
    *("efficientnet_b0", "efficientnet_b1", "efficientnet_b2", "efficientnet_b3", "efficientnet_b4"),
)
_EPSILON = {"bn_eps": 1e-3}
"""torchvision's batch norms of these networks have another epsilon than timm's own."""

TWINS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in _SAME_NAME},
    **{f"efficientnet_b{size}": (f"efficientnet_b{size}", _EPSILON) for size in (5, 6, 7)},
    **{f"efficientnet_v2_{size}": (f"efficientnetv2_{size}", _EPSILON) for size in "sml"},
    "mnasnet0_5": ("mnasnet_050", {}),
    "mnasnet0_75": ("mnasnet_075", {}),
    "mnasnet1_0": ("mnasnet_100", {}),
    "mobilenet_v2": ("mobilenetv2_100", {}),
    "mobilenet_v3_large": ("mobilenetv3_large_100", _EPSILON),
    "mobilenet_v3_small": ("mobilenetv3_small_100", _EPSILON),
}
"""Network of torchvision → the same one in timm, and keywords for timm's constructor. Their tensors have one order."""


def in_timm(name: str) -> tuple[str, dict[str, Any]] | None:
    """timm's twin of a network of torchvision, with keywords for its constructor; None if there is none."""
    return TWINS.get(name)


def in_torchvision(name: str) -> str | None:
    """torchvision's twin of a network of timm, whose name may have a tag; None if there is none.

    Where timm's own default is another epsilon than torchvision's, the outputs tell.
    """
    architecture = name.partition(".")[0]
    return next((twin for twin, (own, _) in TWINS.items() if own == architecture), None)


def copy_weights(state: Mapping[str, Tensor], twin: nn.Module) -> None:
    """Copy a network's tensors into its twin, in their order; Linear and 1×1 Conv2d are each other's.

    Raises:
        ValueError: the two do not have the same numbers of tensors and of values in each.
    """
    own = twin.state_dict()
    if len(own) != len(state) or any(a.numel() != b.numel() for a, b in zip(own.values(), state.values(), strict=True)):
        raise ValueError("its tensors are not those of its twin")
    for there, given in zip(own.values(), state.values(), strict=True):
        there.copy_(given.reshape(there.shape))
