from __future__ import annotations

import json
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import safetensors.torch
import timm
import torch
import torchvision
from scipy.special import softmax

from delta_tune.config import UserError
from delta_tune.export import check, state_dict
from delta_tune.export import onnx_file as onnx_writer
from delta_tune.export.check import ExportMismatch
from delta_tune.export.model_file import export_model
from delta_tune.inference.ensemble import Ensemble
from delta_tune.inference.model import Model, load
from delta_tune.inference.model_folder import save_model
from delta_tune.models.architectures import build_architecture, build_unfilled
from delta_tune.models.backbones import build_target
from delta_tune.models.feature_maps import head_inputs
from delta_tune.models.hooked_layers import find_layers


@pytest.fixture(scope="module")
def model(task, tmp_path_factory):
    place = tmp_path_factory.mktemp("model")
    network = build_target(task.backbone, 3, torch.Generator().manual_seed(0))
    network.get_submodule(task.backbone.head).weight.data *= 30  # logits that are not all alike
    safetensors.torch.save_file(network.state_dict(), place / "weights.safetensors")
    save_model(
        task.backbone,
        task.dataset.classes,
        [place / "weights.safetensors"],
        {"config": {"regularizer": "delta"}, "metrics": {}},
        place / "best",
    )
    return load(place / "best")


@pytest.fixture(scope="module")
def images():
    return torch.from_numpy(np.random.default_rng(7).normal(size=(5, 3, 64, 64)).astype(np.float32))


@pytest.fixture(scope="module")
def expected(model, images):
    with torch.inference_mode():
        return model.network(images).numpy()


@pytest.fixture(scope="module")
def onnx_file(model, tmp_path_factory):
    file = tmp_path_factory.mktemp("onnx") / "model.onnx"
    export_model(model, "onnx", file, inputs="normalized", embeddings=True)
    return file


def test_onnx_gives_the_logits_for_any_number_of_images(onnx_file, images, expected):
    session = onnxruntime.InferenceSession(str(onnx_file), providers=["CPUExecutionProvider"])
    for many in (1, 2, 5):
        (logits,) = session.run(["logits"], {"images": images[:many].numpy()})
        np.testing.assert_allclose(logits, expected[:many], atol=1e-4)


def test_onnx_gives_the_inputs_of_the_head_beside_logits(onnx_file, model, task, images):
    session = onnxruntime.InferenceSession(str(onnx_file), providers=["CPUExecutionProvider"])
    (found,) = session.run(["embeddings"], {"images": images.numpy()})
    with torch.inference_mode():
        expected = head_inputs(model.network, task.backbone.head, images).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-4 * max(1, np.abs(expected).max()))


def test_onnx_is_valid_and_tells_classes_and_preprocessing(onnx_file, model):
    proto = onnx.load(onnx_file)
    onnx.checker.check_model(proto, full_check=True)
    told = {each.key: json.loads(each.value) for each in proto.metadata_props}
    assert told["classes"] == list(model.classes)
    assert told["preprocessing"] == model.config["preprocessing"]


def test_onnx_tells_its_input_so_that_another_program_can_predict(onnx_file, model):
    session = onnxruntime.InferenceSession(str(onnx_file), providers=["CPUExecutionProvider"])
    told = {key: json.loads(value) for key, value in session.get_modelmeta().custom_metadata_map.items()}
    given, (node,) = told["input"], session.get_inputs()
    assert (given["name"], given["shape"]) == (node.name, node.shape)
    assert told["output"]["shape"] == session.get_outputs()[0].shape
    size = given["shape"][2]
    pixels = np.random.default_rng(1).integers(0, 255, (size, size, 3), dtype=np.uint8)
    values = (pixels / 255 - told["preprocessing"]["mean"]) / told["preprocessing"]["std"]
    (logits, _) = session.run(None, {given["name"]: values.transpose(2, 0, 1)[None].astype(given["type"])})
    # The image as it is kept before its centre is taken: nothing is resized, so both programs see the same pixels
    stored = model.preprocessing.stored_size
    start = round((stored - size) / 2)
    whole = np.zeros((stored, stored, 3), np.uint8)
    whole[start : start + size, start : start + size] = pixels
    (prediction,) = model.predict(whole)
    shares = np.exp(logits[0]) / np.exp(logits[0]).sum()
    np.testing.assert_allclose(shares, list(prediction.probabilities.values()), atol=1e-4)


def scripted(model, images, file):
    """The logits that the model's TorchScript file gives, and the configuration in it."""
    export_model(model, "torchscript", file, inputs="normalized")
    files = {"config.json": ""}
    script = torch.jit.load(str(file), _extra_files=files)
    with torch.inference_mode():
        return script(images).numpy(), json.loads(files["config.json"])


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
def test_torchscript_gives_the_logits_and_tells_classes(model, images, expected, tmp_path):
    logits, told = scripted(model, images, tmp_path / "model.pt")
    np.testing.assert_allclose(logits, expected, atol=1e-4)
    assert told["classes"] == list(model.classes)


def test_state_dict_is_taken_by_the_librarys_own_constructor(model, images, expected, tmp_path):
    export_model(model, "state_dict", tmp_path / "model.pth")
    network = timm.create_model("test_resnet", num_classes=3).eval()
    network.load_state_dict(torch.load(tmp_path / "model.pth", weights_only=True))
    with torch.inference_mode():
        np.testing.assert_allclose(network(images).numpy(), expected, atol=1e-4)


def of_random_weights(name):
    """A model of three classes whose weights, norms included, are drawn."""
    generator = torch.Generator().manual_seed(0)
    head = find_layers(build_unfilled(name).eval(), name).head
    network = build_architecture(name, head, 3)
    for key, value in network.state_dict().items():
        if value.is_floating_point():
            drawn = torch.randn(value.shape, generator=generator)
            value.copy_(1 + 0.1 * drawn if value.ndim == 1 else drawn * (2 / value[0].numel()) ** 0.5)
            if key.endswith("running_var"):
                value.abs_()
    crop = {"image_size": 96, "stored_size": 110, "interpolation": "bilinear"}
    crop |= {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    config = {"classes": ["a", "b", "c"], "preprocessing": crop, "backbone": {"model": name, "head": head}}
    return Model(network.eval(), config)


@pytest.mark.parametrize("name", ["inception_v3", "googlenet", "mnasnet0_5", "timm:repvit_m0_9"])
def test_state_dict_with_the_call_beside_it_gives_the_same_logits(name, tmp_path):
    model = of_random_weights(name)
    file, beside = export_model(model, "state_dict", tmp_path / "model.pth")
    told = json.loads(beside.read_text())
    assert told["classes"] == ["a", "b", "c"]
    assert told["preprocessing"] == model.config["preprocessing"]
    calls = {"timm.create_model": timm.create_model, "torchvision.models.get_model": torchvision.models.get_model}
    call = told["constructor"]
    network = calls[call["call"]](*call["arguments"], **call["keywords"]).eval()
    network.load_state_dict(torch.load(file, weights_only=True))
    images = torch.randn(4, 3, 96, 96) + torch.randn(4, 3, 1, 1)
    with torch.inference_mode():
        torch.testing.assert_close(network(images), model.network(images), rtol=1e-4, atol=1e-4)


def test_state_dict_that_answers_otherwise_in_its_library_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(state_dict, "constructor_options", lambda *_: {"aux_logits": False, "init_weights": False})
    with pytest.raises(ExportMismatch, match="differ by"):
        export_model(of_random_weights("inception_v3"), "state_dict", tmp_path / "model.pth")
    assert list(tmp_path.iterdir()) == []


def test_state_dict_that_its_library_does_not_take_is_refused(model, tmp_path, monkeypatch):
    monkeypatch.setattr(state_dict, "constructor_options", lambda *_: {"in_chans": 1})
    with pytest.raises(UserError, match=r"cannot be exported to state_dict .*give another --format"):
        export_model(model, "state_dict", tmp_path / "model.pth")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def combined(model):
    """Two networks, a temperature and mirror images."""
    other = of_random_weights("timm:test_resnet").network
    return Model(Ensemble([model.network, other]), model.config | {"networks": 2, "temperature": 1.7}, flip=True)


@pytest.fixture(scope="module")
def combined_shares(combined, images):
    """Its calibrated probabilities, from those of the members for each view."""
    views = images, images.flip(3)
    with torch.inference_mode():
        members = combined.network.network.members
        mean = torch.stack([member(view).softmax(1) for member in members for view in views]).mean(0)
    powers = mean.numpy() ** (1 / 1.7)
    return powers / powers.sum(1, keepdims=True)


@pytest.mark.slow
def test_onnx_of_several_networks_gives_calibrated_probabilities(combined, combined_shares, images, tmp_path):
    export_model(combined, "onnx", tmp_path / "model.onnx", inputs="normalized")
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    for many in (1, 5):
        (logits,) = session.run(None, {"images": images[:many].numpy()})
        np.testing.assert_allclose(softmax(logits, axis=1), combined_shares[:many], atol=1e-4)
    told = json.loads(session.get_modelmeta().custom_metadata_map["output"])
    assert told["values"].startswith("logits, already divided by the temperature 1.7; softmax")
    assert "mirror image" in told["flip"]


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
def test_torchscript_of_several_networks_gives_calibrated_probabilities(combined, combined_shares, images, tmp_path):
    logits, told = scripted(combined, images, tmp_path / "model.pt")
    np.testing.assert_allclose(softmax(logits, axis=1), combined_shares, atol=1e-4)
    assert told["output"]["values"].startswith("logits, already divided by the temperature 1.7; softmax")
    assert "temperature" not in told, "nobody divides a second time"


@pytest.mark.parametrize("flip", [False, True])
def test_state_dict_of_several_networks_is_refused(model, tmp_path, flip):
    several = Model(Ensemble([model.network, model.network]), model.config, flip=flip)
    with pytest.raises(UserError, match="A state dict cannot hold 2 networks; give --format onnx or torchscript"):
        export_model(several, "state_dict", tmp_path / "model.pth")
    assert list(tmp_path.iterdir()) == []


def test_state_dict_has_the_temperature_beside_it(model, images, expected, tmp_path):
    calibrated = Model(model.network, model.config | {"temperature": 1.7})
    file, beside = export_model(calibrated, "state_dict", tmp_path / "model.pth")
    assert json.loads(beside.read_text())["temperature"] == 1.7
    network = timm.create_model("test_resnet", num_classes=3).eval()
    network.load_state_dict(torch.load(file, weights_only=True))
    with torch.inference_mode():
        np.testing.assert_allclose(network(images).numpy(), expected, atol=1e-4)


def test_file_whose_logits_differ_is_not_left_behind(model, tmp_path, monkeypatch):
    monkeypatch.setattr(check, "TOLERANCE", -1.0)
    with pytest.raises(ExportMismatch, match="differ by"):
        export_model(model, "torchscript", tmp_path / "model.pt", inputs="normalized")
    assert list(tmp_path.iterdir()) == []


def test_onnx_without_its_packages_is_refused(model, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    monkeypatch.setattr(onnx_writer.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'pip install "delta-tune\[onnx\]"'):
        export_model(model, "onnx", tmp_path / "model.onnx")


def test_weights_that_no_onnx_file_holds_are_refused_before_they_are_exported(model, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_writer, "MOST_BYTES", 10_000)
    monkeypatch.setattr(onnx_writer, "graph_of", None)
    with pytest.raises(UserError, match=r"at most 2 GiB, and the model's weights are .*; give --format torchscript"):
        export_model(model, "onnx", tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *[("resnet18", kind) for kind in ("torchscript", "state_dict")],
        pytest.param("resnet18", "onnx", marks=pytest.mark.slow),
        pytest.param("timm:tf_efficientnet_lite0", "onnx", marks=pytest.mark.exhaustive),
        *[("timm:tf_efficientnet_lite0", kind) for kind in ("torchscript", "state_dict")],
    ],
)
def test_a_model_of_five_channels_is_exported_and_says_so(name, kind, tmp_path):
    config = {
        "backbone": {"model": name, "head": "fc" if name == "resnet18" else "classifier"},
        "classes": ["a", "b"],
        "preprocessing": {
            **{"image_size": 64, "stored_size": 64, "mean": [0.5] * 5, "std": [0.5] * 5, "interpolation": "bilinear"},
            **{"resize": "letterbox", "channels": 5, "white": 4095.0},
        },
    }
    torch.manual_seed(0)
    network = build_architecture(name, config["backbone"]["head"], 2, channels=5).eval()
    for value in network.state_dict().values():
        value.copy_(torch.rand(value.shape) / 10 if value.is_floating_point() else value)
    files = export_model(Model(network, config), kind, tmp_path / "model")
    if kind == "onnx":
        told = {each.key: json.loads(each.value) for each in onnx.load(files[0]).metadata_props}
        assert told["input"]["shape"] == ["N", "H", "W", 5]
        assert told["input"]["channels"] == "5, in the order of the images"
        assert told["preprocessing"] == config["preprocessing"]
    if kind == "state_dict":
        told = json.loads(files[1].read_text())["constructor"]
        assert told["keywords"].get("in_chans") == (None if name == "resnet18" else 5)
        assert told.get("input_convolution") == ({"module": "conv1", "in_channels": 5} if name == "resnet18" else None)


def test_what_onnxruntime_cannot_run_is_one_sentence(model, tmp_path, monkeypatch):
    def refuse(*given, **named):
        raise Exception("[ONNXRuntimeError] : 9 : NOT_IMPLEMENTED")  # as its own exceptions, which have no public name

    monkeypatch.setattr(onnxruntime, "InferenceSession", refuse)
    with pytest.raises(UserError, match=r"cannot be exported to onnx .*onnxruntime cannot run it.*NOT_IMPLEMENTED"):
        export_model(model, "onnx", tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []
