from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from delta_tune.export.network_graph import cut_out, find_network, put_in

RNG = np.random.default_rng(0)
WEIGHTS = {
    "mean": np.float32([[1.0, 2.0, 3.0]]),
    "matrix": RNG.normal(size=(3, 4)).astype(np.float32),
    "bias": RNG.normal(size=4).astype(np.float32),
    "head": RNG.normal(size=(4, 2)).astype(np.float32),
    "two": np.float32(2.0),
}


@pytest.fixture
def graph():
    """Pixels less their mean, two layers with a constant of their own between them, a temperature, a softmax."""
    nodes = [
        helper.make_node("Cast", ["pixels"], ["numbers"], to=TensorProto.FLOAT, name="cast"),
        helper.make_node("Sub", ["numbers", "mean"], ["centred"], name="sub"),
        helper.make_node("Add", ["bias", "bias"], ["twice"], name="constant"),
        helper.make_node("MatMul", ["centred", "matrix"], ["product"], name="first"),
        helper.make_node("Add", ["product", "twice"], ["sum"], name="add"),
        helper.make_node("Relu", ["sum"], ["features"], name="relu"),
        helper.make_node("MatMul", ["features", "head"], ["raw"], name="last"),
        helper.make_node("Div", ["raw", "two"], ["cooled"], name="temperature"),
        helper.make_node("Softmax", ["cooled"], ["probabilities"], name="softmax"),
    ]
    outputs = [
        helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["N", 2]),
        helper.make_tensor_value_info("features", TensorProto.FLOAT, ["N", 4]),
    ]
    made = helper.make_graph(
        nodes,
        "whole",
        [helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["N", 3])],
        outputs,
        [numpy_helper.from_array(value, name) for name, value in WEIGHTS.items()],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model


@pytest.fixture
def pixels():
    return np.random.default_rng(1).integers(0, 6, (5, 3), dtype=np.uint8)


def run(model, **inputs):
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, inputs)


def test_network_is_what_lies_between_its_layers_with_weights(graph):
    part = find_network(graph)
    assert [graph.graph.node[n].name for n in sorted(part.positions)] == ["first", "add", "relu", "last"]
    assert part.inputs == ("centred",)
    assert part.outputs == ("features", "raw"), "an output of the graph, and what the temperature divides"


def test_network_that_is_cut_out_computes_by_itself(graph, pixels):
    centred = pixels.astype(np.float32) - WEIGHTS["mean"]
    features = np.maximum(centred @ WEIGHTS["matrix"] + 2 * WEIGHTS["bias"], 0)
    known = {"centred": centred, "features": features, "raw": features @ WEIGHTS["head"]}
    network = cut_out(graph, find_network(graph), known)
    onnx.checker.check_model(network, full_check=True)
    found = dict(zip(("features", "raw"), run(network, centred=centred), strict=True))
    np.testing.assert_allclose(found["features"], features, rtol=1e-5)
    np.testing.assert_allclose(found["raw"], known["raw"], rtol=1e-5)


def test_another_network_is_put_in_its_place(graph, pixels):
    part, centred = find_network(graph), pixels.astype(np.float32) - WEIGHTS["mean"]
    known = {"centred": centred, "features": np.zeros((1, 4), np.float32), "raw": np.zeros((1, 2), np.float32)}
    other = cut_out(graph, part, known)
    for each in other.graph.initializer:
        if each.name == "head":
            each.CopyFrom(numpy_helper.from_array(-WEIGHTS["head"], "head"))
    whole = put_in(graph, part, other)
    onnx.checker.check_model(whole, full_check=True)
    features = np.maximum(centred @ WEIGHTS["matrix"] + 2 * WEIGHTS["bias"], 0)
    powers = np.exp(-features @ WEIGHTS["head"] / 2)
    probabilities, embeddings = run(whole, pixels=pixels)
    np.testing.assert_allclose(probabilities, powers / powers.sum(1, keepdims=True), rtol=1e-4)
    np.testing.assert_allclose(embeddings, features, rtol=1e-5)
    names = [each.name for each in whole.graph.initializer]
    assert len(names) == len(set(names))
    assert "head" not in names, "the former weights are gone"


def test_what_a_branch_takes_from_around_it_counts():
    captured = helper.make_node("Identity", ["outer"], ["inner"])
    branch = helper.make_graph([captured], "b", [], [helper.make_tensor_value_info("inner", TensorProto.FLOAT, None)])
    choice = helper.make_node("If", ["flag"], ["chosen"], then_branch=branch, else_branch=branch, name="if")
    layer = helper.make_node("MatMul", ["chosen", "weights"], ["made"], name="layer")
    graph = helper.make_graph(
        [choice, layer],
        "g",
        [
            helper.make_tensor_value_info("flag", TensorProto.BOOL, []),
            helper.make_tensor_value_info("outer", TensorProto.FLOAT, ["N", 2]),
        ],
        [helper.make_tensor_value_info("made", TensorProto.FLOAT, ["N", 2])],
        [numpy_helper.from_array(np.eye(2, dtype=np.float32), "weights")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    assert find_network(model).inputs == ("chosen",)
    whole = put_in(
        model,
        find_network(model),
        cut_out(model, find_network(model), {n: np.zeros((1, 2), np.float32) for n in ("chosen", "made")}),
    )
    (made,) = run(whole, flag=np.array(True), outer=np.float32([[3, 4]]))
    assert made.tolist() == [[3, 4]]
