"""What each operation of a traced network does to a channel."""

from __future__ import annotations

import copy
import functools
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from timm.layers import BatchNormAct2d, DropPath, LayerScale, LayerScale2d  # type: ignore[attr-defined]
from torch import Tensor, fx, nn
from torchvision.ops import StochasticDepth

from delta_tune.models.channel_axis import AxisAfter, axis_after, axis_after_module
from delta_tune.models.fused_convolution import RELU, Activation, Affine, Conv, activation_of, conv_of, is_plain

Kind = Literal[
    "input",
    "constant",
    "size",
    "hook",
    "conv",
    "affine",
    "linear",
    "elementwise",
    "scale",
    "norm",
    "pool",
    "flatten",
    "move",
    "binary",
    "cat",
    "opaque",
]
"""What an operation does to a channel j of a (B, C, H, W) input.

`affine`, `elementwise`, `pool`: output channel j depends on input channel j only (`affine` has a scale and shift per
channel, `elementwise` also keeps positions apart). `binary`: elementwise of two operands. `flatten`: (B, C, H, W) to
(B, C·H·W). Channels may also come last: `elementwise`, `binary`, `scale` (elementwise, with its own factors) and `move`
(permutes, reshapes, selects or averages positions) keep them apart on any axis. `norm`: a LayerNorm over the last axis.
`size`: numbers that follow from the shape of a value.
"""  # fmt: skip


@dataclass(slots=True, eq=False)
class Op:
    """One operation; `run` takes the values of `inputs`, which come earlier in the program."""

    name: str
    kind: Kind
    inputs: tuple[Op, ...]
    run: Callable[..., Any]
    conv: Conv | None = None
    affine: Affine | None = None
    linear: nn.Linear | None = None
    layer: str | None = None
    activation: Activation | None = None
    axis_after: AxisAfter | None = None
    """Of `move`."""
    token: int | None = None
    """Of `move`: which one of the second axis it selects; None if it does something else."""
    shape: torch.Size = field(default_factory=torch.Size)
    """Shape of the value without its first dimension; empty if the value is not a tensor."""
    rows: float = 1
    """First dimension of the value divided by the number of images: 1, or for windows of an image their number."""

    static: bool = field(init=False)
    """Whether the value follows from parameters and shapes alone."""

    def __post_init__(self) -> None:
        self.static = self.kind in ("constant", "size") or (bool(self.inputs) and all(i.static for i in self.inputs))

    @property
    def numbers(self) -> int:
        """Numbers in the value for one image."""
        return max(1, int(self.rows * self.shape.numel()))


_ELEMENTWISE_MODULES = (
    nn.ReLU, nn.ReLU6, nn.Hardtanh, nn.SiLU, nn.Hardswish, nn.Hardsigmoid, nn.Sigmoid, nn.Tanh, nn.GELU, nn.ELU,
    nn.SELU, nn.LeakyReLU, nn.Mish, nn.Softplus, nn.Softsign, nn.LogSigmoid,
)  # fmt: skip
_POOL_MODULES = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.LPPool2d, nn.ZeroPad2d)
_IDENTITY_MODULES = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.AlphaDropout, DropPath, StochasticDepth)
_ELEMENTWISE_FUNCTIONS = {
    torch.relu, F.relu, F.relu6, F.hardtanh, F.silu, F.hardswish, F.hardsigmoid, torch.sigmoid, F.sigmoid, torch.tanh,
    F.tanh, F.gelu, F.elu, F.leaky_relu, F.mish, F.softplus, torch.clamp, operator.neg, torch.abs, torch.exp,
}  # fmt: skip
_ELEMENTWISE_METHODS = {"relu", "sigmoid", "tanh", "clamp", "neg", "abs"}
_SCALE_MODULES = (LayerScale, LayerScale2d)
_POOL_FUNCTIONS = {F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d, F.adaptive_max_pool2d}
_BINARY_FUNCTIONS: dict[Any, Callable[..., Any]] = {
    operator.add: torch.add, operator.iadd: torch.add, torch.add: torch.add, "add": torch.add,
    operator.sub: torch.sub, torch.sub: torch.sub, "sub": torch.sub,
    operator.mul: torch.mul, operator.imul: torch.mul, torch.mul: torch.mul, "mul": torch.mul,
    operator.truediv: torch.div, torch.div: torch.div, "div": torch.div,
}  # fmt: skip


def writes_its_input(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    """Whether the operation of `node` may write into its first operand."""
    if node.op == "call_module":
        module = modules[str(node.target)]
        return bool(getattr(module, "inplace", False)) and not isinstance(module, _IDENTITY_MODULES)
    if node.op == "call_method":
        return str(node.target).endswith("_") and not str(node.target).endswith("__")
    return node.op == "call_function" and (
        bool(node.kwargs.get("inplace")) or getattr(node.target, "__name__", "").endswith("_")
    )


def hook_point(x: Tensor, layer: str) -> Tensor:
    """Mark the output of `layer` in a traced graph."""
    return x


def operation(node: fx.Node, modules: Mapping[str, nn.Module], ops: Mapping[fx.Node, Op], program: list[Op]) -> Op:
    """The operation of `node`: a new one, or that of its input if `node` is an identity."""
    if node.op == "placeholder":
        return Op(node.name, "input", (), run=lambda: None)
    if node.op == "get_attr":
        value: Any = functools.reduce(getattr, str(node.target).split("."), modules[""])
        return Op(node.name, "constant", (), run=lambda: value)
    inputs = tuple(ops[i] for i in node.all_input_nodes)
    first = inputs[0] if inputs else None
    if node.target is hook_point:
        assert first is not None
        return Op(node.name, "hook", (first,), run=lambda x: x, layer=str(node.args[1]))
    opaque = Op(node.name, "size" if _reads_shape(node) else "opaque", inputs, run=_opaque(node, modules))
    if opaque.static:
        return opaque
    of_channels = node.args[1:] == (1,) or node.kwargs == {"dim": 1}
    if node.target in (torch.cat, torch.concat) and of_channels and node.args[0] == node.all_input_nodes:
        return Op(node.name, "cat", inputs, run=lambda *values: torch.cat(values, 1))
    if first is None or not node.args or ops.get(node.args[0]) is not first:  # type: ignore[arg-type]
        return opaque
    if node.op == "call_module" and len(inputs) == 1 and len(node.args) == 1 and not node.kwargs:
        module = modules[str(node.target)]
        return _module_operation(node.name, module, first, opaque, program)
    return _function_operation(node, inputs, opaque, ops)


def _module_operation(name: str, module: nn.Module, x: Op, opaque: Op, program: list[Op]) -> Op:
    if isinstance(module, _IDENTITY_MODULES) or (type(module) is nn.Sequential and len(module) == 0):
        return x
    if is_plain(module):
        return _convolution(name, module, x, opaque)
    if isinstance(module, nn.BatchNorm2d) and type(module) in (nn.BatchNorm2d, BatchNormAct2d):
        affine = _batch_norm(name, module, x)
        if affine is None or type(module) is nn.BatchNorm2d:
            return affine or opaque
        program.append(affine)
        drop, act = cast(nn.Module, module.drop), cast(nn.Module, module.act)
        dropped = _module_operation(name, drop, affine, opaque, program)
        return dropped if dropped is opaque else _module_operation(name, act, dropped, opaque, program)
    if type(module) is nn.Linear:
        return Op(name, "linear", (x,), run=module, linear=module)
    if isinstance(module, _ELEMENTWISE_MODULES):
        return Op(name, "elementwise", (x,), run=_without_writing(module), activation=activation_of(module))
    if isinstance(module, _POOL_MODULES) and not getattr(module, "return_indices", False):
        return Op(name, "pool", (x,), run=module)
    if isinstance(module, nn.Flatten) and (module.start_dim, module.end_dim) == (1, -1):
        return Op(name, "flatten", (x,), run=lambda value: value.flatten(1))
    if isinstance(module, nn.LayerNorm) and len(module.normalized_shape) == 1:
        return Op(name, "norm", (x,), run=module)
    if isinstance(module, _SCALE_MODULES):
        return Op(name, "scale", (x,), run=_without_writing(module))
    if (after := axis_after_module(module)) is not None:
        return Op(name, "move", (x,), run=module, axis_after=after)
    return Op(name, "opaque", (x,), run=_without_writing(module))


def _convolution(name: str, module: nn.Conv2d, x: Op, opaque: Op) -> Op:
    conv = conv_of(module)
    return opaque if conv is None else Op(name, "conv", (x,), run=conv, conv=conv)


def _batch_norm(name: str, norm: nn.BatchNorm2d, x: Op) -> Op | None:
    if norm.running_mean is None or norm.running_var is None:
        return None
    mean, var = norm.running_mean, norm.running_var
    weight = torch.ones_like(mean) if norm.weight is None else norm.weight.detach()
    bias = torch.zeros_like(mean) if norm.bias is None else norm.bias.detach()
    scale = weight * torch.rsqrt(var + norm.eps)
    affine = Affine(scale, bias - mean * scale)
    return Op(name, "affine", (x,), run=affine, affine=affine)


def _function_operation(node: fx.Node, inputs: tuple[Op, ...], opaque: Op, ops: Mapping[fx.Node, Op]) -> Op:
    x, target, name = inputs[0], node.target, node.name
    is_function, rest = node.op == "call_function", node.args[1:]
    if target in (F.dropout, F.dropout2d) and not node.kwargs.get("training", True):
        return x
    if len(inputs) == 1:
        if (is_function and target in _ELEMENTWISE_FUNCTIONS) or (not is_function and target in _ELEMENTWISE_METHODS):
            relu = target in (torch.relu, F.relu, "relu")
            return Op(name, "elementwise", (x,), run=opaque.run, activation=RELU if relu else None)
        if is_function and target in _POOL_FUNCTIONS:
            return Op(name, "pool", (x,), run=opaque.run)
        if target in (torch.flatten, "flatten") and tuple(rest) in ((1,), (1, -1)) and not node.kwargs:
            return Op(name, "flatten", (x,), run=lambda value: value.flatten(1))
        if target in (torch.mean, "mean"):
            dims = node.kwargs.get("dim", rest[0] if rest else None)
            if isinstance(dims, list | tuple) and sorted(d % 4 for d in dims if isinstance(d, int)) == [2, 3]:
                keep = bool(node.kwargs.get("keepdim", rest[1] if len(rest) > 1 else False))
                pooled = Op(name, "pool" if keep else "flatten", (x,), run=_mean)
                return pooled if keep else Op(name, "flatten", (x,), run=lambda value: _mean(value).flatten(1))
    if target in _BINARY_FUNCTIONS and len(node.args) == 2 and not node.kwargs:
        function, other = _BINARY_FUNCTIONS[target], node.args[1]
        if isinstance(other, int | float):
            return Op(name, "elementwise", (x,), run=lambda value: function(value, other))
        if len(inputs) == 2:
            return Op(name, "binary", inputs, run=function)
    if all(i.static for i in inputs[1:]) and (after := axis_after(node)) is not None:
        return Op(name, "move", inputs, run=opaque.run, axis_after=after, token=_selected_token(node))
    return opaque


def _selected_token(node: fx.Node) -> int | None:
    match node.args[1:]:
        case ((slice(start=None, stop=None, step=None), int() as token),) if node.target is operator.getitem:
            return token
    return None


def _reads_shape(node: fx.Node) -> bool:
    if node.op == "call_function":
        return node.target is getattr and node.args[1:] in (("shape",), ("ndim",))
    return node.op == "call_method" and node.target in ("size", "dim", "ndimension")


def _mean(x: Tensor) -> Tensor:
    return x.mean((2, 3), keepdim=True)


def _opaque(node: fx.Node, modules: Mapping[str, nn.Module]) -> Callable[..., Any]:
    sources = node.all_input_nodes
    writes = node.op != "call_module" and writes_its_input(node, modules)
    module = _without_writing(modules[str(node.target)]) if node.op == "call_module" else None

    def run(*values: Any) -> Any:
        known = dict(zip(sources, values, strict=True))
        args = fx.node.map_arg(node.args, known.__getitem__)
        kwargs = fx.node.map_arg(node.kwargs, known.__getitem__)
        if writes and isinstance(args[0], Tensor):
            args = (args[0].clone(), *args[1:])
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        return (module or node.target)(*args, **kwargs)  # type: ignore[operator]

    return run


def _without_writing(module: nn.Module) -> nn.Module:
    """`module`, or a shallow copy that does not write to its input; the module itself is unchanged."""
    if not getattr(module, "inplace", False):
        return module
    module = copy.copy(module)
    module.inplace = False  # type: ignore[assignment]
    return module
