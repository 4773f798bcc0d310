"""Find a network's head and the layers to hook, from one forward pass.

The rule extends the paper's layers (arXiv 1901.09229) to other families: the last convolution inside the last block
whose output has stride 4, 8, 16 and 32, never one in the block that strides.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from delta_tune.config import UserError
from delta_tune.models.feature_maps import forward_hooks

STANDARD_SIZE = 224  # strides are always read at this input size, so that they do not depend on the user's
STRIDES = (4, 8, 16, 32)
HEAT_MAP_SIDE = 10
"""Positions of a side of a heat map at least, where there are so many."""


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
    input_stride: int | None
    output_id: tuple[int, int] | None
    """Identity and version of the returned map; a later in-place operation changes the version."""
    output_shape: tuple[int, ...] | None
    output_stride: int | None
    """None if the output is not a (B, C, S, S) map."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NetworkLayers:
    """The head and the layers that can be hooked."""

    head: str
    """Path of the Linear or 1×1 Conv2d that computes the logits."""
    layers: tuple[str, ...]
    """Hooked layers in execution order, at most one per stride."""
    channels: dict[str, int]
    """Channels of each module before the head that runs once and returns a (B, C, S, S) map, in execution order."""
    stride: int
    """Stride of the last hooked layer: the smallest sensible image size."""


def find_layers(model: nn.Module, name: str, size: int = STANDARD_SIZE) -> NetworkLayers:
    """Find head and hooked layers of a classification network in eval mode, with one forward pass at 224 pixels.

    Raises:
        UserError: the network does not run at that size, has no replaceable head, or no convolutional stages.
    """
    try:
        calls, logits = _trace(model, torch.zeros(1, 3, size, size))
    except (RuntimeError, ValueError, AssertionError, TypeError) as error:
        raise UserError(
            f"The model {name} does not run on a square RGB image of {size} pixels ({first_line(error)}); "
            "name a convolutional classification network that takes any image size, such as resnet50."
        ) from error
    head = _find_head(calls, logits, name)
    blocks = sorted(_blocks(model, "", calls), key=lambda block: calls[block].order)
    layers = tuple(_hooks(calls, blocks, head))
    if not layers:
        raise UserError(
            f"The model {name} has no convolutional stages of stride 4 to 32, so no feature maps to compare; "
            "name a convolutional network such as resnet50."
        )
    channels = {
        path: call.output_shape[1]
        for path, call in calls.items()
        if call.output_stride is not None
        and call.output_shape is not None
        and call.count == 1
        and call.order < calls[head].order
        and not isinstance(call.module, nn.Linear)
    }
    stride = calls[layers[-1]].output_stride
    assert stride is not None
    return NetworkLayers(head=head, layers=layers, channels=channels, stride=stride)


class MapLayer(NamedTuple):
    """A layer that returns a feature map."""

    name: str
    side: int
    """Positions of a side of its map."""


def heat_map_layer(
    model: nn.Module, head: str, image_size: int, channels: int = 3, least: int = HEAT_MAP_SIDE
) -> MapLayer:
    """The layer whose output says best where in an image a network of this architecture finds what it looks for.

    It is the last block whose output has at least 10 × 10 positions, or the last of those that have most; of a network
    without blocks, the last such layer. The very last map of a network has fewer positions, 3 × 3 at 96 pixels, and
    tells next to nothing (benchmarks/heat_maps.py).

    Args:
        model: in eval mode; it runs once.
        head: module path of its head.
        image_size: side of its input, in pixels.
        channels: of its input.
        least: positions of a side at least, ≥ 2.

    Raises:
        UserError: all its maps have a single position at this size.
    """
    device = next(model.parameters()).device
    calls, _ = _trace(model, torch.zeros(1, channels, image_size, image_size, device=device))
    sides = {path: side for path, call in calls.items() if call.order < calls[head].order and (side := _side(call)) > 1}
    if not sides:
        raise UserError(
            f"At {image_size} pixels every feature map of this {type(model).__name__} has a single position, so "
            f"nothing tells where it looks; take a model of larger images."
        )
    candidates = [path for path in _blocks(model, "", calls) if path in sides] or list(sides)
    enough = min(least, max(sides[path] for path in candidates))
    name = max((path for path in candidates if sides[path] >= enough), key=lambda path: calls[path].order)
    return MapLayer(name, sides[name])


def _side(call: Call) -> int:
    """Positions of a side of a module's map; 0 if it returns none, runs more than once, or enlarges what it gets."""
    if call.output_stride is None or call.output_shape is None or call.count > 1:
        return 0
    # VGG's pooling makes 7 × 7 of whatever it gets
    is_enlarged = call.input_stride is not None and call.output_stride < call.input_stride
    return 0 if is_enlarged else call.output_shape[2]


def _trace(model: nn.Module, images: Tensor) -> tuple[dict[str, Call], Any]:
    """The last call of every module, in finishing order, and the network's output."""
    modules = {path: module for path, module in model.named_modules() if path}
    calls: dict[str, Call] = {}
    clock = itertools.count()
    alive: list[Tensor] = []  # an id is unique only while its tensor is alive

    def record(path: str, inputs: Any, output: Any) -> None:
        given = next(_maps(inputs), None)
        made = output if isinstance(output, Tensor) and output.ndim == 4 else None
        earlier = calls.pop(path, None)
        alive.extend(tensor for tensor in (given, made) if tensor is not None)
        calls[path] = Call(
            module=modules[path],
            order=next(clock),
            count=1 if earlier is None else earlier.count + 1,
            input_id=None if given is None else id(given),
            input_stride=_stride(given),
            output_id=None if made is None else (id(made), made._version),
            output_shape=tuple(output.shape) if isinstance(output, Tensor) else None,
            output_stride=_stride(made),
        )

    with forward_hooks(model, modules, record), torch.no_grad():
        logits = model(images)
    return calls, logits


def _maps(value: Any) -> Iterator[Tensor]:
    """The 4-D tensors in a module's arguments (a dense layer gets a list of them)."""
    if isinstance(value, Tensor):
        if value.ndim == 4:
            yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _maps(item)
    elif isinstance(value, dict):
        yield from _maps(list(value.values()))


def _stride(tensor: Tensor | None) -> int | None:
    # Channels-last maps (B, S, S, C) inside some blocks are recognised by their unequal last sides.
    if tensor is None or tensor.shape[2] != tensor.shape[3] or tensor.shape[2] == 0:
        return None
    return 1 << max(0, round(math.log2(STANDARD_SIZE / tensor.shape[2])))


def _find_head(calls: dict[str, Call], logits: Any, name: str) -> str:
    last = next((path for path in reversed(calls) if isinstance(calls[path].module, nn.Linear | nn.Conv2d)), None)
    if last is not None and isinstance(logits, Tensor) and logits.ndim == 2:
        module, shape = calls[last].module, calls[last].output_shape
        pointwise = isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1))
        if pointwise and calls[last].count == 1 and shape is not None and shape[1] == logits.shape[1]:
            return last
    raise UserError(
        f"The model {name} does not end in one Linear or 1×1 Conv2d that makes its logits, so its head cannot be "
        "replaced; name a classification network such as resnet50."
    )


def _blocks(module: nn.Module, path: str, calls: dict[str, Call]) -> list[str]:
    """Paths of the blocks (residual, dense, …) that the stages in `module` consist of."""
    inner = [
        block
        for child_name, child in module.named_children()
        for block in _blocks(child, f"{path}.{child_name}" if path else child_name, calls)
    ]
    call = calls.get(path)
    if call is None or _is_chain(module) or call.output_stride is None:
        return inner
    if inner:
        last = max(inner, key=lambda block: calls[block].order)
        ends_with_it = calls[last].output_id == call.output_id
        # Cross-stage partial networks: a stage that strides, then runs a chain of blocks, then merges.
        holds_chain = any(_is_chain(child) and _starts(inner, p) for p, child in _descendants(module, path))
        if ends_with_it or (call.input_stride != call.output_stride and holds_chain):
            return inner
        return [path]
    return [path] if sum(_is_parametrised(c) for p, c in calls.items() if p.startswith(f"{path}.")) >= 2 else []


def _is_chain(module: nn.Module) -> bool:
    """Whether the module only runs its children in order, or only holds them."""
    return isinstance(module, nn.ModuleList) or (
        isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward
    )


def _descendants(module: nn.Module, path: str) -> Iterator[tuple[str, nn.Module]]:
    return ((f"{path}.{name}", child) for name, child in module.named_modules() if name)


def _starts(paths: list[str], parent: str) -> bool:
    return any(path.rpartition(".")[0] == parent for path in paths)


def _is_parametrised(call: Call) -> bool:
    """Convolutions and channels-last linear layers over more than one pixel; excludes squeeze-and-excitation."""
    shape = call.output_shape
    return isinstance(call.module, nn.Conv2d | nn.Linear) and shape is not None and len(shape) == 4 and shape[2] > 1


def _hooks(calls: dict[str, Call], blocks: list[str], head: str) -> Iterator[str]:
    for stride in STRIDES:
        of_stride = [block for block in blocks if calls[block].output_stride == stride]
        keeping = [block for block in of_stride if calls[block].input_stride == stride]
        if keeping:
            yield _last_convolution(calls, keeping[-1])
        elif not of_stride:  # a plain chain
            yield from _plain_convolutions(calls, blocks, head, stride)[-1:]


def _last_convolution(calls: dict[str, Call], block: str) -> str:
    """The last convolution in the block whose output has the block's shape; the block itself if it concatenates."""
    convolutions = [
        path
        for path, call in calls.items()
        if path.startswith(f"{block}.")
        and isinstance(call.module, nn.Conv2d)
        and call.output_shape == calls[block].output_shape
    ]

    def is_projection(path: str) -> bool:
        # A shortcut's convolution may run last; unlike the main branch's, it reads the block's own input.
        child = f"{block}.{path[len(block) + 1 :].split('.')[0]}"
        return child in calls and calls[child].input_id == calls[block].input_id

    main = [path for path in convolutions if not is_projection(path)] or convolutions
    return main[-1] if main else block


def _plain_convolutions(calls: dict[str, Call], blocks: list[str], head: str, stride: int) -> list[str]:
    """Convolutions outside blocks that keep the stride, except the head and a final 1×1 expansion after the blocks."""
    end = calls[blocks[-1]].order if blocks else math.inf
    return [
        path
        for path, call in calls.items()
        if isinstance(call.module, nn.Conv2d)
        and call.input_stride == call.output_stride == stride
        and path != head
        and not (call.module.kernel_size == (1, 1) and call.order > end)
        and not any(path.startswith(f"{block}.") for block in blocks)
    ]


def first_line(error: BaseException) -> str:
    """The first line of an exception's message, or its type."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
