"""ONNX files that can be served, and those that cannot."""

import dataclasses
import hashlib
import json

import numpy as np
import onnx
import pytest
from helpers.served import CLASSES, PREPROCESSING, expected, mean_colour_model
from onnx import TensorProto, helper

from delta_tune.config import UserError
from delta_tune.serving.model import open_model


def changed(file, **metadata):
    """Metadata replaced, None to leave it out."""
    model = onnx.load(file)
    told = {each.key: each.value for each in model.metadata_props} | metadata
    helper.set_model_props(model, {name: value for name, value in told.items() if value is not None})
    onnx.save(model, file)
    return file


@pytest.fixture
def file(tmp_path):
    return mean_colour_model(tmp_path / "tiny.onnx", unsure={"below": 0.7, "refused": 0, "accuracy": 1, "images": 20})


def test_model_has_what_the_file_says(file):
    model = open_model(file)
    assert model.classes == CLASSES
    assert model.preprocessing.stored_size == PREPROCESSING["stored_size"]
    assert (model.thresholds, model.several_labels, model.unsure_below) == (None, False, 0.7)
    assert model.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()


def test_probabilities_are_the_files(file):
    squares = np.random.default_rng(0).integers(0, 256, (3, 12, 12, 3), dtype=np.uint8)
    found = open_model(file).probabilities(squares)
    assert found == pytest.approx(np.stack([expected(square) for square in squares]), abs=1e-5)


@pytest.mark.parametrize("resize", ["squash", "letterbox"])
def test_whole_images_go_in_without_their_border_for_the_file_would_shrink_it_with_them(file, resize):
    changed(file, preprocessing=json.dumps(PREPROCESSING | {"resize": resize}))
    squares = np.random.default_rng(0).integers(0, 256, (3, 12, 12, 3), dtype=np.uint8)
    found = open_model(file).probabilities(squares)
    assert found == pytest.approx(np.stack([expected(square[2:10, 2:10]) for square in squares]), abs=1e-5)


@pytest.mark.parametrize(("thresholds", "found"), [([0.1, 0.2, 0.3], (0.1, 0.2, 0.3)), (None, (0.5, 0.5, 0.5))])
def test_several_labels_have_thresholds(tmp_path, thresholds, found):
    model = open_model(mean_colour_model(tmp_path / "a.onnx", task="multilabel", thresholds=thresholds))
    assert model.thresholds == found
    assert model.unsure_below is None


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ({"classes": None}, "does not say classes in its metadata"),
        ({"classes": "[]"}, "damaged (metadata classes: "),
        ({"classes": "{"}, "damaged (metadata classes: "),
        ({"classes": '["a", "b"]'}, "numbers of shape (2, 3), not (2, 2)"),
        ({"preprocessing": None}, "does not say preprocessing"),
        ({"preprocessing": json.dumps(PREPROCESSING | {"image_size": 0})}, "metadata preprocessing: image_size"),
        ({"preprocessing": json.dumps(PREPROCESSING | {"sharpen": True})}, "metadata preprocessing: sharpen"),
        ({"preprocessing": json.dumps(PREPROCESSING | {"image_size": 13})}, "image_size <= stored_size must hold"),
        ({"thresholds": "[0.5]", "task": '"multilabel"'}, "1 thresholds for 3 classes"),
        ({"unsure": '{"below": 2}'}, "metadata unsure: below"),
    ],
)
def test_metadata_that_cannot_be_is_refused(file, metadata, said):
    with pytest.raises(UserError) as error:
        open_model(changed(file, **metadata))
    assert said in str(error.value)


def test_other_metadata_may_be_anything(file):
    model = open_model(changed(file, author="not JSON", precision='"fp16"'))
    assert (model.metadata["author"], model.metadata["precision"]) == ("not JSON", "fp16")


@pytest.mark.parametrize("content", [b"", b"no ONNX", None])
def test_file_that_is_no_onnx_is_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "a.onnx").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.onnx (is no ONNX file|cannot be read)"):
        open_model(tmp_path / "a.onnx")


def test_file_of_normalised_images_is_refused_with_the_flag_that_mends_it(tmp_path):
    graph = helper.make_graph(
        [helper.make_node("ReduceMean", ["images"], ["logits"])],
        "old",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["N", 3, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, None)],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), tmp_path / "a.onnx")
    with pytest.raises(UserError, match=r"images: tensor\(float\) .* export it again with --inputs pixels"):
        open_model(tmp_path / "a.onnx")


def test_model_that_gives_no_finite_numbers_is_refused(tmp_path):
    file = mean_colour_model(tmp_path / "a.onnx")
    model = onnx.load(file)
    (middle,) = (each for each in model.graph.initializer if each.name == "middle")
    middle.CopyFrom(onnx.numpy_helper.from_array(np.array(np.nan, dtype=np.float32), "middle"))
    onnx.save(model, file)
    with pytest.raises(UserError, match="cannot predict"):
        open_model(file)


def test_model_that_gives_no_row_for_each_image_fails_on_those_images_alone(file):
    model = open_model(file)
    fixed = dataclasses.replace(model, session=FirstTwo(model.session))
    squares = np.zeros((3, 12, 12, 3), dtype=np.uint8)
    with pytest.raises(ArithmeticError, match=r"shape \(2, 3\), not \(3, 3\)"):
        fixed.probabilities(squares)
    assert len(fixed.probabilities(squares[:2])) == 2


class FirstTwo:
    """A session that answers for two images at most, as a file of a fixed batch would."""

    def __init__(self, session):
        self.session = session

    def run(self, outputs, inputs):
        return [found[:2] for found in self.session.run(outputs, inputs)]
