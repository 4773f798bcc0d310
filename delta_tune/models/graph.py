"""A network in eval mode as a list of operations.

The ablation engine needs to know what each operation does to a channel, and convolutions dominate its cost. So this
graph is simpler than torch.fx's: an operation is a convolution, a linear layer, one of a few kinds that act on each
channel separately, or opaque. Opaque is always correct, only slower. The traced model is never modified.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any

from torch import Tensor, fx, nn

from delta_tune.models.operations import Op, hook_point, operation, writes_its_input
from delta_tune.models.single_token import keep_single_token


class TraceFailed(Exception):
    """The model's graph cannot be traced; the message says why."""


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
            kind = type(model.get_submodule(blamed))  # of which there may be one in every block
            alike = (path for path, module in model.named_modules() if type(module) is kind)
            opaque.update(path for path in alike if not any(name.startswith(f"{path}.") for name in layers))
        finally:
            _forget_proxies(model)
    program = _convert(graph, model)
    try:
        _run_once(program, example)
    except Exception as error:
        raise TraceFailed(f"its traced graph does not run ({error})") from error
    return keep_single_token(program)


def _forget_proxies(model: nn.Module) -> None:
    """Remove what a traced forward has put into a module's own cache, as LeViT's attention does with its biases."""
    for module in model.modules():
        for cache in vars(module).values():
            if type(cache) is dict:
                for key in [key for key, value in cache.items() if isinstance(value, fx.Proxy)]:
                    del cache[key]


def _run_once(program: list[Op], example: Tensor) -> None:
    """Note the shape of each value, and compute what follows from parameters alone."""
    values: dict[Op, Any] = {}
    for op in program:
        values[op] = value = example if op.kind == "input" else op.run(*(values[i] for i in op.inputs))
        if op.inputs and all(i.kind == "constant" for i in op.inputs):
            op.kind, op.inputs, op.run = "constant", (), partial(_the, value)
        if isinstance(value, Tensor) and value.dim() > 0:
            op.shape, op.rows = value.shape[1:], value.shape[0] / len(example)


def _the(value: Any) -> Any:
    return value


class Tracer(fx.Tracer):
    """Traces a network down to single operations; timm's norms, for one, are one though they have children."""

    def __init__(self, hooked: Mapping[nn.Module, str], opaque: Collection[str]) -> None:
        """`hooked`: modules whose output passes a hook point, with their names; `opaque`: paths not to look into."""
        super().__init__()
        self.hooked, self.opaque = hooked, opaque
        self.entered: list[str] = []  # an exception keeps the path to the module that raised it

    def trace(self, root: Any, concrete_args: dict[str, Any] | None = None) -> fx.Graph:
        """Trace `root` as a function of its first argument; the others have their defaults."""
        _, *others = inspect.signature(root.forward).parameters.values()
        defaults = {each.name: each.default for each in others if each.default is not each.empty}
        return super().trace(root, {**defaults, **(concrete_args or {})} or None)

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
            output = self.create_proxy("call_function", hook_point, (output, self.hooked[m]), {})
        return output


def _convert(graph: fx.Graph, model: nn.Module) -> list[Op]:
    modules = dict(model.named_modules())
    for node in graph.nodes:
        if writes_its_input(node, modules):  # later readers of that input read what was written
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
        ops[node] = operation(node, modules, ops, program)
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
