"""The network in an ONNX graph, without what prepares its images and makes probabilities: cut it out, put it back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnx.compose

_Names = Callable[[onnx.NodeProto], list[str]]

WITH_WEIGHTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""Operators of a network's layers: one of their first two inputs is constant."""
PREFIX = "reduced/"
"""Begins the names in a network that was put into a graph."""


@dataclass(frozen=True, slots=True)
class NetworkPart:
    """Which part of a graph is the network.

    The network is all that lies between its first layers with weights and its last ones, so neither the resizing of
    pixels, whose matrices are computed, nor a softmax, a temperature or the mean of several networks.
    """

    positions: frozenset[int]
    """Of its nodes in the graph."""
    constants: frozenset[int]
    """Positions of nodes that compute constants, in it or elsewhere."""
    inputs: tuple[str, ...]
    """Tensors that it takes, such as the normalised images."""
    outputs: tuple[str, ...]
    """Tensors that others take of it, such as the logits, or that the graph returns."""


def find_network(model: onnx.ModelProto) -> NetworkPart:
    """Find the network in a graph whose nodes are in topological order, as they are in every valid one."""
    graph = model.graph
    constant = {each.name for each in graph.initializer}
    constants = set()
    for position, node in enumerate(graph.node):
        if all(name in constant for name in used_by(node)):
            constants.add(position)
            constant.update(node.output)
    layers = {
        position
        for position, node in enumerate(graph.node)
        if position not in constants
        and node.op_type in WITH_WEIGHTS
        and any(name in constant for name in node.input[:2])
    }
    assert layers, "a network has layers"
    numbered = list(enumerate(graph.node))
    after = _reached(numbered, layers, used_by, _made_by)
    before = _reached(numbered[::-1], layers, _made_by, used_by)
    inside = (after & before) - constants
    made = {name for position in inside for name in graph.node[position].output}
    wanted = {name for position in inside for name in used_by(graph.node[position])}
    outside = {name for n, node in enumerate(graph.node) if n not in inside for name in used_by(node)}
    outside |= {each.name for each in graph.output}
    return NetworkPart(
        positions=frozenset(inside),
        constants=frozenset(constants),
        inputs=tuple(sorted(wanted - made - constant)),
        outputs=tuple(sorted(made & outside)),
    )


def _reached(nodes: Sequence[tuple[int, onnx.NodeProto]], start: set[int], taken: _Names, given: _Names) -> set[int]:
    """Positions of `start` and of all nodes that take something that these, or nodes reached before, give."""
    found: set[int] = set()
    known: set[str] = set()
    for position, node in nodes:
        if position in start or any(name in known for name in taken(node)):
            found.add(position)
            known.update(given(node))
    return found


def _made_by(node: onnx.NodeProto) -> list[str]:
    return list(node.output)


def used_by(node: onnx.NodeProto) -> list[str]:
    """Names of the tensors that a node takes, those that a branch of an `If` takes from around it included."""
    return [name for name in node.input if name] + [name for graph in _branches(node) for name in _captured(graph)]


def _branches(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.g


def _captured(graph: onnx.GraphProto) -> set[str]:
    own = {each.name for each in (*graph.input, *graph.initializer)}
    own |= {name for node in graph.node for name in node.output}
    used = {name for node in graph.node for name in used_by(node)} | {each.name for each in graph.output}
    return used - own


def cut_out(model: onnx.ModelProto, part: NetworkPart, known: Mapping[str, np.ndarray]) -> onnx.ModelProto:
    """The network as a model of its own, whose inputs and outputs have the names that they have in the graph.

    Args:
        model: the whole graph.
        part: of `find_network`.
        known: an example (N, …) of each input and output, which tells its type and shape; N may be any other number.
    """
    graph = model.graph
    nodes = [node for n, node in enumerate(graph.node) if n in part.positions | part.constants]
    used = {name for node in nodes for name in used_by(node)}
    return onnx.helper.make_model(
        onnx.helper.make_graph(
            nodes,
            "network",
            [_value(name, known[name]) for name in part.inputs],
            [_value(name, known[name]) for name in part.outputs],
            [each for each in graph.initializer if each.name in used],
        ),
        opset_imports=model.opset_import,
        functions=model.functions,
        ir_version=model.ir_version,
    )


def _value(name: str, example: np.ndarray) -> onnx.ValueInfoProto:
    kind = onnx.helper.np_dtype_to_tensor_dtype(example.dtype)
    return onnx.helper.make_tensor_value_info(name, kind, ["N", *example.shape[1:]])


def put_in(model: onnx.ModelProto, part: NetworkPart, network: onnx.ModelProto) -> onnx.ModelProto:
    """The whole graph with another network, of the same inputs and outputs, in place of its own.

    What is inside the new network gets names that nothing else in the graph has.
    """
    inner = onnx.compose.add_prefix(network, PREFIX, rename_inputs=False, rename_outputs=False)
    graph = model.graph
    kept = [node for n, node in enumerate(graph.node) if n not in part.positions]
    known = {each.name for each in (*graph.input, *graph.initializer, *inner.graph.initializer)}
    nodes = _in_order([*kept, *inner.graph.node], known)
    nodes = _needed(nodes, {each.name for each in graph.output})
    used = {name for node in nodes for name in used_by(node)} | {each.name for each in graph.output}
    whole = onnx.ModelProto()
    whole.CopyFrom(model)
    del whole.graph.node[:], whole.graph.initializer[:], whole.graph.value_info[:]
    whole.graph.node.extend(nodes)
    whole.graph.initializer.extend(each for each in (*graph.initializer, *inner.graph.initializer) if each.name in used)
    domains = {each.domain for each in model.opset_import}
    whole.opset_import.extend(each for each in inner.opset_import if each.domain not in domains)
    return whole


def _needed(nodes: Sequence[onnx.NodeProto], wanted: set[str]) -> list[onnx.NodeProto]:
    """The nodes without those whose outputs nobody takes, in the same order."""
    found, asked = [], set(wanted)
    for node in reversed(nodes):
        if asked.intersection(node.output):
            found.append(node)
            asked.update(used_by(node))
    return found[::-1]


def _in_order(nodes: list[onnx.NodeProto], known: set[str]) -> list[onnx.NodeProto]:
    """The nodes, each after those whose outputs it takes."""
    made = {name for node in nodes for name in node.output}
    ordered, waiting = [], nodes
    while waiting:
        later = []
        for node in waiting:
            if all(name in known or name not in made for name in used_by(node)):
                ordered.append(node)
                known.update(node.output)
            else:
                later.append(node)
        assert len(later) < len(waiting), "a graph has no cycles"
        waiting = later
    return ordered
