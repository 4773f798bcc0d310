"""How a network normalises: batch norms, as most CNNs, or each image by itself, as transformers and ConvNeXt."""

from __future__ import annotations

from torch import nn

_OF_TIMM = ("RmsNorm", "SimpleNorm", "Affine")


def normalises_images(network: nn.Module) -> bool:
    """Whether the network has layer norms, or what stands for them, and no batch norms: such are trained with AdamW.

    So are ViT, DeiT, BEiT, Swin, MLP-Mixer, ResMLP, MetaFormer and ConvNeXt in their papers and in timm. Hybrids with
    batch norms (MobileViT, CoAtNet, EfficientFormer) count as CNNs.
    """
    kinds = {_is_layer_norm(part) for part in network.modules() if _is_layer_norm(part) or _is_batch_norm(part)}
    return kinds == {True}


def _is_layer_norm(part: nn.Module) -> bool:
    if isinstance(part, nn.GroupNorm):
        return part.num_groups == 1
    return isinstance(part, nn.LayerNorm | nn.RMSNorm) or type(part).__name__.startswith(_OF_TIMM)


def _is_batch_norm(part: nn.Module) -> bool:
    return isinstance(part, nn.modules.batchnorm._BatchNorm)
