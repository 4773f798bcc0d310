"""A convolutional network in eval mode as a list of operations.

The ablation engine needs to know what each operation does to a channel, and convolutions dominate its cost. So this
graph is simpler than torch.fx's: an operation is a convolution, a linear layer, one of a few kinds that act on each
channel separately, or opaque. Opaque is always correct, only slower. The traced model is never modified.
"""

from __future__ import annotations

import copy
import functools
import operator
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from timm.layers import BatchNormAct2d, DropPath  # type: ignore[attr-defined]
from torch import Tensor, fx, nn
from torchvision.ops import StochasticDepth

from delta_tune.models.fused_convolution import RELU, Activation, Affine, Conv, activation_of, conv_of, is_plain

Kind = Literal[
    "input", "constant", "hook", "conv", "affine", "linear", "elementwise", "pool", "flatten", "binary", "cat", "opaque"
]
"""What an operation does to a channel j of a (B, C, H, W) input.

`affine`, `elementwise`, `pool`: output channel j depends on input channel j only (`affine` has a scale and shift per
channel, `elementwise` also keeps positions apart). `binary`: elementwise of two operands. `flatten`: (B, C, H, W) to
(B, C·H·W).
"""


class TraceFailed(Exception):
    """The model's graph cannot be traced; the message says why."""


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
    shape: torch.Size = field(default_factory=torch.Size)
    """Shape of the value for one image, without the batch dimension; empty if the value is not a tensor."""


def trace(model: nn.Module, layers: tuple[str, ...], example: Tensor) -> list[Op]:
    """The operations that lead to the model's output, in order, with the shapes of their values for `example`.

    `example` is (B, 3, H, W). After each call of a module in `layers` comes an operation of kind `hook` that names it.

    Raises:
        TraceFailed: the model cannot be expressed as such a list.
    """
    hooked = {model.get_submodule(name): name for name in layers}
    opaque: set[str] = set()
    while True:
        tracer = Tracer(hooked, opaque)
        try:
            graph = tracer.trace(model)
            break
        except TraceFailed:
            raise
        except Exception as error:  # forward() is foreign code; if it raises, its module is run as a whole instead
            blamed = tracer.entered[-1] if tracer.entered else ""
            if not blamed or blamed in opaque or any(name.startswith(f"{blamed}.") for name in layers):
                raise TraceFailed(f"{blamed or type(model).__name__} cannot be traced ({error})") from error
            opaque.add(blamed)
    program = _convert(graph, model)
    values: dict[Op, Any] = {}
    for op in program:
        values[op] = example if op.kind == "input" else op.run(*(values[i] for i in op.inputs))
        if isinstance(values[op], Tensor):
            op.shape = values[op].shape[1:]
    return program


def _hook_point(x: Tensor, layer: str) -> Tensor:
    return x


class Tracer(fx.Tracer):
    """Traces a network down to single operations; timm's norms, for one, are one though they have children."""

    def __init__(self, hooked: Mapping[nn.Module, str], opaque: Collection[str]) -> None:
        """`hooked`: modules whose output passes a hook point, with their names; `opaque`: paths not to look into."""
        super().__init__()
        self.hooked, self.opaque = hooked, opaque
        self.entered: list[str] = []  # an exception keeps the path to the module that raised it

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        leaf = isinstance(m, nn.Conv2d | nn.BatchNorm2d | nn.Linear) or not any(m.children())
        return leaf or module_qualified_name in self.opaque

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        self.entered.append(self.path_of_module(m))
        output = super().call_module(m, forward, args, kwargs)
        self.entered.pop()
        if m in self.hooked:
            if not isinstance(output, fx.Proxy):
                raise TraceFailed(f"the output of {self.hooked[m]} is not one tensor")
            output = self.create_proxy("call_function", _hook_point, (output, self.hooked[m]), {})
        return output


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
_ELEMENTWISE_METHODS = {"relu", "sigmoid", "tanh", "clamp", "neg", "abs", "contiguous", "float"}
_POOL_FUNCTIONS = {F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d, F.adaptive_max_pool2d}
_BINARY_FUNCTIONS: dict[Any, Callable[..., Any]] = {
    operator.add: torch.add, operator.iadd: torch.add, torch.add: torch.add, "add": torch.add,
    operator.sub: torch.sub, torch.sub: torch.sub, "sub": torch.sub,
    operator.mul: torch.mul, operator.imul: torch.mul, torch.mul: torch.mul, "mul": torch.mul,
    operator.truediv: torch.div, torch.div: torch.div, "div": torch.div,
}  # fmt: skip


def _convert(graph: fx.Graph, model: nn.Module) -> list[Op]:
    modules = dict(model.named_modules())
    for node in graph.nodes:
        if _writes_its_input(node, modules):  # later readers of that input read what was written
            later = set(_after(node))
            node.all_input_nodes[0].replace_all_uses_with(node, delete_user_cb=later.__contains__)
    (output,) = (node for node in graph.nodes if node.op == "output")
    if not isinstance(output.args[0], fx.Node):
        raise TraceFailed(f"the model returns a {type(output.args[0]).__name__}, not one tensor of logits")

    needed: set[fx.Node] = {output.args[0]}
    for node in reversed(graph.nodes):
        if node in needed:
            needed.update(node.all_input_nodes)

    ops: dict[fx.Node, Op] = {}
    program: list[Op] = []
    for node in graph.nodes:
        if node not in needed:
            continue
        ops[node] = _operation(node, modules, ops, program)
        if ops[node] not in program:
            program.append(ops[node])
    assert program[-1] is ops[output.args[0]], "the output is the last operation"
    return program


def _after(node: fx.Node) -> list[fx.Node]:
    later, current = [], node.next
    while current.op != "root":
        later.append(current)
        current = current.next
    return later


def _writes_its_input(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    if node.op == "call_module":
        module = modules[str(node.target)]
        return bool(getattr(module, "inplace", False)) and not isinstance(module, _IDENTITY_MODULES)
    if node.op == "call_method":
        return str(node.target).endswith("_") and not str(node.target).endswith("__")
    return node.op == "call_function" and (
        bool(node.kwargs.get("inplace")) or getattr(node.target, "__name__", "").endswith("_")
    )


def _operation(node: fx.Node, modules: Mapping[str, nn.Module], ops: Mapping[fx.Node, Op], program: list[Op]) -> Op:
    """The operation of `node`: a new one, or that of its input if `node` is an identity."""
    if node.op == "placeholder":
        return Op(node.name, "input", (), run=lambda: None)
    if node.op == "get_attr":
        value: Any = functools.reduce(getattr, str(node.target).split("."), modules[""])
        return Op(node.name, "constant", (), run=lambda: value)
    inputs = tuple(ops[i] for i in node.all_input_nodes)
    first = inputs[0] if inputs else None
    if node.target is _hook_point:
        assert first is not None
        return Op(node.name, "hook", (first,), run=lambda x: x, layer=str(node.args[1]))
    opaque = Op(node.name, "opaque", inputs, run=_opaque(node, modules))
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
    return opaque


def _mean(x: Tensor) -> Tensor:
    return x.mean((2, 3), keepdim=True)


def _opaque(node: fx.Node, modules: Mapping[str, nn.Module]) -> Callable[..., Any]:
    sources = node.all_input_nodes
    writes = node.op != "call_module" and _writes_its_input(node, modules)
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
