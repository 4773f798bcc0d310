"""Weights under other names, or of another image size, as a network's own tensors: what timm and torchvision have."""

from __future__ import annotations

import contextlib
import inspect
import io
import re
import sys
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from delta_tune.models.state_dicts import all_tensors

Tensors = dict[str, Tensor]
_OF_POSITIONS = re.compile(r"pos(ition)?(al)?_embed|relative_position_bias_table|position_embeddings?\b")
_PREFIX_TOKENS = 5
"""Class token and registers, which some formats have among the positions."""
_QKV = re.compile(r"(.*)\.(query|key|value|q_proj|k_proj|v_proj)\.(weight|bias)$")
_VIT = (
    (r"^embeddings\.(cls_token|mask_token|register_tokens)$", r"\1"),
    (r"^embeddings\.distillation_token$", "dist_token"),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^embeddings\.norm\.", "patch_embed.norm."),
    (r"^encoder\.layer\.", "blocks."),
    (r"^encoder\.layers\.", "layers."),
    (r"\.attention\.(?:attention|self)\.", ".attn."),
    (r"\.attention\.output\.dense\.", ".attn.proj."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
    (r"\.layer_scale([12])\.lambda1$", r".ls\1.gamma"),
    (r"\.mlp\.weights_in\.", ".mlp.w12."),
    (r"\.mlp\.weights_out\.", ".mlp.w3."),
    (r"^layernorm\.", "norm."),
)
_CLIP = (
    (r"^embeddings\.class_embedding$", "visual.class_embedding"),
    (r"^embeddings\.patch_embedding\.", "visual.conv1."),
    (r"^embeddings\.position_embedding\.weight$", "visual.positional_embedding"),
    (r"^pre_layrnorm\.", "visual.ln_pre."),
    (r"^post_layernorm\.", "visual.ln_post."),
    (r"^encoder\.layers\.", "visual.transformer.resblocks."),
    (r"\.self_attn\.qkv\.", ".attn.in_proj_"),
    (r"\.self_attn\.", ".attn."),
    (r"\.layer_norm([12])\.", r".ln_\1."),
    (r"\.mlp\.fc1\.", ".mlp.c_fc."),
    (r"\.mlp\.fc2\.", ".mlp.c_proj."),
)
_CONVNEXT = (
    (r"^embeddings\.patch_embeddings\.", "downsample_layers.0.0."),
    (r"^embeddings\.layernorm\.", "downsample_layers.0.1."),
    (r"^encoder\.stages\.(\d+)\.downsampling_layer\.", r"downsample_layers.\1."),
    (r"^encoder\.stages\.(\d+)\.layers\.", r"stages.\1."),
    (r"(?<=\d)\.layernorm\.", ".norm."),
    (r"\.layer_scale_parameter$", ".gamma"),
    (r"^layernorm\.", "norm."),
)
# A tensor that only such a network of transformers has, and the official names of its others
_OF_TRANSFORMERS = (
    ("embeddings.class_embedding", _CLIP),
    ("encoder.stages.0.layers.0.dwconv.weight", _CONVNEXT),
    ("embeddings.patch_embeddings.projection.weight", _VIT),
)


def converter(model: str, module: nn.Module) -> Callable[[Mapping[str, Tensor]], Tensors] | None:
    """What makes the network's own tensors of those of other formats and image sizes; None if its library has nothing.

    timm's filters know the official names of DINOv2, MAE, CLIP, OpenCLIP, BEiT, Swin, ConvNeXt and others, and resize
    position embeddings, tables of relative positions and patches. `interpolate_embeddings` of torchvision resizes.
    Networks as transformers names them become official ones first.

    Args:
        model: `NAME` of torchvision.models or `timm:NAME`.
        module: the network, built for the user's image size.
    """
    if not model.startswith("timm:"):
        if not model.startswith("vit_"):
            return None
        return lambda tensors: _resized_by_torchvision(module, tensors)
    import timm

    name = model.removeprefix("timm:").partition(".")[0]
    family = sys.modules[timm.model_entrypoint(name).__module__]
    by_family: Callable[..., Tensors] | None = getattr(family, "checkpoint_filter_fn", None)
    if by_family is None:
        return None
    options = _filter_options(by_family, name)

    def convert(tensors: Mapping[str, Tensor]) -> Tensors:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # of scipy's splines; the filter of EVA prints
            return dict(by_family(official_names(tensors), module, **options))

    return convert


def resized_note(module: nn.Module, content: object, image_size: int, by_library: bool = False) -> str:
    """What is told of position embeddings and tables of relative positions that are resized; empty if none are.

    Args:
        module: the network, built for `image_size`.
        content: of the file of weights.
        image_size: side of the input in pixels.
        by_library: whether the library resized them when it downloaded the weights.
    """
    own, given = (_positions(tensors) for tensors in (module.state_dict().items(), all_tensors(content)))
    others = [mine for mine in own if given and min(abs(count - mine) for count in given) > _PREFIX_TOKENS]
    if not others and not (own and by_library):
        return ""
    return f"The weights are those of another image size: their position embeddings are resized to {image_size} pixels."


def _positions(tensors: Iterable[tuple[str, Tensor]]) -> set[int]:
    """How many positions each position embedding and each table of relative positions has."""
    found = [value for name, value in tensors if _OF_POSITIONS.search(name)]
    return {value.numel() // value.shape[-1] for value in found if value.ndim and value.shape[-1]}


def official_names(tensors: Mapping[str, Tensor]) -> Tensors:
    """The tensors of a ViT, DINOv2, CLIP, Swin or ConvNeXt of transformers by their authors' names; others as is."""
    for known, rules in _OF_TRANSFORMERS:
        if key := next((key for key in tensors if key == known or key.endswith(f".{known}")), None):
            return _renamed(tensors, key.removesuffix(known), rules)
    return dict(tensors)


def _filter_options(convert: Callable[..., Tensors], name: str) -> dict[str, Any]:
    """Keywords with which timm calls the filter of a family for this network."""
    known = inspect.signature(convert).parameters
    options: dict[str, Any] = {}
    if "adapt_layer_scale" in known:
        options["adapt_layer_scale"] = True
    if "antialias" in known and "flexi" in name:
        options |= {"interpolation": "bilinear", "antialias": False}
    return options


def _resized_by_torchvision(module: nn.Module, tensors: Mapping[str, Tensor]) -> Tensors:
    from torchvision.models.vision_transformer import VisionTransformer, interpolate_embeddings

    assert isinstance(module, VisionTransformer)
    return dict(interpolate_embeddings(module.image_size, module.patch_size, OrderedDict(tensors)))


def _renamed(tensors: Mapping[str, Tensor], prefix: str, rules: tuple[tuple[str, str], ...]) -> Tensors:
    found: Tensors = {}
    parts: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        if key.startswith(prefix):
            name = key.removeprefix(prefix)
            if match := _QKV.match(name):
                before, which, kind = match.groups()
                parts.setdefault(f"{before}.qkv.{kind}", {})[which[0]] = tensor
                continue
            found[_replaced(name, rules)] = tensor
        elif key.endswith("visual_projection.weight"):
            found["visual.proj"] = tensor.T
        elif key.startswith("classifier."):
            found[f"head.{key.removeprefix('classifier.')}"] = tensor
    for name, three in parts.items():
        if three.keys() >= set("qkv"):
            found[_replaced(name, rules)] = torch.cat([three[each] for each in "qkv"])
    return found


def _replaced(name: str, rules: tuple[tuple[str, str], ...]) -> str:
    for old, new in rules:
        name = re.sub(old, new, name)
    return name
