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

_PATCHES = {
    **{"vit_b_16": "vit_base_patch16_224", "vit_b_32": "vit_base_patch32_224", "vit_h_14": "vit_huge_patch14_224"},
    **{"vit_l_16": "vit_large_patch16_224", "vit_l_32": "vit_large_patch32_224"},
}
_WINDOWS = {
    **{"swin_t": "swin_tiny_patch4_window7_224", "swin_s": "swin_small_patch4_window7_224"},
    "swin_b": "swin_base_patch4_window7_224",
}
"""Of images so large that the last stage has a whole window."""

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
    **{name: (twin, {}) for name, twin in (_PATCHES | _WINDOWS).items()},
}
"""Network of torchvision → the same one in timm, and keywords for timm's constructor. Their tensors of a size have one
order."""
_COMPUTED = ".relative_position_index"
"""Ends the name of a tensor that follows from the architecture, which one of the libraries keeps with the weights."""


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
    """Copy a network's tensors into its twin, those of as many values in their order.

    Linear and 1×1 Conv2d are each other's; position embeddings stand before the first convolution, or after it.

    Raises:
        ValueError: the two do not have the same numbers of tensors and of values in each.
    """
    own, given = _by_size(twin.state_dict()), _by_size(state)
    if {size: len(tensors) for size, tensors in own.items()} != {size: len(each) for size, each in given.items()}:
        raise ValueError("its tensors are not those of its twin")
    for size, tensors in own.items():
        for there, value in zip(tensors, given[size], strict=True):
            there.copy_(value.reshape(there.shape))


def _by_size(state: Mapping[str, Tensor]) -> dict[int, list[Tensor]]:
    found: dict[int, list[Tensor]] = {}
    for name, value in state.items():
        if not name.endswith(_COMPUTED):
            found.setdefault(value.numel(), []).append(value)
    return found
