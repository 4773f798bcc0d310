"""What a network must be able to do for the trials that a study may have of it."""

from __future__ import annotations

import torch

from delta_tune.config import UserError
from delta_tune.data.training_images import training_side
from delta_tune.models.architectures import build_unfilled
from delta_tune.models.backbones import build_target, resolve_layers
from delta_tune.models.forward_check import check_output
from delta_tune.spaces.validation import CheckedSpace
from delta_tune.training.task import Task


def check_early_size(task: Task, checked: CheckedSpace) -> None:
    """Refuse a network that does not run on small images, if a trial is to begin with them.

    Raises:
        UserError: says what the network answers.
    """
    backbone, num_classes = task.backbone, len(task.dataset.classes)
    size = backbone.preprocessing.image_size
    sides = {training_side(size, proposal.config.image_settings(1).relative_size) for proposal in checked.drawn}
    if small := sorted(sides - {size}):
        network = build_target(backbone, num_classes, torch.Generator()).eval()
        try:
            for side in small:
                check_output(network, num_classes, side, backbone.preprocessing.channels)
        except ValueError as error:
            fault = str(error).rstrip(".")
            raise UserError(f"early_size must be 1 for {backbone.model}: {fault}.") from error


def check_layers(task: Task, checked: CheckedSpace) -> None:
    """Refuse a layer that the backbone does not have.

    Raises:
        UserError: names the nearest layers.
    """
    for layers in {p.config.layers for p in checked.drawn if p.config.uses_behavior}:
        resolve_layers(task.backbone, layers)


def check_head(task: Task, checked: CheckedSpace) -> None:
    """Refuse a network whose head cannot be cut out, if a trial needs a classifier on its features.

    Raises:
        UserError: says how to do without.
    """
    fault, configs = task.backbone.head_fault, checked.configs
    methods = sorted({c.regularizer for c in configs if c.method.uses_attention or not c.method.trains_backbone})
    if fault and (methods or any(config.needs_fitted_head for config in configs)):
        without = f" and no trials of {' and '.join(methods)}" if methods else ""
        raise UserError(
            f"{fault.rstrip('.')}, or do without a fitted head: --set head_start=random --set head_lr_multiplier=10"
            f"{without}."
        )


def check_drop_path(task: Task, checked: CheckedSpace) -> None:
    """Refuse a network without residual branches that can be dropped, if a trial is to drop some.

    Raises:
        UserError: says what to do without them.
    """
    configs = checked.configs
    rates = [config.drop_path for config in configs if config.drop_path and config.method.trains_backbone]
    if rates:
        build_unfilled(task.backbone.model, max(rates), **task.backbone.input_shape)


def check_source_head(task: Task, checked: CheckedSpace) -> None:
    """Refuse weights without the source's own head, if a trial trains it along.

    Raises:
        UserError: says how to do without.
    """
    configs = checked.configs
    if (fault := task.backbone.source_head_fault) and any(config.effective_co_tuning for config in configs):
        by_default = any(config.method.co_tuning for config in configs)
        without = "no trials of co_tuning" if by_default else "--set co_tuning=0"
        raise UserError(f"{fault.rstrip('.')}, or do without: {without}.")


def check_task(task: Task, checked: CheckedSpace) -> None:
    """Refuse a network that cannot do what a trial may be asked to.

    Raises:
        UserError: says what to do.
    """
    check_layers(task, checked)
    check_head(task, checked)
    check_early_size(task, checked)
    check_drop_path(task, checked)
    check_source_head(task, checked)
