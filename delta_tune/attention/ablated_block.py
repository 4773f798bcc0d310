"""Compute a plan: the ablated variants of one layer for one block of images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from delta_tune.attention.ablation_plan import Plan, Slice, Step
from delta_tune.models.fused_convolution import Conv
from delta_tune.models.operations import Op

_CPU_TENSOR_BYTES = (
    28 * 2**20
)  # malloc returns blocks of 32 MiB to the system, and fresh pages cost more than the arithmetic


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
