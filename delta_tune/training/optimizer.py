"""What makes the steps: the groups of the network's parameters with their learning rates, and the optimizer."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import nn

from delta_tune.config import TrialConfig
from delta_tune.models.normalisation import normalises_images

ADAMW_BETAS = (0.9, 0.999)
_NOT_DECAYED = (
    *("pos_embed", "pos_embedding", "cls_token", "class_token", "dist_token", "reg_token"),
    *("relative_position_bias_table", "logit_scale", "layer_scale"),
)
"""Last words of the names of parameters of two or more dimensions that are no weights of a layer."""
_BLOCK_OF_VIT = re.compile(r"encoder\.layers\.encoder_layer_(\d+)\.")
_BLOCK_OF_STAGES = re.compile(r"features\.(\d+)\.(\w+)\.")
_AFTER_BLOCKS = ("encoder.ln.", "norm.", "classifier.", "heads.")


def parameter_groups(model: nn.Module, head: str, config: TrialConfig) -> list[dict[str, Any]]:
    """The trained parameters in groups that share a learning rate, in a fixed order; the head's group is the last.

    With `layer_decay` < 1 the backbone's groups are those of timm: a block each for timm's networks and for
    torchvision's ViT, Swin and ConvNeXt, 12 consecutive tensors each for its others. The group that is k before the
    head's in depth has the multiplier layer_decay^k.

    With `adamw`, groups of networks with layer norms and no batch norms are parted: biases, norms, position embeddings,
    class tokens, tables of relative positions and layer scales do not decay, as in the recipes of DeiT, BEiT, MAE,
    Swin and ConvNeXt, and in timm's.

    Args:
        model: the network; parameters that need no gradient are left out.
        head: module path of its head.
        config: gives `layer_decay` and `head_lr_multiplier`.

    Returns:
        Groups for an optimizer of torch. Their learning rate is `multiplier` times that of the step; those that do not
        decay have a weight decay of 0.
    """
    of_head = list(model.get_submodule(head).parameters())
    last: dict[str, Any] = {"params": of_head, "multiplier": config.head_lr_multiplier}
    if config.layer_decay == 1:
        groups: list[dict[str, Any]] = [{"params": list(model.parameters()), "multiplier": 1.0}]
    else:
        from timm.optim import param_groups_layer_decay  # type: ignore[attr-defined]

        if (depths := _depths_in_torchvision(model, head)) is not None:
            groups = _by_depth(model, depths, config.layer_decay)
        else:
            if not hasattr(model, "group_matcher"):  # none of timm's: it wants to be told where the head is
                model.pretrained_cfg = {"classifier": head}  # type: ignore[assignment]
            by_depth = param_groups_layer_decay(model, layer_decay=config.layer_decay, weight_decay_exclude_1d=False)
            groups = [{"params": group["params"], "multiplier": group["lr_scale"]} for group in by_depth]
    head_ids = {id(p) for p in of_head}
    for group in groups:
        group["params"] = [p for p in group["params"] if p.requires_grad and id(p) not in head_ids]
    groups = [*(group for group in groups if group["params"]), last]
    if config.optimizer == "adamw" and config.effective_weight_decay and normalises_images(model):
        kept = _not_decayed(model)
        groups = [part for group in groups for part in _parted(group, kept)]
    return groups


def _parted(group: dict[str, Any], kept: set[int]) -> list[dict[str, Any]]:
    """A group as two, the first of what decays and the second, of a weight decay of 0, of the parameters in `kept`."""
    decayed = [p for p in group["params"] if id(p) not in kept]
    rest = [p for p in group["params"] if id(p) in kept]
    parts = [group | {"params": decayed}, group | {"params": rest, "weight_decay": 0.0}]
    return [part for part in parts if part["params"]]


def _not_decayed(model: nn.Module) -> set[int]:
    """Identities of the parameters that are no weights of a layer: vectors, and what the network names itself."""
    told = getattr(model, "no_weight_decay", None)  # of timm's networks
    names = (*(told() if callable(told) else ()), *_NOT_DECAYED)
    return {
        id(parameter)
        for name, parameter in model.named_parameters()
        if parameter.ndim <= 1 or any(name == each or name.endswith(f".{each}") for each in names)
    }


def _depths_in_torchvision(model: nn.Module, head: str) -> dict[str, int] | None:
    """Parameter → its depth, a block each, of a ViT, Swin or ConvNeXt of torchvision; None for other networks."""
    from torchvision.models import ConvNeXt, SwinTransformer, VisionTransformer

    if not isinstance(model, ConvNeXt | SwinTransformer | VisionTransformer):
        return None
    places: dict[str, tuple[int, int]] = {}
    for name, _ in model.named_parameters():
        stage = block = -1
        if found := _BLOCK_OF_VIT.match(name):
            stage, block = 0, int(found[1])
        elif (found := _BLOCK_OF_STAGES.match(name)) and (stage := int(found[1])):
            # Stages are at odd numbers; what strides before one belongs to its first block, as in timm
            stage, block = (stage, int(found[2])) if stage % 2 else (stage + 1, 0)
        places[name] = stage, block
    deepest = max(places.values())
    for name in places:
        if name.startswith(_AFTER_BLOCKS) or name.startswith(f"{head}."):
            places[name] = deepest  # norms after the last block go with it, as in timm
    numbers = {place: number for number, place in enumerate(sorted(set(places.values())))}
    return {name: numbers[place] for name, place in places.items()}


def _by_depth(model: nn.Module, depths: dict[str, int], layer_decay: float) -> list[dict[str, Any]]:
    """Groups of the same depth; the head, which has a group of its own, is one deeper than the last."""
    head_depth = max(depths.values()) + 1
    parameters = dict(model.named_parameters())
    return [
        {
            "params": [parameters[name] for name, own in depths.items() if own == depth],
            "multiplier": layer_decay ** (head_depth - depth),
        }
        for depth in range(head_depth)
    ]


def build_optimizer(groups: list[dict[str, Any]], config: TrialConfig, device: torch.device) -> torch.optim.Optimizer:
    """SGD, or AdamW with decoupled weight decay: w ← w − lr · multiplier · (weight_decay · w + the step of Adam)."""
    common: dict[str, Any] = {
        "lr": config.lr,
        "weight_decay": config.effective_weight_decay,
        "fused": device.type == "cuda",  # one kernel; the CPU's would round otherwise than versions before
    }
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, betas=ADAMW_BETAS, **common)
    return torch.optim.SGD(groups, momentum=config.momentum, nesterov=config.nesterov and config.momentum > 0, **common)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of the next step: `lr` is that of a group whose multiplier is 1."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["multiplier"]


def set_device(optimizer: torch.optim.Optimizer, device: torch.device) -> None:
    """Set what depends on the device, after a state that may have been saved on another kind of device was loaded."""
    for group in optimizer.param_groups:
        group["fused"] = device.type == "cuda"
