"""What makes the steps: the groups of the network's parameters with their learning rates, and the optimizer."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from delta_tune.config import TrialConfig

ADAMW_BETAS = (0.9, 0.999)


def parameter_groups(model: nn.Module, head: str, config: TrialConfig) -> list[dict[str, Any]]:
    """The trained parameters in groups that share a learning rate, in a fixed order; the head's group is the last.

    With `layer_decay` < 1 the backbone's groups are those of timm: a block each for timm's networks, 12 consecutive
    tensors each for torchvision's. The group that is k before the head's in depth has the multiplier layer_decay^k.

    Args:
        model: the network; parameters that need no gradient are left out.
        head: module path of its head.
        config: gives `layer_decay` and `head_lr_multiplier`.

    Returns:
        Groups for an optimizer of torch. Their learning rate is `multiplier` times that of the step.
    """
    of_head = list(model.get_submodule(head).parameters())
    last: dict[str, Any] = {"params": of_head, "multiplier": config.head_lr_multiplier}
    if config.layer_decay == 1:
        groups: list[dict[str, Any]] = [{"params": list(model.parameters()), "multiplier": 1.0}]
    else:
        from timm.optim import param_groups_layer_decay  # type: ignore[attr-defined]

        if not hasattr(model, "group_matcher"):  # none of timm's: it wants to be told where the head is
            model.pretrained_cfg = {"classifier": head}  # type: ignore[assignment]
        by_depth = param_groups_layer_decay(model, layer_decay=config.layer_decay, weight_decay_exclude_1d=False)
        groups = [{"params": group["params"], "multiplier": group["lr_scale"]} for group in by_depth]
    head_ids = {id(p) for p in of_head}
    for group in groups:
        group["params"] = [p for p in group["params"] if p.requires_grad and id(p) not in head_ids]
    return [*(group for group in groups if group["params"]), last]


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
