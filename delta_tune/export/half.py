"""An ONNX network in half precision."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from delta_tune.export.network_graph import used_by
from delta_tune.export.onnx_session import open_session

LARGEST = 65504 / 8
"""An operator with a larger value on the images looked at stays in single precision: above 65504 is infinity."""


def largest_values(model: onnx.ModelProto, inputs: Mapping[str, np.ndarray]) -> dict[str, float]:
    """The largest absolute value of each float32 tensor that a network computes or has, for these inputs.

    Args:
        model: the network.
        inputs: name → images (N, …).

    Raises:
        RuntimeError: onnxruntime cannot run it.
    """
    named = onnx.ModelProto()
    named.CopyFrom(model)
    known = {each.name for each in model.graph.output}
    made = [name for node in model.graph.node for name in node.output if name and name not in known]
    named.graph.output.extend(onnx.ValueInfoProto(name=name) for name in made)
    session = open_session(named.SerializeToString(), as_written=True)
    largest: dict[str, float] = {}
    for start in range(0, len(next(iter(inputs.values()))), 8):
        batch = {name: value[start : start + 8] for name, value in inputs.items()}
        found = dict(zip((each.name for each in session.get_outputs()), session.run(None, batch), strict=True))
        for name, value in (found | batch).items():
            if value.dtype == np.float32 and value.size:
                largest[name] = max(largest.get(name, 0.0), float(np.abs(value).max()))
    for initializer in model.graph.initializer:
        value = numpy_helper.to_array(initializer)
        if value.dtype == np.float32 and value.size:
            largest[initializer.name] = float(np.abs(value).max())
    return largest


def to_half(model: onnx.ModelProto, largest: Mapping[str, float]) -> tuple[onnx.ModelProto, int]:
    """The network with weights and arithmetic in half precision; inputs and outputs stay float32.

    Args:
        model: the network; its nodes have names.
        largest: of its tensors, as `largest_values` found them.

    Returns:
        The network, and how many of its nodes stay in single precision, because their values may be too large.
    """
    from onnxruntime.transformers.float16 import convert_float_to_float16

    too_large = [
        node.name
        for node in model.graph.node
        if any(not largest.get(name, 0.0) <= LARGEST for name in (*used_by(node), *node.output))
    ]
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    logging.getLogger("onnxruntime.transformers.float16").setLevel(logging.ERROR)
    half = convert_float_to_float16(copied, keep_io_types=True, node_block_list=too_large)
    return _without_round_trips(half), len(too_large)


def _without_round_trips(model: onnx.ModelProto) -> onnx.ModelProto:
    """The network without casts to half precision and back between two operators that both stay in single."""
    made_by = {name: node for node in model.graph.node for name in node.output}
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    straight = {}
    for node in changed.graph.node:
        before = made_by.get(node.input[0]) if _casts_to(node, TensorProto.FLOAT) else None
        if before is not None and _casts_to(before, TensorProto.FLOAT16):
            node.op_type = "Identity"
            del node.attribute[:]
            node.input[0] = straight[node.output[0]] = before.input[0]
    for node in changed.graph.node:
        if node.op_type != "Identity":
            node.input[:] = [straight.get(name, name) for name in node.input]
    return changed


def _casts_to(node: onnx.NodeProto, kind: int) -> bool:
    return node.op_type == "Cast" and node.attribute[0].i == kind
