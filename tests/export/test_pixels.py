"""Files that take pixels answer what `Model.predict` answers, for images of any size."""

from __future__ import annotations

import importlib.util
import json
import re
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import safetensors.torch
import torch
from PIL import Image

from delta_tune.config import UserError
from delta_tune.data.augmentation import center_crop
from delta_tune.export import check, pixels
from delta_tune.export.check import ExportMismatch
from delta_tune.export.model_file import export_model
from delta_tune.export.pixels import PixelModel
from delta_tune.inference.ensemble import Ensemble
from delta_tune.inference.model import Model, load
from delta_tune.inference.model_folder import save_model
from delta_tune.labels.several_labels import SEVERAL_LABELS
from delta_tune.models.backbones import build_target

UNSURE = {"below": 0.4, "refused": 0.1, "accuracy": 0.95, "images": 40}
STORED = 67
SHAPES = [(1, STORED, STORED), (3, STORED, STORED), (2, 40, 90), (1, 300, 64), (2, 1, 1), (1, 5, 400)]


def build(task, place, seeds=(0,), kind=None, **measured):
    """A folder of networks with different heads."""
    files = []
    for seed in seeds:
        network = build_target(task.backbone, 3, torch.Generator().manual_seed(seed))
        network.get_submodule(task.backbone.head).weight.data *= 30  # probabilities that are not all alike
        files.append(place / f"{seed}.safetensors")
        safetensors.torch.save_file(network.state_dict(), files[-1])
    origin = {"config": {"regularizer": "l2"}, "metrics": {}, **measured}
    options = {} if kind is None else {"kind": kind}
    save_model(task.backbone, task.dataset.classes, files, origin, place / "best", **options)
    return place / "best"


@pytest.fixture(scope="module")
def model(task, tmp_path_factory):
    return load(build(task, tmp_path_factory.mktemp("one"), temperature=1.7, unsure=UNSURE))


@pytest.fixture(scope="module")
def several(task, tmp_path_factory):
    """Two networks that see mirror images too."""
    return load(build(task, tmp_path_factory.mktemp("two"), (0, 1), temperature=0.6), flip=True)


@pytest.fixture(scope="module")
def labels_model(label_task, tmp_path_factory):
    place = tmp_path_factory.mktemp("labels")
    return load(build(label_task, place, kind=SEVERAL_LABELS, temperature=2.0, thresholds=[0.3, 0.5, 0.6]))


def drawn(shape, channels=3):
    """Smooth pictures, on which the networks are not all alike, with noise."""
    rng = np.random.default_rng(shape)
    coarse = rng.integers(0, 256, (shape[0], 3, 4, channels), dtype=np.uint8)
    sized = [np.asarray(Image.fromarray(each).resize(shape[:0:-1], Image.Resampling.BILINEAR)) for each in coarse]
    noisy = np.stack(sized) + rng.normal(0, 20, (*shape, channels))
    return noisy.clip(0, 255).astype(np.uint8)


def predicted(model, images):
    return np.array([list(each.probabilities.values()) for each in model.predict(images)])


def assert_same(found, model, images):
    probabilities, embeddings = found
    assert probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities, predicted(model, images), atol=1e-4)
    expected = model.embed(images)
    np.testing.assert_allclose(embeddings, expected, atol=1e-4 * max(1, np.abs(expected).max()))


@pytest.mark.parametrize("name", ["model", "several"])
@pytest.mark.parametrize("shape", SHAPES)
def test_module_gives_the_probabilities_and_embeddings_of_images_of_any_size(name, shape, request):
    model, images = request.getfixturevalue(name), drawn(shape)
    with torch.inference_mode():
        found = PixelModel(model, embeddings=True)(torch.from_numpy(images))
    assert_same([each.numpy() for each in found], model, images)


def test_module_gives_sigmoids_where_an_image_has_several_labels(labels_model):
    images = drawn((4, 90, 120))
    with torch.inference_mode():
        found = PixelModel(labels_model)(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(found, predicted(labels_model, images), atol=1e-4)
    assert not np.allclose(found.sum(1), 1)


@pytest.fixture(scope="module")
def onnx_file(model, tmp_path_factory):
    (file,) = export_model(model, "onnx", tmp_path_factory.mktemp("onnx") / "model.onnx", embeddings=True)
    return file


@pytest.fixture(scope="module")
def session(onnx_file):
    return onnxruntime.InferenceSession(str(onnx_file), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("shape", SHAPES)
def test_onnx_gives_what_predict_gives_for_any_number_and_size(session, model, shape):
    images = drawn(shape)
    assert_same(session.run(["probabilities", "embeddings"], {"images": images}), model, images)


def test_onnx_is_valid_and_says_what_it_takes_and_gives(onnx_file, session, model):
    onnx.checker.check_model(str(onnx_file), full_check=True)
    (given,), outputs = session.get_inputs(), session.get_outputs()
    told = {key: json.loads(value) for key, value in session.get_modelmeta().custom_metadata_map.items()}
    assert (given.name, given.type, given.shape) == ("images", "tensor(uint8)", ["N", "H", "W", 3])
    assert [each.name for each in outputs] == ["probabilities", "embeddings"]
    assert outputs[0].shape == ["N", 3]
    assert (told["input"]["name"], told["input"]["type"], told["input"]["shape"]) == ("images", "uint8", given.shape)
    assert told["input"]["unchanged_size"] == model.preprocessing.stored_size == STORED
    assert (told["output"]["name"], told["output"]["shape"]) == ("probabilities", ["N", 3])
    assert told["classes"] == list(model.classes)
    assert told["preprocessing"] == model.config["preprocessing"]
    assert (told["task"], told["thresholds"], told["precision"]) == ("classification", None, "float32")
    assert (told["temperature"], told["unsure"]) == (1.7, UNSURE)
    assert told["delta_tune"]


def test_onnx_is_of_an_opset_that_earlier_runtimes_read(onnx_file):
    proto = onnx.load(onnx_file)
    (version,) = [each.version for each in proto.opset_import if each.domain == ""]
    assert version <= 21, "the newest that onnxruntime 1.20 reads"
    assert proto.ir_version <= 10
    assert {node.domain for node in proto.graph.node} <= {""}


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="needs openvino")
def test_openvino_gives_what_predict_gives(onnx_file, model):
    import openvino

    # Without it, OpenVINO computes in bfloat16 where the processor can
    exact = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(str(onnx_file), "CPU", exact)
    for shape in SHAPES:
        images = drawn(shape)
        found = compiled(images)
        np.testing.assert_allclose(found["probabilities"], predicted(model, images), atol=5e-3)
        assert found["embeddings"].shape == model.embed(images).shape


@pytest.mark.slow
def test_onnx_of_several_networks_and_views_gives_what_predict_gives(several, tmp_path):
    (file,) = export_model(several, "onnx", tmp_path / "model.onnx", embeddings=True)
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    for shape in SHAPES[:4]:
        images = drawn(shape)
        assert_same(session.run(["probabilities", "embeddings"], {"images": images}), several, images)
    assert "mirror image" in json.loads(session.get_modelmeta().custom_metadata_map["output"])["flip"]


@pytest.mark.slow
def test_onnx_of_several_labels_has_their_thresholds(labels_model, tmp_path):
    (file,) = export_model(labels_model, "onnx", tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    images = drawn((2, 100, 60))
    (found,) = session.run(None, {"images": images})
    np.testing.assert_allclose(found, predicted(labels_model, images), atol=1e-4)
    told = {key: json.loads(value) for key, value in session.get_modelmeta().custom_metadata_map.items()}
    assert (told["task"], told["thresholds"], told["unsure"]) == ("multilabel", [0.3, 0.5, 0.6], None)


def exported(model, kind, file):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # none reaches the user
        return export_model(model, kind, file, embeddings=True)[0]


@pytest.fixture(scope="module")
def script_file(model, tmp_path_factory):
    return exported(model, "torchscript", tmp_path_factory.mktemp("script") / "model.pt")


@pytest.fixture(scope="module")
def archive_file(model, tmp_path_factory):
    return exported(model, "torch_export", tmp_path_factory.mktemp("archive") / "model.pt2")


def assert_module_same(read, model):
    for shape in SHAPES:
        images = drawn(shape)
        with torch.inference_mode():
            assert_same([each.numpy() for each in read(torch.from_numpy(images))], model, images)


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_torchscript_gives_what_predict_gives(script_file, model):
    assert_module_same(torch.jit.load(str(script_file)), model)


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_torchscript_of_several_networks_and_views_gives_what_predict_gives(several, tmp_path):
    file = exported(several, "torchscript", tmp_path / "model.pt")
    assert_module_same(torch.jit.load(str(file)), several)


def test_torch_export_gives_what_predict_gives(archive_file, model):
    files = {"config.json": ""}
    assert_module_same(torch.export.load(archive_file, extra_files=files).module(), model)
    told = json.loads(files["config.json"])
    assert told["classes"] == list(model.classes)
    assert told["input"]["shape"] == ["N", "H", "W", 3]
    assert told["output"]["name"] == "probabilities"


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_code_of_the_guide_runs(onnx_file, script_file, archive_file, model, tmp_path, monkeypatch, capsys):
    guide = Path(__file__).parents[2] / "docs" / "how-to" / "export.md"
    for file in (onnx_file, script_file, archive_file):
        (tmp_path / file.name).symlink_to(file)
    Image.fromarray(drawn((1, 90, 120))[0]).save(tmp_path / "a.jpg")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", guide.read_text(), re.MULTILINE | re.DOTALL)
    for block in blocks:
        exec(compile(block, guide.name, "exec"), {})
    assert len(blocks) == 2
    assert capsys.readouterr().out.split()[0] == model.predict("a.jpg")[0].label


def test_file_whose_probabilities_are_not_predicts_is_not_left_behind(model, tmp_path, monkeypatch):
    class Hotter(pixels.CalibratedNetwork):
        def __init__(self, model, *, embeddings):
            super().__init__(model, embeddings=embeddings)
            self.temperature = 9 * model.temperature

    monkeypatch.setattr(pixels, "CalibratedNetwork", Hotter)
    with pytest.raises(
        ExportMismatch, match=r"random images of 67 × 67 pixels its probabilities and .* differ by 0\.\d"
    ):
        export_model(model, "torchscript", tmp_path / "model.pt")
    assert list(tmp_path.iterdir()) == []


def test_embeddings_that_differ_are_refused(model, tmp_path):
    network = PixelModel(model, embeddings=True)

    def other(images):
        with torch.inference_mode():
            probabilities, embeddings = network(images)
        return probabilities, embeddings + 1

    with pytest.raises(ExportMismatch, match="its embeddings and the model's differ by 1"):
        check.check_pixel_file(model, other)


def test_embeddings_of_a_state_dict_are_refused(model, tmp_path):
    with pytest.raises(UserError, match="give --embeddings with onnx, torchscript, torch_export"):
        export_model(model, "state_dict", tmp_path / "model.pth", embeddings=True)


def test_embeddings_of_a_head_that_is_a_convolution_are_means_over_the_positions():
    class Pooled(torch.nn.Module):  # as SqueezeNet
        def __init__(self):
            super().__init__()
            self.body, self.head = torch.nn.Conv2d(3, 5, 3, 2), torch.nn.Conv2d(5, 2, 1)

        def forward(self, images):
            return self.head(self.body(images)).mean((2, 3))

    crop = {"image_size": 16, "stored_size": 16, "interpolation": "bilinear", "mean": [0.5] * 3, "std": [0.5] * 3}
    config = {"classes": ["a", "b"], "preprocessing": crop, "backbone": {"model": "squeezenet1_1", "head": "head"}}
    network = Pooled().eval()
    model = Model(Ensemble([network]), config)
    images = torch.from_numpy(drawn((2, 16, 16)))
    with torch.inference_mode():
        _, found = PixelModel(model, embeddings=True)(images)
        expected = network.body(center_crop(images, model.preprocessing)).mean((2, 3))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
