"""Forward passes from a layer on, for networks that cannot be traced.

What ran before the layer gives the same in every pass, whatever becomes of the layer's output. So modules that finished
before it return what they returned in the first pass, and only the code between them runs again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from delta_tune.models.feature_maps import forward_hooks


@contextmanager
def prefix_kept(model: nn.Module, layer: str, images: Tensor) -> Iterator[None]:
    """While the block runs, `model(images)` computes nothing again that finished before `layer` was called.

    Args:
        model: in eval mode; it must be called with `images` only.
        layer: name of a module that runs.
        images: (B, 3, H, W).
    """
    logits, outputs = _outputs_before(model, layer, images)
    modules = {name: model.get_submodule(name) for name in outputs}
    kept = {name: module for name, module in modules.items() if "forward" not in vars(module)}
    try:
        for name, module in kept.items():
            module.forward = _returning(outputs[name])
        if not torch.equal(model(images), logits):  # code between the modules keeps a state of its own
            _run_again(kept)
        yield
    finally:
        _run_again(kept)


def _run_again(kept: dict[str, nn.Module]) -> None:
    while kept:
        _, module = kept.popitem()
        del module.forward


def _outputs_before(model: nn.Module, layer: str, images: Tensor) -> tuple[Tensor, dict[str, Any]]:
    """The logits, and the outputs of the outermost modules that ran once and finished before the layer was called."""
    outputs: dict[str, Any] = {}
    calls: Counter[str] = Counter()
    called = False

    def note_call(module: nn.Module, inputs: Any) -> None:
        nonlocal called
        called = True

    def keep(name: str, inputs: Any, output: Any) -> None:
        calls[name] += 1
        if not called:
            for inner in [each for each in outputs if each.startswith(f"{name}.")]:
                del outputs[inner]
            if _are_tensors(output):
                outputs[name] = _copied(output)

    names = [name for name, _ in model.named_modules() if name]
    with model.get_submodule(layer).register_forward_pre_hook(note_call), forward_hooks(model, names, keep):
        logits: Tensor = model(images)
    return logits, {name: output for name, output in outputs.items() if calls[name] == 1}


def _are_tensors(output: Any) -> bool:
    return isinstance(output, Tensor) or (
        type(output) in (list, tuple) and all(isinstance(each, Tensor | None) for each in output)
    )


def _returning(output: Any) -> Any:
    return lambda *args, **kwargs: _copied(output)


def _copied(output: Any) -> Any:
    """A copy, because the network may write into what a module returned."""
    if isinstance(output, Tensor):
        return output.clone()
    return type(output)(None if each is None else each.clone() for each in output)
