"""What every module of a network gets and returns in one forward pass of a single image."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeGuard

import torch
from torch import Tensor, nn

from delta_tune.models.feature_maps import forward_hooks
from delta_tune.models.map_layout import CHANNELS_FIRST, MapLayout

STANDARD_SIZE = 224  # at which networks for any image size are traced, so that strides do not depend on the user's
MAX_PREFIX_TOKENS = 16
PATCHES = (4, 8, 14, 16, 32)
"""Usual sides of patches in pixels."""


class Grid(NamedTuple):
    """An output as a square of positions."""

    side: int
    channels: int
    layout: MapLayout
    stride: int
    """Pixels between positions, rounded to a power of two."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Call:
    """The last call of one module in a forward pass of a single square image."""

    module: nn.Module
    order: int
    """Index in the order in which modules finish: children before parents."""
    count: int
    """How often the module ran."""
    input_id: int | None
    """Identity of the first map among its inputs; None if there was none."""
    input: Grid | None
    """The first map among its inputs."""
    output_id: tuple[int, int] | None
    """Identity and version of the returned map; a later in-place operation changes the version."""
    output_shape: tuple[int, ...] | None
    output: Grid | None
    """None if the module returns no map."""
    alone: bool
    """Whether it returns a tensor, not several values whose first is one."""

    @property
    def input_stride(self) -> int | None:
        """Of its first input; None if that is no map."""
        return None if self.input is None else self.input.stride

    @property
    def output_stride(self) -> int | None:
        """Of what it returns; None if that is no map."""
        return None if self.output is None else self.output.stride


@dataclass(kw_only=True, slots=True)
class _Record:
    module: nn.Module
    order: int
    count: int
    inputs: list[Tensor]
    output: Tensor | None
    version: int
    shape: tuple[int, ...] | None


def trace(model: nn.Module, images: Tensor, size: int = STANDARD_SIZE) -> tuple[dict[str, Call], Any]:
    """The last call of every module, in finishing order, and the network's output.

    Args:
        model: in eval mode; it runs once.
        images: one, (1, C, S, S).
        size: in pixels, which strides refer to.
    """
    modules = {path: module for path, module in model.named_modules() if path}
    records: dict[str, _Record] = {}  # holds the tensors: an id is unique only while its tensor is alive
    clock = itertools.count()

    def record(path: str, inputs: Any, output: Any) -> None:
        earlier = records.pop(path, None)
        first = next(filter(_is_tokens, output), None) if isinstance(output, tuple) else output
        made = first if isinstance(first, Tensor) and first.ndim in (3, 4) else None
        records[path] = _Record(
            module=modules[path],
            order=next(clock),
            count=1 if earlier is None else earlier.count + 1,
            inputs=list(_maps(inputs)),
            output=made,
            version=0 if made is None else made._version,
            shape=tuple(output.shape) if isinstance(output, Tensor) else None,
        )

    with forward_hooks(model, modules, record), torch.no_grad():
        logits = model(images)
    grids = _Grids.of(model, records.values(), size)
    return {path: grids.call(each) for path, each in records.items()}, logits


@dataclass(slots=True)
class _Grids:
    """Tells which tensors are maps."""

    size: int
    prefix_tokens: int
    """What the network itself says."""
    sides: set[int]
    """Of maps that are known to be squares, and of such maps at half the resolution, and so on."""
    windows: set[tuple[int, int]]
    """Numbers of windows, and of positions in each, of images that were divided into windows."""
    reorders: int | None
    """When a module ran that puts tokens into another order."""

    @classmethod
    def of(cls, model: nn.Module, records: Any, size: int) -> _Grids:
        convolved = {
            each.shape[2]
            for each in records
            if isinstance(each.module, nn.Conv2d) and _is_square(each.shape) and each.shape[2] >= max(2, size // 64)
        }
        embedded = {size // patch for patch in PATCHES}  # where no convolution tells: it ran on each patch alone
        sides = {-(-side // 2**times) for side in convolved or embedded for times in range(6)} - {0, 1}
        divided = [
            (each.shape[1], each.shape[2])
            for each in records
            if isinstance(each.module, nn.Linear) and each.shape is not None and len(each.shape) == 4
        ]
        windows = {
            (a, b) for a, b in divided if a != b and math.isqrt(a * b) in sides and math.isqrt(a * b) ** 2 == a * b
        }
        said = getattr(model, "num_prefix_tokens", 0)
        reorders = next((each.order for each in records if _puts_in_another_order(each.module)), None)
        return cls(size, said if isinstance(said, int) else 0, sides, windows, reorders)

    def call(self, record: _Record) -> Call:
        given = next((tensor for tensor in record.inputs if self.grid(tensor)), None)
        if given is None:
            given = next((tensor for tensor in record.inputs if tensor.ndim == 4), None)
        made, is_linear = record.output, isinstance(record.module, nn.Linear)
        return Call(
            module=record.module,
            order=record.order,
            count=record.count,
            input_id=None if given is None else id(given),
            input=None if given is None else self.grid(given),
            output_id=None if made is None else (id(made), record.version),
            output_shape=record.shape,
            output=None if made is None else self._ordered(self.grid(made, is_linear), record.order),
            alone=record.shape is not None,
        )

    def _ordered(self, grid: Grid | None, order: int) -> Grid | None:
        if grid is None or self.reorders is None or order < self.reorders:
            return grid
        return grid._replace(layout=replace(grid.layout, in_order=False))

    def grid(self, tensor: Tensor, is_linear: bool = False) -> Grid | None:
        shape = tensor.shape
        if shape[0] != 1 or 0 in shape:  # windows or heads in the dimension of the batch
            return None
        if tensor.ndim == 3:
            return self._tokens(shape[1], shape[2])
        if shape[2] == shape[3] and not is_linear:
            return self._grid(shape[2], shape[1], CHANNELS_FIRST)
        if shape[1] == shape[2] and shape[1] in self.sides:
            return self._grid(shape[1], shape[3], MapLayout(channels_last=True))
        if (shape[1], shape[2]) in self.windows:
            side = math.isqrt(shape[1] * shape[2])
            return self._grid(side, shape[3], MapLayout(channels_last=True, in_order=False))
        return None

    def _tokens(self, count: int, channels: int) -> Grid | None:
        for prefix in (self.prefix_tokens, *range(MAX_PREFIX_TOKENS + 1)):
            side = math.isqrt(max(0, count - prefix))
            if side in self.sides and side * side == count - prefix:
                return self._grid(side, channels, MapLayout(channels_last=True, prefix_tokens=prefix))
        return None

    def _grid(self, side: int, channels: int, layout: MapLayout) -> Grid:
        return Grid(side, channels, layout, 1 << max(0, round(math.log2(self.size / side))))


def _puts_in_another_order(module: nn.Module) -> bool:
    """Hiera's tokens come by windows within windows; its class is not imported, for all of timm would come along."""
    return (type(module).__module__, type(module).__name__) == ("timm.models.hiera", "Unroll")


def _is_square(shape: tuple[int, ...] | None) -> TypeGuard[tuple[int, ...]]:
    return shape is not None and len(shape) == 4 and shape[0] == 1 and shape[2] == shape[3]


def _is_tokens(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim == 3 and value.shape[0] == 1


def _maps(value: Any) -> Iterator[Tensor]:
    """The tensors in a module's arguments that may be maps (a dense layer gets a list of them)."""
    if isinstance(value, Tensor):
        if value.ndim in (3, 4):
            yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _maps(item)
    elif isinstance(value, dict):
        yield from _maps(list(value.values()))
