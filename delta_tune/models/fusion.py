"""Make a frozen network faster: fold batch norms into convolutions, fuse activations, cast weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from typing import Any

import torch
from timm.layers import BatchNormAct2d  # type: ignore[attr-defined]
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from delta_tune.models.fused_convolution import Activation, Conv, activation_of, conv_of, is_plain
from delta_tune.models.graph import Tracer


class _Fused(nn.Module):
    """A convolution and the activation after it, as one module without parameters."""

    def __init__(self, conv: Conv, activation: Activation | None, module: nn.Module) -> None:
        super().__init__()
        self._conv, self._activation = conv, activation
        self._plain = (module,)  # in a tuple: its parameters are not this module's

    def __getattr__(self, name: str) -> Any:
        """What the convolution has: DaViT, for one, asks its convolutions for their kernels' size."""
        return getattr(self.__dict__["_plain"][0], name) if "_plain" in self.__dict__ else super().__getattr__(name)

    def forward(self, x: Tensor) -> Tensor:
        return self._conv(x, self._activation)


def fold_batch_norms(model: nn.Module, keep: Collection[str]) -> int:
    """Fold batch norms into the convolutions before them, in place; return how many were folded.

    Args:
        model: in eval mode. If torch.fx cannot trace it, nothing is folded.
        keep: names of modules whose own output is needed.
    """
    modules, folded = dict(model.named_modules()), 0
    for before, after in _followers(model, keep):
        convolution, norm = modules[before], modules.get(after)
        if isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None:
            _replace(model, before, fuse_conv_bn_eval(convolution, norm))
            _replace(model, after, norm.act if isinstance(norm, BatchNormAct2d) else nn.Identity())
            folded += 1
    return folded


def fuse_activations(model: nn.Module, keep: Collection[str]) -> int:
    """Fuse activations into the convolutions before them with oneDNN, in place; return how many were fused.

    The values stay the same; each activation saves a pass through memory. Arguments as for `fold_batch_norms`; the
    network must be frozen, on the CPU and in float32.
    """
    modules, fused = dict(model.named_modules()), 0
    for before, after in _followers(model, keep):
        if (conv := conv_of(modules[before])) is None:
            continue
        activation = activation_of(modules[after]) if after else None
        _replace(model, before, _Fused(conv, activation, modules[before]))
        if activation is not None:
            _replace(model, after, nn.Identity())
        fused += 1
    return fused


def cast_weights(model: nn.Module, dtype: torch.dtype) -> None:
    """Keep the weights that autocast to `dtype` would cast at each forward pass in that type, in place.

    The values stay those of autocast. Norms keep float32, which autocast leaves them.
    """
    for module in model.modules():
        if is_plain(module) or type(module) is nn.Linear:
            module.to(dtype)


def _followers(model: nn.Module, keep: Collection[str]) -> Iterator[tuple[str, str]]:
    """Each convolution that runs once, and the only module that reads its output.

    Identities in between are skipped. "" means there is no such module, or a needed output lies in between.
    """
    try:
        graph = Tracer(hooked={}, opaque=()).trace(model)
    except Exception:  # forward() is foreign code; without fusion the network is only slower
        return
    modules = dict(model.named_modules())
    calls = Counter(node.target for node in graph.nodes if node.op == "call_module")

    def reader(node: fx.Node) -> str:
        users = list(node.users)
        if len(users) != 1 or users[0].op != "call_module" or calls[users[0].target] != 1:
            return ""
        name = str(users[0].target)
        if any(_within(str(node.target), layer) and not _within(name, layer) for layer in keep):
            return ""
        return reader(users[0]) if isinstance(modules[name], nn.Identity) else name

    for node in graph.nodes:
        if node.op == "call_module" and is_plain(modules[str(node.target)]) and calls[node.target] == 1:
            yield str(node.target), reader(node)


def _within(module: str, layer: str) -> bool:
    return module == layer or module.startswith(f"{layer}.")


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, own = name.rpartition(".")
    setattr(model.get_submodule(parent), own, module)
