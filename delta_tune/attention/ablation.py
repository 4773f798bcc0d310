"""Losses with each channel of a layer switched off, for a fraction of the forward passes (see `ablation_plan`)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from delta_tune.attention.ablation_plan import Plan, Slice, Step
from delta_tune.labels.kinds import kind_of
from delta_tune.models.devices import in_float64, without_tf32
from delta_tune.models.feature_maps import forward_hooks
from delta_tune.models.fused_convolution import Conv
from delta_tune.models.graph import TraceFailed, trace
from delta_tune.models.map_layout import CHANNELS_FIRST, MapLayout
from delta_tune.models.operations import Op

IMAGES_AT_ONCE = 8
"""Images processed together. It is a constant because it affects the last bits of the result."""
_CPU_TENSOR_BYTES = (
    28 * 2**20
)  # malloc returns blocks of 32 MiB to the system, and fresh pages cost more than the arithmetic
_TOLERANCE = 1e-4  # relative to the largest logit, when a plan is checked against the model

_log = logging.getLogger(__name__)


class Block:
    """The ablated variants of one layer for one block of images.

    `intact` holds the values that the plan needs. Everything that all channels share is computed once, here.
    """

    def __init__(self, plan: Plan, intact: Mapping[Op, Any]) -> None:
        self.plan, self.intact = plan, intact
        self.images = len(intact[plan.output])
        self.off: dict[Op, Tensor] = {}
        for op, where in plan.slices.items():
            self.off[op] = self._switched_off(op, where)
        self.changes = {step: self._change(step) for step in plan.steps if step.rank_1}
        read = {i for step in plan.steps for i in plan.operands(step)} | {plan.output}
        self.off = {op: off for op, off in self.off.items() if op in read}

    def _switched_off(self, op: Op, where: Slice) -> Tensor:
        """The slice's value with the whole layer off: (B, count, ...), if flat (B, count, positions)."""
        start, stop = where.start, where.start + where.count
        if op.layer is not None:
            like = self.intact[self.plan.output]
            off: Tensor = like.new_zeros(self.images, *op.shape)
            return off.contiguous(memory_format=torch.channels_last) if off.dim() == 4 else off
        inputs = self.plan.inputs[op]
        values = [self.off[i] if i in self.off else self.intact[i] for i in inputs]
        if op.affine is not None:
            return op.affine.channels(start, stop)(values[0])
        if op.conv is not None:
            return op.conv.channels(start, stop)(values[0])
        if op.kind == "cat":
            return next(self.off[i] for i in inputs if i in self.off)
        if op.kind == "flatten":
            already = self.plan.slices[inputs[0]].flat
            return values[0] if already else op.run(values[0]).unflatten(1, (where.count, -1))
        if op.kind == "binary":
            whole = [not where.whole and i not in self.off and i.shape[0] == where.total for i in inputs]
            values = [where.of(v) if cut else v for v, cut in zip(values, whole, strict=True)]
        result: Tensor = op.run(*values)
        return result

    def _change(self, step: Step) -> Tensor:
        """The change in a rank-1 step's input when channels are switched off.

        (count, B, positions) before a linear layer, (count, B, H', W') before a 1×1 convolution with its output's
        positions, (count, B, H, W) before a larger one.
        """
        assert step.rank_1 is not None
        source = self.plan.inputs[step.op][0]
        change = self.off[source] - step.rank_1.of(self.intact[source])
        if step.conv is None:
            return change.reshape(*change.shape[:2], -1).transpose(0, 1)
        if step.conv.pointwise:
            change = change[:, :, :: step.conv.stride[0], :: step.conv.stride[1]]
        return change.transpose(0, 1).contiguous()

    def logits(self, start: int, stop: int) -> Tensor:
        """Logits (V, B, K) without channel j, for the V channels j in [start, stop)."""
        values: dict[Op, Any] = {}
        for step in self.plan.steps:
            values[step.result] = self._run(step, values, start, stop)
            for op in step.release:
                values.pop(op, None)
        logits: Tensor = self._stacked(self.plan.output, values, start, stop)
        return logits.view(stop - start, self.images, -1)

    def _run(self, step: Step, values: dict[Op, Any], start: int, stop: int) -> Any:
        operands = [self._stacked(i, values, start, stop) for i in self.plan.operands(step)]
        if step.rank_1 is None and step.conv is not None:
            addend = operands[1] if step.addend else None
            return step.conv(operands[0], step.activation, addend, overwrite=step.overwrites)
        if step.rank_1 is not None:
            change = self.changes[step][start:stop]
            channels = slice(step.rank_1.start + start, step.rank_1.start + stop)
            if step.conv is None:
                return self._changed_linear(step, change, channels)
            result = _changed_convolution(step.conv, self.intact[step.intact], change, channels)
            if step.addend is not None:
                result += operands[0]
        elif step.op.kind == "hook":  # the layer runs twice, the second time on values that its first run changed
            result = torch.unflatten(operands[0], 0, (stop - start, -1)).clone()
            for variant, channel in enumerate(range(start, stop)):
                result[variant].select(self.plan.axis, channel).zero_()
            return result.flatten(0, 1)
        else:
            result = step.op.run(*operands)
        return step.activation.in_place(result) if step.activation else result

    def _changed_linear(self, step: Step, change: Tensor, channels: slice) -> Tensor:
        assert step.op.linear is not None
        assert step.rank_1 is not None
        weight = torch.unflatten(step.op.linear.weight, 1, (step.rank_1.total, -1))[:, channels]  # (K, V, positions)
        changed: Tensor = self.intact[step.intact] + change @ weight.permute(1, 2, 0)
        return changed.flatten(0, 1)

    def _stacked(self, op: Op, values: dict[Op, Any], start: int, stop: int) -> Any:
        """The value of `op` for all variants, (V·B, ...), whether or not it depends on the layer."""
        if op in values:
            return values[op]
        if op.static:
            values[op] = self._follow(op, values, start, stop)
            return values[op]
        intact = self.intact[op]
        if not isinstance(intact, Tensor):
            return intact
        variants = intact.unsqueeze(0).expand(stop - start, *intact.shape)
        if op in self.off:
            where = self.plan.slices[op]
            variants = variants.clone(memory_format=torch.preserve_format).contiguous()
            channel_axis = torch.unflatten(variants, 2, (where.total, -1)) if where.flat else variants
            for variant, channel in enumerate(range(start, stop)):
                changed = channel_axis[variant].select(where.axis, where.start + channel)
                changed.copy_(self.off[op].select(where.axis, channel))
            values[op] = variants.flatten(0, 1)
            return values[op]
        return variants.flatten(0, 1) if stop - start > 1 else intact.clone()  # a step may write into it

    def _follow(self, op: Op, values: dict[Op, Any], start: int, stop: int) -> Any:
        """A value that follows from parameters and shapes alone, for the shapes of the stacked variants."""
        inputs = self.plan.inputs[op]
        if op.kind != "size":
            return op.run(*(self._stacked(i, values, start, stop) for i in inputs))
        rows = round((stop - start) * self.images * inputs[0].rows)
        return op.run(torch.empty(rows, *inputs[0].shape, device="meta"))


def _changed_convolution(conv: Conv, intact: Tensor, change: Tensor, channels: slice) -> Tensor:
    """The convolution's output (V·B, O, H', W') if input channel j of variant j changes by (V, B, H, W)."""
    base = intact.permute(0, 2, 3, 1).contiguous()
    _, height, width, outputs = base.shape
    weight = conv.weight[:, channels]
    if conv.pointwise:
        rows = weight.flatten(1).t()[:, None, None, None, :]
        changed = torch.addcmul(base, change.unsqueeze(-1), rows)
    else:
        padded, padding = conv.pad(change.flatten(0, 1).unsqueeze(1))
        patches = F.unfold(padded, weight.shape[2:], conv.dilation, padding, conv.stride)  # (V·B, k·k, H'·W')
        patches = torch.unflatten(patches, 0, change.shape[:2]).transpose(2, 3).flatten(1, 2)
        changed = torch.baddbmm(base.view(1, -1, outputs), patches, weight.flatten(2).permute(1, 2, 0))
    return changed.view(-1, height, width, outputs).permute(0, 3, 1, 2)


class Ablation:
    """Ablation of a model's layers, planned once for many blocks of images.

    Attributes:
        channels: layer → number of channels.
        notes: a sentence for each layer whose channels each need a full forward pass, and why; also logged.
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
                intact = intact_values(self._program, block, needs) if plans else {}
                for layer in result:
                    if layer in plans:
                        losses = _planned_losses(plans[layer], intact, targets, byte_budget, advance)
                    else:
                        losses = self._masked_losses(layer, block, targets, advance)
                    result[layer].append(losses)
        return {layer: torch.cat(blocks).to("cpu", torch.float32).clone() for layer, blocks in result.items()}

    def _masked_losses(self, layer: str, images: Tensor, targets: Tensor, advance: Callable[[int], None]) -> Tensor:
        reference = _losses(self.model(images), targets)
        losses = []
        for channel in range(self.channels[layer]):
            logits = _masked_logits(self.model, images, layer, self._layouts[layer], channel)
            losses.append(_losses(logits, targets) - reference)
            advance(len(images))
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
        note = f"{layer}: every channel costs a full forward, because {reason}"
        notes.append(note)
        _log.warning("%s", note)
    return program, plans, channels


def intact_values(program: Sequence[Op], images: Tensor, needs: set[Op]) -> dict[Op, Any]:
    """The values of `needs` for a block of images."""
    last = {i: op for op in program for i in op.inputs}
    values: dict[Op, Any] = {}
    for op in program:
        values[op] = images if op.kind == "input" else op.run(*(values[i] for i in op.inputs))
        for i in op.inputs:
            if last[i] is op and i not in needs:
                values.pop(i, None)
    return values


def chunk_size(plan: Plan, images: int, byte_budget: int, device: torch.device) -> int:
    """How many channels to stack at once."""
    size = byte_budget // (2 * 4 * plan.floats * images)  # half is left for temporary values of an operation
    if device.type == "cpu":
        size = min(size, max(1, _CPU_TENSOR_BYTES // (4 * plan.largest * images)))
    chunks = -(-plan.channels // max(1, size))
    return -(-plan.channels // chunks)


def _planned_losses(
    plan: Plan, intact: Mapping[Op, Any], targets: Tensor, byte_budget: int, advance: Callable[[int], None]
) -> Tensor:
    block = Block(plan, intact)
    at_once = chunk_size(plan, len(targets), byte_budget, targets.device)
    reference = _losses(intact[plan.output], targets)
    losses = []
    for start in range(0, plan.channels, at_once):
        stop = min(start + at_once, plan.channels)
        losses.append(_losses(block.logits(start, stop), targets) - reference)
        advance((stop - start) * len(targets))
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
