from __future__ import annotations

import dataclasses
import json

import numpy as np
import onnx
import onnxruntime
import pytest
from helpers.random_models import random_model
from onnx import TensorProto, numpy_helper

from delta_tune.config import UserError
from delta_tune.export import reduced_file
from delta_tune.export.check import ExportMismatch
from delta_tune.export.evidence import ScoredImages
from delta_tune.export.model_file import export_model
from delta_tune.export.network_graph import find_network
from delta_tune.export.reduced_file import export_reduced, write_reduced
from delta_tune.inference.ensemble import Ensemble
from delta_tune.inference.model import Model, load


@pytest.fixture(scope="module")
def model(best):
    return load(best)


@pytest.fixture(scope="module")
def full(model, tmp_path_factory):
    file = tmp_path_factory.mktemp("full") / "model.onnx"
    export_model(model, "onnx", file)
    return file


@pytest.fixture(scope="module")
def images(task):
    splits = {"val": task.dataset.val, "test": task.dataset.test}
    return [
        ScoredImages(name, split.images.batch(np.arange(len(split))), split.labels) for name, split in splits.items()
    ]


@pytest.fixture(scope="module")
def int8(model, full, images, tmp_path_factory):
    file = tmp_path_factory.mktemp("int8") / "model.onnx"
    return file, write_reduced(model, full, "int8", file, images, force=True)


@pytest.fixture(scope="module")
def fp16(model, full, images, tmp_path_factory):
    file = tmp_path_factory.mktemp("fp16") / "model.onnx"
    return file, write_reduced(model, full, "fp16", file, images, force=True)


def shares(file, pixels):
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return session.run(["probabilities"], {"images": pixels})[0]


def weights_of(file, kinds):
    """Bytes of the initializers of these types."""
    found = [numpy_helper.to_array(each) for each in onnx.load(file).graph.initializer if each.data_type in kinds]
    return sum(each.nbytes for each in found)


def all_weights(full):
    return weights_of(full, (TensorProto.FLOAT,))


def test_int8_has_weights_of_eight_bits_and_quantises_activations(int8, full):
    file, _ = int8
    proto = onnx.load(file)
    onnx.checker.check_model(proto, full_check=True)
    assert {"QuantizeLinear", "DequantizeLinear"} <= {node.op_type for node in proto.graph.node}
    assert weights_of(file, (TensorProto.INT8,)) > 0.2 * all_weights(full)
    assert file.stat().st_size < 0.6 * full.stat().st_size


def test_int8_weights_have_seven_bits_so_that_no_processor_saturates(int8):
    weights = [
        numpy_helper.to_array(x) for x in onnx.load(int8[0]).graph.initializer if x.data_type == TensorProto.INT8
    ]
    layers = [each for each in weights if each.ndim > 1]
    assert layers
    assert max(np.abs(each.astype(int)).max() for each in layers) <= 64


def test_int8_leaves_pixels_and_probabilities_as_they_are(int8):
    proto = onnx.load(int8[0])
    prepared = {node.op_type for node in proto.graph.node if not node.name.startswith("reduced/")}
    assert not prepared & {"QuantizeLinear", "DequantizeLinear"}
    assert [each.type.tensor_type.elem_type for each in proto.graph.input] == [TensorProto.UINT8]
    assert [each.type.tensor_type.elem_type for each in proto.graph.output] == [TensorProto.FLOAT]


@pytest.mark.parametrize(("precision", "most"), [("fp16", 0.01), ("int8", 0.15)])
def test_reduced_file_gives_nearly_the_models_probabilities(precision, most, model, images, request):
    file, _ = request.getfixturevalue(precision)
    pixels = images[1].pixels
    expected = np.array([list(each.probabilities.values()) for each in model.predict(pixels)])
    np.testing.assert_allclose(shares(file, pixels), expected, atol=most)


def test_reduced_file_takes_images_of_any_size(int8, full):
    pixels = np.random.default_rng(0).integers(0, 255, (2, 91, 133, 3), dtype=np.uint8)
    np.testing.assert_allclose(shares(int8[0], pixels), shares(full, pixels), atol=0.2)


def test_fp16_weights_are_half_and_its_ends_are_not(fp16, full):
    proto = onnx.load(fp16[0])
    onnx.checker.check_model(proto, full_check=True)
    halves = weights_of(fp16[0], (TensorProto.FLOAT16,))
    assert halves == pytest.approx(all_weights(full) / 2, rel=0.1)
    assert [each.type.tensor_type.elem_type for each in proto.graph.output] == [TensorProto.FLOAT]


def test_evidence_is_what_counting_by_hand_gives(int8, full, images):
    file, found = int8
    for split, told in zip(images, found.splits, strict=True):
        before, after = (shares(each, split.pixels).argmax(1) for each in (full, file))
        assert told.before["accuracy"] == pytest.approx(np.mean(before == split.labels))
        assert told.after["accuracy"] == pytest.approx(np.mean(after == split.labels))
        assert told.agreement == pytest.approx(np.mean(before == after))
        assert told.only_before == sum((before == split.labels) & (after != split.labels))
        assert told.only_after == sum((before != split.labels) & (after == split.labels))
    assert found.bytes[0] == full.stat().st_size
    assert min(found.milliseconds) > 0


def test_file_has_its_evidence_and_its_precision(int8, full):
    told = {each.key: json.loads(each.value) for each in onnx.load(int8[0]).metadata_props}
    assert told["precision"] == "int8"
    assert told["evidence"]["splits"][0]["split"] == "val"
    assert told["evidence"] == json.loads(json.dumps(int8[1].record()))
    before = {each.key: json.loads(each.value) for each in onnx.load(full).metadata_props}
    assert {key: told[key] for key in before if key != "precision"} == {
        k: v for k, v in before.items() if k != "precision"
    }


def spoiled(monkeypatch, value=0.0):
    """Every way to quantise gives a network whose filters are all alike, so that it does not look at the image."""

    def blind(self, recipe):
        network = onnx.load(self._prepared)
        for each in network.graph.initializer:
            filters = numpy_helper.to_array(each)
            if filters.ndim == 4:
                each.CopyFrom(numpy_helper.from_array(np.full_like(filters, value), each.name))
        return network

    monkeypatch.setattr(reduced_file.Quantizer, "quantised", blind)


def test_file_that_loses_more_than_a_point_is_refused_with_the_figures(model, full, images, tmp_path, monkeypatch):
    spoiled(monkeypatch)
    with pytest.raises(ExportMismatch, match=r"accuracy on the \d+ images of \w+ is 33\.3 % instead of .*--force"):
        write_reduced(model, full, "int8", tmp_path / "model.onnx", images)
    assert list(tmp_path.iterdir()) == []


def test_file_that_loses_more_is_kept_if_forced(model, full, images, tmp_path, monkeypatch):
    spoiled(monkeypatch)
    found = write_reduced(model, full, "int8", tmp_path / "model.onnx", images, force=True)
    assert found.loss > 0.01
    assert (tmp_path / "model.onnx").exists()


def test_changed_answers_without_labels_are_refused(model, full, images, tmp_path, monkeypatch):
    spoiled(monkeypatch)
    unknown = [dataclasses.replace(images[0], labels=None)]
    with pytest.raises(ExportMismatch, match=r"% of the answers on the 18 images of val differ .*without labels"):
        write_reduced(model, full, "int8", tmp_path / "model.onnx", unknown)


def test_the_nearest_of_the_ways_to_quantise_is_taken(model, full, images, tmp_path):
    said = []
    found = write_reduced(model, full, "int8", tmp_path / "model.onnx", images, force=True, say=said.append)
    divergences = {text.partition(":")[0]: float(text.rpartition(" ")[2]) for text in said}
    assert list(divergences) == [str(recipe) for recipe in reduced_file.RECIPES]
    chosen = found.made.removeprefix("8-bit activations, ").rpartition(", on ")[0]
    assert divergences[chosen] == min(divergences.values())


def test_values_that_half_precision_does_not_hold_stay_in_single(model, full, images, tmp_path):
    """Processors without half precision compute in single, so only the file's types tell what a GPU would do."""
    graph = onnx.load(full)
    first = next(graph.graph.node[n] for n in sorted(find_network(graph).positions) if graph.graph.node[n].input)
    for each in graph.graph.initializer:
        if each.name in first.input[1:]:
            each.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(each) * np.float32(1e6), each.name))
    loud, file = tmp_path / "loud.onnx", tmp_path / "kept.onnx"
    onnx.save(graph, loud)
    kept = write_reduced(model, loud, "fp16", file, images, force=True)
    assert "too large" in kept.made
    np.testing.assert_allclose(shares(file, images[0].pixels), shares(loud, images[0].pixels), atol=0.02)
    proto = onnx.load(file)
    casts = {node.output[0]: node for node in proto.graph.node if node.op_type == "Cast"}
    to_half = [node.input[0] for node in casts.values() if node.attribute[0].i == TensorProto.FLOAT16]
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in to_half)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    values = session.run(to_half, {"images": images[0].pixels}) if to_half else []
    assert all(np.abs(each).max() < 65504 for each in values)
    assert weights_of(file, (TensorProto.FLOAT,)) > 0


def test_file_whose_answers_are_no_numbers_is_refused_even_if_forced(model, full, images, tmp_path, monkeypatch):
    spoiled(monkeypatch, value=np.nan)
    with pytest.raises(ExportMismatch, match=r"for 18 of 18 images of val its answers are no finite numbers"):
        write_reduced(model, full, "int8", tmp_path / "model.onnx", images, force=True)
    assert list(tmp_path.iterdir()) == []


def test_network_that_the_tools_cannot_take_is_refused(model, full, images, tmp_path, monkeypatch):
    def fail(self, recipe):
        raise RuntimeError("no such operator\nand more")

    monkeypatch.setattr(reduced_file.Quantizer, "quantised", fail)
    with pytest.raises(UserError, match=r"cannot be reduced to int8 .*\(no such operator\); export it without"):
        write_reduced(model, full, "int8", tmp_path / "model.onnx", images)


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "inputs"), [("int8", "pixels"), ("fp16", "normalized")])
def test_several_networks_mirror_images_and_embeddings_are_reduced_too(model, images, precision, inputs, tmp_path):
    several = Model(
        Ensemble([model.network, model.network]), model.config | {"networks": 2, "temperature": 1.7}, flip=True
    )
    file = tmp_path / "model.onnx"
    found = export_reduced(several, precision, file, images, inputs=inputs, embeddings=True, force=True)
    assert found.splits[0].agreement > 0.8
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    assert [each.name for each in session.get_outputs()][1] == "embeddings"


@pytest.mark.slow
@pytest.mark.parametrize(("name", "precision"), [("timm:test_convnext", "fp16"), ("timm:test_convnext", "int8")])
def test_networks_of_channels_last_maps_are_reduced_on_any_number_of_images(name, precision, tmp_path):
    model = random_model(name)
    size = model.preprocessing.stored_size
    pixels = np.random.default_rng(0).integers(0, 256, (17, size, size, 3), dtype=np.uint8)
    told = export_reduced(model, precision, tmp_path / "model.onnx", [ScoredImages("val", pixels, None)], force=True)
    assert told.splits[0].agreement > 0.8


@pytest.mark.slow
def test_of_a_network_with_layer_norms_the_layers_alone_are_quantised(tmp_path):
    model = random_model("timm:test_vit", size=160)
    size = model.preprocessing.stored_size
    pixels = np.random.default_rng(0).integers(0, 256, (12, size, size, 3), dtype=np.uint8)
    told = export_reduced(model, "int8", tmp_path / "model.onnx", [ScoredImages("val", pixels, None)], force=True)
    graph = onnx.load(tmp_path / "model.onnx").graph
    made = {name: node.op_type for node in graph.node for name in node.output}
    before = [made.get(node.input[0]) for node in graph.node if node.op_type == "Gelu"]
    scales = [made.get(node.input[1]) for node in graph.node if node.op_type == "LayerNormalization"]
    assert len(before) == 6
    assert len(scales) == 13
    assert "DequantizeLinear" not in {*before, *scales}
    assert "DequantizeLinear" in {made.get(node.input[1]) for node in graph.node if node.op_type in ("MatMul", "Gemm")}
    assert told.splits[0].agreement > 0.8
