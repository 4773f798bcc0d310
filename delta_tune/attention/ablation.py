"""Losses with each channel of a layer switched off, for a fraction of the forward passes (see `ablation_plan`)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from delta_tune.attention.ablated_block import Block, chunk_size, intact_values
from delta_tune.attention.ablation_plan import Plan
from delta_tune.attention.kept_prefix import prefix_kept
from delta_tune.data.batches import repeat_last, same_shapes
from delta_tune.labels.kinds import kind_of
from delta_tune.models.devices import in_float64, without_tf32
from delta_tune.models.feature_maps import forward_hooks
from delta_tune.models.graph import TraceFailed, trace
from delta_tune.models.map_layout import CHANNELS_FIRST, MapLayout
from delta_tune.models.operations import Op

IMAGES_AT_ONCE = 8
"""Images processed together. It is a constant because it affects the last bits of the result."""
_TOLERANCE = 1e-4  # relative to the largest logit, when a plan is checked against the model

_log = logging.getLogger(__name__)


class Ablation:
    """Ablation of a model's layers, planned once for many blocks of images.

    Attributes:
        channels: layer → number of channels.
        notes: a sentence for each layer whose channels each need a forward pass of their own, and why; also logged.
    """

    def __init__(
        self, model: nn.Module, example: Tensor, layers: Sequence[str], layouts: Mapping[str, MapLayout] | None = None
    ) -> None:
        """Plan each layer, and check its plan against the model.

        Args:
            model: in eval mode; not changed.
            example: one or two images (B, 3, H, W).
            layers: names of modules.
            layouts: layer → where its channels are; those that are not named have theirs first.
        """
        self.model = model
        self._layouts = {layer: (layouts or {}).get(layer, CHANNELS_FIRST) for layer in layers}
        self.notes: list[str] = []
        with torch.inference_mode(), without_tf32():  # that rounds plan and model apart by more than the tolerance
            self._program, self._plans, self.channels = _plans(model, example, self._layouts, self.notes)

    def losses(
        self,
        images: Tensor,
        labels: Tensor,
        layers: Sequence[str],
        byte_budget: int,
        advance: Callable[[int], None] = lambda _: None,
    ) -> dict[str, Tensor]:
        """Cross entropy with each channel off minus intact cross entropy, per image: {layer: float32 (N, C)}, on CPU.

        Splitting the images into multiples of `IMAGES_AT_ONCE`, or the layers into groups, does not change a bit of the
        result. `advance` is called with channels × images.
        """
        with torch.inference_mode():
            plans = {layer: self._plans[layer] for layer in layers if layer in self._plans}
            needs = set[Op]().union(*(plan.needs for plan in plans.values()))
            result: dict[str, list[Tensor]] = {layer: [] for layer in layers}
            for start in range(0, len(images), IMAGES_AT_ONCE):
                block, targets = images[start : start + IMAGES_AT_ONCE], labels[start : start + IMAGES_AT_ONCE]
                count = len(block)
                if same_shapes(block.device):
                    block, targets = repeat_last(block, IMAGES_AT_ONCE), repeat_last(targets, IMAGES_AT_ONCE)
                intact = intact_values(self._program, block, needs) if plans else {}

                def advance_by(channels: int, count: int = count) -> None:
                    advance(channels * count)

                for layer in result:
                    if layer in plans:
                        losses = _planned_losses(plans[layer], intact, targets, byte_budget, advance_by)
                    else:
                        losses = self._masked_losses(layer, block, targets, advance_by)
                    result[layer].append(losses[:count])
        return {layer: torch.cat(blocks).to("cpu", torch.float32).clone() for layer, blocks in result.items()}

    def _masked_losses(self, layer: str, images: Tensor, targets: Tensor, advance: Callable[[int], None]) -> Tensor:
        losses = []
        with prefix_kept(self.model, layer, images):
            reference = _losses(self.model(images), targets)
            for channel in range(self.channels[layer]):
                logits = _masked_logits(self.model, images, layer, self._layouts[layer], channel)
                losses.append(_losses(logits, targets) - reference)
                advance(1)
        return torch.stack(losses, dim=1)


def _plans(
    model: nn.Module, example: Tensor, layouts: Mapping[str, MapLayout], notes: list[str]
) -> tuple[list[Op], dict[str, Plan], dict[str, int]]:
    """The program, a plan for each layer whose plan agrees with the model on `example`, and each layer's channels."""
    layers = tuple(layouts)
    logits, channels = _probe(model, example, layouts)
    tolerance = _TOLERANCE * max(float(logits.abs().max()), 1e-6)

    def agrees(found: Tensor, expected: Tensor) -> bool:
        return found.shape == expected.shape and float((found - expected).abs().max()) <= tolerance

    program: list[Op] = []
    plans: dict[str, Plan] = {}
    failures: dict[str, str] = {}
    try:
        program = trace(model, layers, example)
        if not agrees(intact_values(program, example, {program[-1]})[program[-1]], logits):
            raise TraceFailed("the traced graph gives other logits than the model")
    except TraceFailed as failure:
        failures = dict.fromkeys(layers, str(failure))
    for layer in layers:
        if layer in failures:
            continue
        pair = min(2, channels[layer])
        expected = torch.stack([_masked_logits(model, example, layer, layouts[layer], j) for j in range(pair)])
        try:
            plan = Plan(program, layer, layouts[layer].channels_last)
            if agrees(Block(plan, intact_values(program, example, plan.needs)).logits(0, pair), expected):
                plans[layer] = plan
            else:
                failures[layer] = "its shortcuts give other logits than the model"
        except (RuntimeError, TypeError, ValueError) as error:  # an operation that mixes images and variants
            failures[layer] = f"its shortcuts fail ({error})"
    for layer, reason in failures.items():
        note = f"{layer}: every channel costs a forward pass of its own, because {reason}"
        notes.append(note)
        _log.warning("%s", note)
    return program, plans, channels


def _planned_losses(
    plan: Plan, intact: Mapping[Op, Any], targets: Tensor, byte_budget: int, advance: Callable[[int], None]
) -> Tensor:
    block = Block(plan, intact)
    at_once = chunk_size(plan, len(targets), byte_budget, targets.device)
    reference = _losses(intact[plan.output], targets)
    losses = []
    for start in range(0, plan.channels, at_once):
        stop = min(start + at_once, plan.channels)
        begin = max(0, stop - at_once) if same_shapes(targets.device) else start  # some channels again, in one shape
        losses.append(_losses(block.logits(begin, stop)[start - begin :], targets) - reference)
        advance(stop - start)
    return torch.cat(losses).t()


def _losses(logits: Tensor, targets: Tensor) -> Tensor:
    """(..., B, K) to (..., B), in float64: a fitted head's losses are far below float32's spacing near its logits."""
    return kind_of(targets).losses(in_float64(logits), targets)


def _masked_logits(model: nn.Module, images: Tensor, layer: str, layout: MapLayout, channel: int) -> Tensor:
    def switch_off(layer: str, inputs: Any, output: Tensor) -> Tensor:
        return layout.switch_off(output, channel)

    with forward_hooks(model, [layer], switch_off):
        logits: Tensor = model(images)
    return logits


def _probe(model: nn.Module, images: Tensor, layouts: Mapping[str, MapLayout]) -> tuple[Tensor, dict[str, int]]:
    """The logits, and the number of channels of each layer.

    Raises:
        ValueError: the forward pass does not reach a layer, or its output is not one tensor.
    """
    channels: dict[str, int] = {}

    def count(layer: str, inputs: Any, output: Any) -> None:
        if not isinstance(output, Tensor) or output.dim() < 2:
            raise ValueError(f"the output of {layer} has no channels; choose a layer with output (B, C, H, W)")
        channels[layer] = layouts[layer].channels_of(output)

    with forward_hooks(model, layouts, count):
        logits: Tensor = model(images)
    for layer in layouts:
        if layer not in channels:
            raise ValueError(f"the model's forward does not run {layer}; choose a layer that it does")
    return logits, channels
