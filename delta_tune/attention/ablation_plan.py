"""Plan the ablation of a layer: what keeps its channels separate, what mixes them first, what runs per channel.

DELTA's weights (arXiv 1901.09229) need the loss of the network without channel j, for every j. Four savings, all exact:

- values that do not depend on the layer are computed once per image (intact values);
- while operations after the layer keep channels separate, one pass with the whole layer off gives the ablated value of
  every channel (`Slice`);
- in the first linear operation that mixes channels, one changed channel is a rank-1 change of the intact output; if
  that operation is the classifier, this gives the logits;
- only the rest runs once per channel: variants stacked in the batch, with norms, sums and activations fused (`Step`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from delta_tune.models.channel_axis import unchanged
from delta_tune.models.fused_convolution import Activation, Conv
from delta_tune.models.operations import Op

_VIEWS = ("move", "flatten", "opaque", "hook")  # their values may lie in the memory of their operands


@dataclass(frozen=True, slots=True)
class Slice:
    """Channels [start, start + count) of a value's `total` depend on the layer, each on one of its channels, in order.

    A flat value is (B, total · positions), the output of `flatten`. `axis` is that of the channels; 0 is the batch.
    """

    start: int
    count: int
    total: int
    flat: bool = False
    axis: int = 1

    @property
    def whole(self) -> bool:
        """Whether the value has no other channels."""
        return self.count == self.total and not self.flat

    def of(self, value: Tensor) -> Tensor:
        """The channels that depend on the layer: (B, count, ...), or with channels on another axis (B, ..., count)."""
        value = torch.unflatten(value, 1, (self.total, -1)) if self.flat else value
        return value.narrow(self.axis, self.start, self.count)


@dataclass(slots=True, eq=False)
class Step:
    """An operation on stacked variants, with the norm, sum and activation fused after it.

    Attributes:
        rank_1: the slice of its input that depends on the layer, if this operation is the first to mix channels.
        intact: the operation whose intact value the rank-1 change is added to.
        release: values that no later step reads.
        overwrites: whether the result may take the memory of the addend.
    """

    op: Op
    result: Op
    conv: Conv | None
    rank_1: Slice | None
    intact: Op
    addend: Op | None = None
    activation: Activation | None = None
    release: tuple[Op, ...] = ()
    overwrites: bool = False


class Plan:
    """How to compute the logits without channel j of one layer from intact values.

    Attributes:
        axis: that of the layer's channels in its output.
        slices: operations that keep the layer's channels separate, in order.
        steps: operations that run per channel, in order.
        needs: operations whose intact values are read.
        floats: numbers alive at once, per variant and image.
        largest: numbers in the largest value of a step, per variant and image.
    """

    def __init__(self, program: Sequence[Op], layer: str, channels_last: bool = False) -> None:
        hooks = [op for op in program if op.layer == layer]
        self.axis = len(hooks[0].shape) if channels_last else 1
        self.channels = hooks[0].shape[self.axis - 1]
        self.inputs: dict[Op, tuple[Op, ...]] = {}
        self.slices: dict[Op, Slice] = {}
        aliases: dict[Op, Op] = {}
        dependent: set[Op] = set()
        stacked: list[Op] = []
        for op in program:
            inputs = self.inputs[op] = tuple(aliases.get(i, i) for i in op.inputs)
            if op.kind == "hook" and op.layer != layer:
                aliases[op] = inputs[0]
            elif op.static:  # computed for the stacked shapes when it is read
                continue
            elif op.layer == layer and op.rows == 1 and not dependent.intersection(inputs):
                self.slices[op] = Slice(0, self.channels, self.channels, axis=self.axis)
                dependent.add(op)
            elif op.layer == layer or dependent.intersection(inputs):
                dependent.add(op)
                if (where := self._slice_after(op, dependent)) is not None:
                    self.slices[op] = where
                else:
                    stacked.append(op)
        self.output = aliases.get(program[-1], program[-1])
        readers = Counter(i for op in dependent for i in self.inputs[op])
        self.steps = self._fuse(stacked, readers)
        self.needs = self._needs(dependent)
        self.floats = self._release()
        self.largest = max((step.result.numbers for step in self.steps), default=1)

    def _slice_after(self, op: Op, dependent: set[Op]) -> Slice | None:
        """The layer's channels after `op`; None if `op` mixes them."""
        sliced = [i for i in self.inputs[op] if i in self.slices]
        if len({self.slices[i] for i in sliced}) != 1 or any(
            i in dependent for i in self.inputs[op] if i not in sliced
        ):
            return None
        where = self.slices[sliced[0]]
        others = [i for i in self.inputs[op] if i not in sliced]
        if op.kind == "elementwise" or op.axis_after is unchanged:
            return where
        if where.whole and op.rows == 1 and (axis := self._axis_after(op, where.axis, sliced)) is not None:
            return replace(where, axis=axis)
        if op.kind == "flatten" and where.axis == 1:
            return replace(where, flat=True)
        if where.flat or where.axis != 1 or len(op.shape) != 3:
            return None
        if op.kind in ("affine", "pool") or (op.conv is not None and op.conv.depthwise):
            return where
        if op.kind == "binary" and all(i.shape == op.shape for i in sliced):
            fits = all(i.kind != "constant" and len(i.shape) == 3 and i.shape[0] in (1, where.total) for i in others)
            return where if fits else None
        if op.kind == "cat" and len(sliced) == 1:
            before = sum(i.shape[0] for i in self.inputs[op][: self.inputs[op].index(sliced[0])])
            return Slice(before + where.start, where.count, op.shape[0])
        return None

    def _axis_after(self, op: Op, axis: int, sliced: Sequence[Op]) -> int | None:
        """The axis of the channels after an operation on all of them; None if the kind of operation does not say."""
        if op.axis_after is not None:
            return op.axis_after(sliced[0].shape, op.shape, axis)
        keeps = op.kind == "scale" or (op.kind == "binary" and all(i.shape == op.shape for i in sliced))
        return axis if keeps else None

    def _fuse(self, stacked: Sequence[Op], readers: Mapping[Op, int]) -> list[Step]:
        steps: list[Step] = []
        producer: dict[Op, Step] = {}  # values that a single operation reads

        def produce(step: Step, result: Op) -> None:
            producer.pop(step.result, None)
            step.result = result
            if readers[result] == 1:
                producer[result] = step

        for op in stacked:
            inputs = self.inputs[op]
            before = producer.get(inputs[0])
            if before and op.affine and before.conv and not before.addend and not before.activation:
                before.conv, before.intact = before.conv.folded(op.affine), op
                produce(before, op)
                continue
            if before and op.activation and not before.activation and (before.conv or before.op.kind == "binary"):
                before.activation = op.activation
                produce(before, op)
                continue
            if op.run is torch.add:
                sums = [i for i in inputs if i in producer and producer[i].conv]
                sums = [i for i in sums if not producer[i].addend and not producer[i].activation]
                if sums and all(i.shape == op.shape for i in inputs):
                    summand = min(sums, key=lambda i: producer[i].rank_1 is not None)
                    step = producer[summand]
                    (step.addend,) = (i for i in inputs if i is not summand)
                    steps.remove(step)  # the other summand may be computed after the convolution
                    steps.append(step)
                    produce(step, op)
                    continue
            step = Step(op, op, op.conv, self._rank_1(op), op)
            steps.append(step)
            produce(step, op)
        return steps

    def _rank_1(self, op: Op) -> Slice | None:
        where = self.slices.get(self.inputs[op][0])
        if where is None or len(self.inputs[op]) != 1:
            return None
        if op.conv is not None and op.conv.groups == 1 and not where.flat and where.axis == 1:
            return where
        return where if op.linear is not None and len(self.inputs[op][0].shape) == 1 else None

    def operands(self, step: Step) -> tuple[Op, ...]:
        """Operands that `step` reads as stacked variants."""
        inputs = () if step.rank_1 else self.inputs[step.op]
        return (*inputs, step.addend) if step.addend else inputs

    def _needs(self, dependent: set[Op]) -> set[Op]:
        stacked = {step.result for step in self.steps}
        needs = {i for op in self.slices for i in self.inputs[op] if op.layer is None and i not in dependent}
        for step in self.steps:
            needs.update(i for i in self.operands(step) if i not in stacked)
            if step.rank_1:
                needs.update((self.inputs[step.op][0], step.intact))
        return needs | {self.output}

    def _release(self) -> int:
        last = {i: step for step in self.steps for i in self.operands(step)}
        viewed = {i for step in self.steps if step.op.kind in _VIEWS for i in (step.op, *self.inputs[step.op])}
        last.pop(self.output, None)
        alive: set[Op] = set()
        most = 1
        for step in self.steps:
            alive.update((*self.operands(step), step.result))
            most = max(most, sum(op.numbers for op in alive))
            step.release = tuple(op for op, reader in last.items() if reader is step)
            alive.difference_update(step.release)
            alone = step.addend not in viewed and step.addend not in self.inputs[step.op]
            step.overwrites = alone and step.addend in step.release
        return most
