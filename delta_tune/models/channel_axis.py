"""Operations that move channels without mixing them: which axis has them afterwards.

Axes count the batch as 0; shapes leave it out, so axis `a` has size `shape[a - 1]`.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import fx, nn
from torchvision.ops import Permute

AxisAfter = Callable[[torch.Size, torch.Size, int], int | None]
"""From an operation's input and output shape, and the input's channel axis, to the output's; None if it mixes."""

_VIEWS = {
    torch.flatten, torch.reshape, torch.unflatten, torch.squeeze, torch.unsqueeze,
    "view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze",
}  # fmt: skip
_UNCHANGED = {"contiguous", "float"}
_REDUCTIONS = {torch.mean, torch.sum, torch.amax, "mean", "sum", "amax"}


def axis_after_module(module: nn.Module) -> AxisAfter | None:
    """How a module moves channels; None if it mixes them."""
    if type(module) is Permute:
        return _after_permutation(module.dims)
    return after_view if isinstance(module, nn.Flatten | nn.Unflatten) else None


def axis_after(node: fx.Node) -> AxisAfter | None:
    """How a function or method moves channels; None if it mixes them."""
    target, rest = node.target, cast(tuple[Any, ...], node.args[1:])
    if target in _UNCHANGED:
        return unchanged
    if target in _VIEWS:
        return after_view
    if target in (torch.permute, "permute"):
        dims = rest[0] if len(rest) == 1 else rest
        return _after_permutation(dims) if isinstance(dims, list | tuple) and _are_numbers(dims) else None
    if target in (torch.transpose, "transpose", torch.swapaxes, "swapaxes") and _are_numbers(rest) and len(rest) == 2:
        a, b = rest
        return lambda before, after, axis: _after_swap(a % (len(before) + 1), b % (len(before) + 1), axis)
    if target in _REDUCTIONS:
        return _after_reduction(node.kwargs.get("dim", rest[0] if rest else None), rest, node.kwargs)
    if target is operator.getitem and isinstance(rest[0], tuple):
        index = rest[0]
        return lambda before, after, axis: _after_index(index, axis)
    return None


def unchanged(before: torch.Size, after: torch.Size, axis: int) -> int:
    """The axis after an operation that changes no number."""
    return axis


def after_view(before: torch.Size, after: torch.Size, axis: int) -> int | None:
    """The axis after a view or a reshape: as many numbers lie before it as before, and it has the same size."""
    ahead = math.prod(before[: axis - 1])
    for place, size in enumerate(after):
        if math.prod(after[:place]) == ahead and size == before[axis - 1]:
            return place + 1
    return None


def _after_permutation(dims: Any) -> AxisAfter:
    def after(before: torch.Size, after: torch.Size, axis: int) -> int | None:
        order = [d % len(dims) for d in dims]
        return order.index(axis) if order[0] == 0 else None

    return after


def _after_swap(a: int, b: int, axis: int) -> int | None:
    if 0 in (a, b):
        return None
    return {a: b, b: a}.get(axis, axis)


def _after_reduction(dim: Any, rest: tuple[Any, ...], keywords: Mapping[str, Any]) -> AxisAfter | None:
    dims = (dim,) if isinstance(dim, int) else dim
    if not isinstance(dims, list | tuple) or not _are_numbers(dims):
        return None
    keep = bool(keywords.get("keepdim", rest[1] if len(rest) > 1 else False))

    def after(before: torch.Size, after: torch.Size, axis: int) -> int | None:
        gone = {d % (len(before) + 1) for d in dims}
        if gone & {0, axis}:
            return None
        return axis if keep else axis - sum(d < axis for d in gone)

    return after


def _after_index(index: tuple[Any, ...], axis: int) -> int | None:
    if not all(type(each) is int or isinstance(each, slice) for each in index) or index[0] != slice(None):
        return None
    if axis < len(index) and index[axis] != slice(None):
        return None
    return axis - sum(type(each) is int for each in index[:axis])


def _are_numbers(values: Any) -> bool:
    return all(type(value) is int for value in values)
