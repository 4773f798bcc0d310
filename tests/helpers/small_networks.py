"""Small networks of timm's classes under names of their own, as backbones of drawn weights.

They are known in the process that imports this module, so not to Ray's workers.
"""

from __future__ import annotations

import functools
from typing import Any

import timm
import torch
from timm.models import register_model
from timm.models.convnext import ConvNeXt
from timm.models.mlp_mixer import MlpMixer
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from delta_tune.data.images import Preprocessing
from delta_tune.models.backbones import Backbone, weights_digest
from delta_tune.models.hooked_layers import find_layers

SIDE = 32
"""Pixels of the images that they take."""
_VIT: dict[str, Any] = {"img_size": SIDE, "patch_size": 8, "embed_dim": 32, "depth": 4, "num_heads": 2}
_OPTIONS: dict[str, tuple[type[nn.Module], dict[str, Any]]] = {
    "small_vit": (VisionTransformer, _VIT),
    "small_vit_registers": (VisionTransformer, _VIT | {"reg_tokens": 4}),
    "small_vit_average": (VisionTransformer, _VIT | {"global_pool": "avg"}),
    "small_vit_tokens_only": (VisionTransformer, _VIT | {"global_pool": "avg", "class_token": False}),
    "small_vit_attention_pool": (VisionTransformer, _VIT | {"global_pool": "map", "class_token": False}),
    "small_swin": (SwinTransformer, {
        **{"img_size": SIDE, "patch_size": 4, "window_size": 4, "embed_dim": 8},
        **{"depths": (2, 2, 2), "num_heads": (2, 2, 2)},
    }),
    "small_convnext": (ConvNeXt, {"depths": (2,) * 4, "dims": (8, 12, 16, 24), "ls_init_value": 1.0}),
    "small_mixer": (MlpMixer, {"img_size": SIDE, "patch_size": 8, "embed_dim": 24, "num_blocks": 4}),
}  # fmt: skip
NAMES = tuple(_OPTIONS)
PREFIX_TOKENS = {"small_vit": 1, "small_vit_registers": 5, "small_vit_average": 1}
"""Of those that have some."""


def _build(name: str, pretrained: bool = False, in_chans: int = 3, num_classes: int = 10, **options: Any) -> nn.Module:
    network, own = _OPTIONS[name]
    rate = {"drop_path_rate": options["drop_path_rate"]} if "drop_path_rate" in options else {}
    return network(in_chans=in_chans, num_classes=num_classes, **own, **rate)


for _name in NAMES:
    if not timm.is_model(_name):
        _function = functools.partial(_build, _name)
        _function.__name__, _function.__module__ = _name, __name__  # type: ignore[attr-defined]
        register_model(_function)


def small_network(name: str, seed: int = 0) -> nn.Module:
    """The network in eval mode, with drawn weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = timm.create_model(name).eval()
        with torch.no_grad():
            for parameter in network.parameters():  # no norm as it begins, no bias 0, no token as small as timm's
                parameter.add_(0.1 * torch.randn_like(parameter))
    return network


def small_backbone(name: str, seed: int = 0) -> Backbone:
    """The same as a backbone whose weights bring a head."""
    network, model = small_network(name, seed), f"timm:{name}"
    anatomy = find_layers(network, model, *([SIDE] if "img_size" in _OPTIONS[name][1] else []))
    state = {key: value.numpy() for key, value in network.state_dict().items()}
    head = {key.removeprefix(f"{anatomy.head}."): v for key, v in state.items() if key.startswith(f"{anatomy.head}.")}
    rest = {key: value for key, value in state.items() if not key.startswith(f"{anatomy.head}.")}
    return Backbone(
        model=model,
        weights="drawn",
        preprocessing=Preprocessing(
            image_size=SIDE, stored_size=36, mean=(0.5,) * 3, std=(0.25,) * 3, interpolation="bilinear"
        ),
        state=rest,
        head=anatomy.head,
        layers=anatomy.layers,
        channels=anatomy.channels,
        layouts=anatomy.layouts,
        fingerprint=weights_digest(model, rest),
        source_head=head,
    )
