"""Hooks on named layers, the maps that these return, and a network cut at its head."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn

from delta_tune.config import UserError

Hook = Callable[[str, Any, Any], Tensor | None]
"""Called with a layer's name, its inputs (positional, by keyword) and its output, which a tensor returned replaces."""


@contextmanager
def forward_hooks(model: nn.Module, layers: Iterable[str], hook: Hook) -> Iterator[None]:
    """Call `hook` after each forward pass of the modules `layers` while the block runs."""

    def call(layer: str, module: nn.Module, args: Any, kwargs: Any, output: Any) -> Tensor | None:
        return hook(layer, (args, kwargs), output)

    with ExitStack() as handles:
        for layer in layers:
            module = model.get_submodule(layer)
            handles.enter_context(module.register_forward_hook(partial(call, layer), with_kwargs=True))
        yield


class _Stop(Exception):
    """Ends a forward pass after the last hooked module."""


class FeatureMaps(dict[str, Tensor]):
    """Layer → its raw output (B, C, H, W) in the most recent forward pass."""

    def __init__(self, model: nn.Module, num_layers: int, stop: bool) -> None:
        super().__init__()
        self._model = model
        self._num_layers = num_layers
        self._stop = stop
        self._copies: dict[str, Tensor] = {}  # with which the network went on
        self._untouched: set[str] = set()  # layers whose maps nothing writes into
        self._versions: dict[str, int] = {}  # of these maps, as they were made

    def begin(self) -> None:
        """Called before each forward pass: forget the maps of the pass before.

        Where nothing wrote into the copy of a map in the first pass, later passes go on with the map itself.
        """
        if not torch.compiler.is_compiling():  # compiled code goes on with copies
            for layer in self._untouched & self.keys():
                assert self[layer]._version == self._versions[layer], f"{layer} is overwritten in some passes only"
            self._untouched |= {layer for layer, copy in self._copies.items() if copy._version == 0}
            self._copies.clear()
        self.clear()

    def run(self, images: Tensor) -> FeatureMaps:
        """Run one forward pass of `images` (B, 3, H, W); with `stop` it ends at the last hooked layer."""
        with suppress(_Stop):
            self._model(images)
        assert len(self) == self._num_layers, "a hooked layer did not run"
        return self

    def record(self, layer: str, inputs: Any, output: Tensor) -> Tensor | None:
        """The hook that fills this."""
        self[layer] = output
        if self._stop and len(self) == self._num_layers:
            raise _Stop
        # Without a copy `out += identity` or an in-place ReLU would overwrite ours
        if torch.compiler.is_compiling():
            return output.clone()
        if layer in self._untouched and not output.is_inference():
            self._versions[layer] = output._version
            return None
        copy = output.clone()
        if not copy.is_inference():
            self._copies[layer] = copy
        return copy


@contextmanager
def feature_maps(model: nn.Module, layers: Sequence[str], *, stop: bool = False) -> Iterator[FeatureMaps]:
    """Hook the modules `layers` of `model` while the block runs; each forward pass refills the yielded maps.

    The caller sets the grad mode. The maps are the modules' raw outputs. With `stop`, call `maps.run(images)`: it
    computes nothing after the last hooked layer.
    """
    maps = FeatureMaps(model, len(set(layers)), stop)
    with model.register_forward_pre_hook(lambda module, args: maps.begin()), forward_hooks(model, layers, maps.record):
        yield maps


def head_inputs(model: nn.Module, head: str, images: Tensor) -> Tensor:
    """The input of the module `head` for `images` (B, 3, H, W): (B, D), or (B, C, h, w) for a convolution.

    The forward pass ends there. The caller sets the grad mode.
    """
    found: list[Tensor] = []

    def catch(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        found.append(args[0])
        raise _Stop

    with model.get_submodule(head).register_forward_pre_hook(catch), suppress(_Stop):
        model(images)
    assert len(found) == 1, f"the head {head} did not run"
    return found[0]


def head_function(
    model: nn.Module, head: str, *, image_size: int = 224, channels: int = 3
) -> Callable[[Tensor], Tensor]:
    """A function from the result of `head_inputs` to the logits (B, K): the head and everything after it.

    SqueezeNet, for example, pools after its head. Parameters are shared with `model`. One forward pass in eval mode at
    `image_size`, for images of `channels` channels, determines what follows the head.

    Raises:
        UserError: the part after the head cannot be separated from the network.
    """
    module = model.get_submodule(head)
    weight = next(module.parameters())
    images = torch.rand(1, channels, image_size, image_size, generator=torch.Generator().manual_seed(0)).to(weight)
    training = [part for part in model.modules() if part.training]
    model.eval()
    try:
        with torch.no_grad():
            logits: Tensor = model(images)
            head_output: Tensor = module(head_inputs(model, head, images))
    finally:
        for part in training:
            part.training = True
    flat = head_output.flatten(1)
    if flat.shape == logits.shape and torch.allclose(flat, logits):
        return lambda inputs: module(inputs).flatten(1)
    return _cut_behind(model, head)


def _cut_behind(model: nn.Module, head: str) -> Callable[[Tensor], Tensor]:
    """The part of the network from `head` on, traced by torch.fx."""
    try:
        whole = fx.Tracer().trace(model)
        part = fx.Graph()
        copies: dict[fx.Node, fx.Node] = {}
        for node in whole.nodes:
            if node.op == "call_module" and node.target == head:
                inputs = part.placeholder("inputs")
                copies[node] = part.call_module(head, (inputs,))
            elif node.op == "get_attr" or any(argument in copies for argument in node.all_input_nodes):
                copies[node] = part.node_copy(node, lambda argument: copies[argument])
        return fx.GraphModule(model, part)
    except Exception as error:  # tracing runs the network's code with proxies and may raise anything
        raise UserError(
            f"What follows the head {head!r} of this {type(model).__name__} cannot be cut out of it "
            f"({type(error).__name__}: {str(error).partition(chr(10))[0]}); choose a model whose logits are its last "
            f"layer's output."
        ) from error
