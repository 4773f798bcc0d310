"""Programs that read one token in the end: where only that token matters, only it is computed.

A ViT's head reads the class token. After the last attention each operation keeps tokens apart, so the others need not
go through the last MLP.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import partial

import torch
from torch import Tensor

from delta_tune.models.operations import Op


def keep_single_token(program: Sequence[Op]) -> list[Op]:
    """The program with the selection of a token moved as far ahead as it can be; operations after it are changed.

    It stays as it is if it selects several tokens, or if something else reads all of them.
    """
    selections = {op: op.token for op in program if op.token is not None and len(op.inputs[0].shape) == 2}
    if len(set(selections.values())) != 1 or program[-1] in selections:
        return list(program)
    (token,) = set(selections.values())
    early = _read_by_selections(program, selections.keys())
    single: dict[Op, Op] = {}
    result: list[Op] = []
    for op in program:
        if op in selections and op.inputs[0] in early:
            single[op] = op.inputs[0]
            continue
        if op in early:
            for whole in (i for i in op.inputs if i not in early and i not in single):
                single[whole] = Op(
                    whole.name, "move", (whole,), partial(_select, token=token), axis_after=_without_tokens
                )
                single[whole].shape = whole.shape[1:]
                result.append(single[whole])
            op.shape = op.shape[1:]
        op.inputs = tuple(single[i] if i in single and (op in early or i in selections) else i for i in op.inputs)
        result.append(op)
    return result


def _read_by_selections(program: Sequence[Op], selections: Collection[Op]) -> set[Op]:
    """Operations on tokens (B, T, C), each by itself, whose values are read by `selections` alone in the end."""
    readers: dict[Op, list[Op]] = {op: [] for op in program}
    for op in program:
        for i in op.inputs:
            readers[i].append(op)
    found: set[Op] = set()
    for op in reversed(program):
        if readers[op] and all(r in selections or r in found for r in readers[op]) and _keeps_tokens_apart(op):
            found.add(op)
    return found


def _keeps_tokens_apart(op: Op) -> bool:
    if op.static or op.rows != 1 or len(op.shape) != 2:
        return False
    if op.kind == "binary":
        return all(i.shape == op.shape for i in op.inputs)
    return op.kind in ("linear", "norm", "elementwise", "scale", "hook")


def _select(x: Tensor, token: int) -> Tensor:
    return x[:, token]


def _without_tokens(before: torch.Size, after: torch.Size, axis: int) -> int | None:
    return axis - 1 if axis > 1 else None
