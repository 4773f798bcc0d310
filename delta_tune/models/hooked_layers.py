"""Find a network's head and the layers to hook, from one forward pass.

The rule extends the paper's layers (arXiv 1901.09229) to other families: the last convolution, or Linear over all
positions, inside the last block whose output has stride 4, 8, 16 and 32, never one in the block that strides. Of a
network whose blocks all have the same stride, such as a vision transformer, those of the blocks at a quarter, half,
three quarters and the end.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from delta_tune.config import UserError
from delta_tune.models.feature_maps import forward_hooks
from delta_tune.models.map_layout import CHANNELS_FIRST, MapLayout
from delta_tune.models.trace import STANDARD_SIZE, Call, trace

STRIDES = (4, 8, 16, 32)
HEAT_MAP_SIDE = 10
"""Positions of a side of a heat map at least, where there are so many."""
BLOCKS_FROM_THE_END = 3
"""Whose last tokens tell best where evidence is, 1 for the last block: later ones have mixed the places more."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NetworkLayers:
    """The head and the layers that can be hooked."""

    head: str
    """Path of the Linear or 1×1 Conv2d that computes the logits."""
    layers: tuple[str, ...]
    """Hooked layers in execution order, at most four."""
    channels: dict[str, int]
    """Channels of each module before the head that runs once and returns a square map, in execution order."""
    layouts: dict[str, MapLayout] = field(default_factory=dict)
    """Layouts of these modules' outputs."""
    stride: int
    """Stride of the last hooked layer: the smallest sensible image size."""


def find_layers(model: nn.Module, name: str, size: int = STANDARD_SIZE) -> NetworkLayers:
    """Find head and hooked layers of a classification network in eval mode, with one forward pass.

    Args:
        model: the network.
        name: of it, for messages.
        size: side of the image in pixels, at which it runs; strides refer to it.

    Raises:
        UserError: the network does not run at that size, has no replaceable head, or no maps to compare.
    """
    try:
        calls, logits = trace(model, torch.zeros(1, 3, size, size), size)
    except (RuntimeError, ValueError, AssertionError, TypeError) as error:
        raise UserError(
            f"The model {name} does not run on a square RGB image of {size} pixels ({first_line(error)}); "
            "name a classification network that does, such as resnet50."
        ) from error
    head = _find_head(calls, logits, name)
    blocks = sorted(_blocks(model, "", calls), key=lambda block: calls[block].order)
    grids = {
        path: call.output
        for path, call in calls.items()
        if call.output is not None and call.alone and call.count == 1 and call.order < calls[head].order
    }
    layers = tuple(layer for layer in _hooks(calls, blocks, head) if layer in grids)
    if not layers:
        raise UserError(
            f"The model {name} has no blocks of stride 4 to 32 that return a square of positions, so no feature maps "
            "to compare; name a network such as resnet50 or timm:vit_small_patch16_224."
        )
    return NetworkLayers(
        head=head,
        layers=layers,
        channels={path: grid.channels for path, grid in grids.items()},
        layouts={path: grid.layout for path, grid in grids.items()},
        stride=grids[layers[-1]].stride,
    )


class MapLayer(NamedTuple):
    """A layer that returns a feature map."""

    name: str
    side: int
    """Positions of a side of its map."""
    layout: MapLayout = CHANNELS_FIRST


def heat_map_layer(
    model: nn.Module, head: str, image_size: int, channels: int = 3, least: int = HEAT_MAP_SIDE
) -> MapLayer:
    """The layer whose output says best where in an image a network of this architecture finds what it looks for.

    It is the last block whose output has at least 10 × 10 positions, or the last of those that have most; of a network
    without blocks, the last such layer. The very last map of a network has fewer positions, 3 × 3 at 96 pixels, and
    tells next to nothing (benchmarks/heat_maps.py). Of a network whose blocks all return as many tokens, it is the last
    block but two (benchmarks/token_heat_maps.py); of others that answer by a class token, the last one whose other
    tokens still count.

    Args:
        model: in eval mode; it runs once, or twice.
        head: module path of its head.
        image_size: side of its input, in pixels.
        channels: of its input.
        least: positions of a side at least, ≥ 2.

    Raises:
        UserError: all its maps have a single position at this size.
    """
    images = torch.zeros(1, channels, image_size, image_size, device=next(model.parameters()).device)
    calls, _ = trace(model, images)
    sides = {path: side for path, call in calls.items() if call.order < calls[head].order and (side := _side(call)) > 1}
    if not sides:
        raise UserError(
            f"At {image_size} pixels every feature map of this {type(model).__name__} has a single position, so "
            f"nothing tells where it looks; take a model of larger images."
        )
    candidates = [path for path in _blocks(model, "", calls) if path in sides] or list(sides)
    enough = min(least, max(sides[path] for path in candidates))
    large = sorted((path for path in candidates if sides[path] >= enough), key=lambda path: calls[path].order)
    layers = [MapLayer(path, sides[path], _layout(calls[path])) for path in large]
    if (
        layers[-1].layout.channels_last
        and len(large) == len(candidates) > 1
        and len({sides[path] for path in large}) == 1
    ):
        return layers[-BLOCKS_FROM_THE_END:][0]
    if layers[-1].layout.prefix_tokens:
        return _last_that_matters(model, layers, images)
    return layers[-1]


def find_layouts(model: nn.Module, layers: Iterable[str], image_size: int, channels: int = 3) -> dict[str, MapLayout]:
    """The layouts of those of some layers that return a map; `model` is in eval mode and runs once."""
    calls, _ = trace(model, torch.zeros(1, channels, image_size, image_size, device=next(model.parameters()).device))
    return {
        path: call.output.layout
        for path in layers
        if (call := calls.get(path)) is not None and call.output is not None and call.alone
    }


def _layout(call: Call) -> MapLayout:
    assert call.output is not None
    return call.output.layout


def _last_that_matters(model: nn.Module, layers: Sequence[MapLayer], images: Tensor) -> MapLayer:
    """The last layer on whose positions the logits depend, not on its class token alone; the first if none is."""
    outputs: dict[str, Tensor] = {}

    def keep(path: str, inputs: Any, output: Tensor) -> None:
        outputs[path] = output

    with torch.enable_grad(), forward_hooks(model, [layer.name for layer in layers], keep):
        logits = model(images.clone().requires_grad_()).sum()
        found = torch.autograd.grad(logits, [outputs[layer.name] for layer in layers], allow_unused=True)
    for layer, gradient in zip(layers[::-1], found[::-1], strict=True):
        if gradient is not None and layer.layout.parts(gradient)[0].any():
            return layer
    return layers[0]


def _side(call: Call) -> int:
    """Positions of a side of a module's map; 0 if it returns none, runs more than once, or enlarges what it gets."""
    if call.output is None or not call.alone or call.count > 1 or not call.output.layout.in_order:
        return 0
    # VGG's pooling makes 7 × 7 of whatever it gets
    is_enlarged = call.input is not None and call.output.stride < call.input.stride
    return 0 if is_enlarged else call.output.side


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
        if (
            ends_with_it
            or (call.input_stride != call.output_stride and holds_chain)
            or (len(call.output_shape or ()) == 3 and _is_encoder(module, path, inner))
        ):
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


def _is_encoder(module: nn.Module, path: str, blocks: list[str]) -> bool:
    """Whether the module runs a chain of whole blocks, and something like a norm after them."""
    return any(
        _is_chain(child)
        and len(names := [f"{p}.{name}" for name, _ in child.named_children()]) > 1
        and set(names) <= set(blocks)
        for p, child in _descendants(module, path)
    )


def _is_parametrised(call: Call) -> bool:
    """Convolutions and channels-last linear layers over more than one pixel; excludes squeeze-and-excitation."""
    shape = call.output_shape
    if not isinstance(call.module, nn.Conv2d | nn.Linear) or shape is None:
        return False
    return shape[2] > 1 if len(shape) == 4 else call.output is not None


def _hooks(calls: dict[str, Call], blocks: list[str], head: str) -> Iterator[str]:
    linear = [block for block in blocks if _keeps_stride(calls[block]) and _last_linear(calls, blocks, block)]
    strides = {calls[block].output_stride for block in blocks if _keeps_stride(calls[block])}
    if linear and len(strides) == 1:
        quarters = [math.ceil(len(linear) * part / 4) - 1 for part in (1, 2, 3, 4)]
        yield from (_last_layer(calls, blocks, linear[index]) for index in sorted(set(quarters)))
        return
    for stride in STRIDES:
        of_stride = [block for block in blocks if calls[block].output_stride == stride]
        keeping = [block for block in of_stride if calls[block].input_stride == stride]
        if keeping:
            yield _last_layer(calls, blocks, keeping[-1])
        elif not of_stride:  # a plain chain
            yield from _plain_convolutions(calls, blocks, head, stride)[-1:]


def _keeps_stride(call: Call) -> bool:
    return call.output is not None and call.input_stride == call.output_stride


def _last_layer(calls: dict[str, Call], blocks: list[str], block: str) -> str:
    """The block's last convolution or Linear that returns as many positions and channels; else the block itself."""
    linear = _last_linear(calls, blocks, block)
    convolution = _last_convolution(calls, block, is_dense=linear is not None)
    return max((path for path in (convolution, linear) if path), key=lambda path: calls[path].order, default=block)


def _last_linear(calls: dict[str, Call], blocks: list[str], block: str) -> str | None:
    """The last Linear of as many channels as the block, if it returns all the block's positions.

    One that works on windows of the image returns them all only where the image is a single window.
    """
    given = calls[block].output
    assert given is not None
    found = [
        path
        for path, call in calls.items()
        if path.startswith(f"{block}.") and isinstance(call.module, nn.Linear) and _width(call) == given.channels
    ]
    if not found or (grid := calls[found[-1]].output) is None or grid[:2] != given[:2]:
        return None
    end = found[-1][len(block) :]
    alike = [calls[path] for other in blocks if (path := f"{other}{end}") in calls]
    is_of_windows = any(call.output_shape is not None and call.output_shape[0] > 1 for call in alike)
    return None if is_of_windows or calls[found[-1]].count > 1 else found[-1]


def _width(call: Call) -> int | None:
    return call.output_shape[-1] if call.output_shape else None


def _last_convolution(calls: dict[str, Call], block: str, is_dense: bool) -> str | None:
    """The last convolution in the block whose output has the block's shape.

    With `is_dense`, none that works channel by channel: ConvNeXt's blocks begin with one and end in a Linear.
    """
    convolutions = [
        path
        for path, call in calls.items()
        if path.startswith(f"{block}.")
        and isinstance(call.module, nn.Conv2d)
        and call.output_shape == calls[block].output_shape
        and not (is_dense and call.module.groups > 1)
    ]

    def is_projection(path: str) -> bool:
        # A shortcut's convolution may run last; unlike the main branch's, it reads the block's own input.
        child = f"{block}.{path[len(block) + 1 :].split('.')[0]}"
        return child in calls and calls[child].input_id == calls[block].input_id

    main = [path for path in convolutions if not is_projection(path)] or convolutions
    return main[-1] if main else None


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
