"""A frozen network made faster: batch norms folded into the convolutions before them, activations fused into them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator

from timm.layers import BatchNormAct2d  # type: ignore[attr-defined]
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from delta_tune.models.fused_convolution import Activation, Conv, activation_of, conv_of, is_plain
from delta_tune.models.graph import is_leaf


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return is_leaf(m)


class _Fused(nn.Module):
    """A convolution and the activation behind it, as one module without parameters."""

    def __init__(self, conv: Conv, activation: Activation | None) -> None:
        super().__init__()
        self._conv, self._activation = conv, activation

    def forward(self, x: Tensor) -> Tensor:
        return self._conv(x, self._activation)


def fold_batch_norms(model: nn.Module, keep: Collection[str]) -> int:
    """Fold each batch norm into the convolution that alone feeds it, in place; how many there were.

    Args:
        model: in eval mode. Where torch.fx cannot trace it, nothing is folded.
        keep: names of modules whose own output is wanted.
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
    """Run each convolution with the activation that alone reads it through oneDNN, in place; how many convolutions.

    The same values, without a pass through memory for each activation. Arguments as of `fold_batch_norms`; the network
    must be frozen, on the CPU and in float32.
    """
    modules, fused = dict(model.named_modules()), 0
    for before, after in _followers(model, keep):
        if (conv := conv_of(modules[before])) is None:
            continue
        activation = activation_of(modules[after]) if after else None
        _replace(model, before, _Fused(conv, activation))
        if activation is not None:
            _replace(model, after, nn.Identity())
        fused += 1
    return fused


def _followers(model: nn.Module, keep: Collection[str]) -> Iterator[tuple[str, str]]:
    """Each convolution that runs once, with the module that is the only reader of its output.

    Identities between them are passed over. "" stands for no such module, or one on the other side of an output that
    is wanted.
    """
    try:
        graph = _Tracer().trace(model)
    except Exception:  # forward() is foreign code; a network as it stands is only slower
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
