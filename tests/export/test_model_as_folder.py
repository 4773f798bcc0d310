from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
import yaml
from helpers.fuzz import cases
from helpers.names import NAMES
from helpers.random_models import random_model
from helpers.studies import study_json
from huggingface_hub import ModelCard
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from PIL import Image

from delta_tune.config import UserError
from delta_tune.data.augmentation import center_crop
from delta_tune.data.images import read_square
from delta_tune.export import library_network, model_as_folder
from delta_tune.export import torchvision_folder as torchvision_folder_module
from delta_tune.export.check import ExportMismatch
from delta_tune.export.folder_card import folder_card
from delta_tune.export.model_as_folder import export_folder, study_of
from delta_tune.export.timm_folder import crop_share, timm_folder
from delta_tune.export.torchvision_folder import torchvision_folder
from delta_tune.inference.ensemble import Ensemble
from delta_tune.inference.model import Model
from delta_tune.results.study_record import StudyRecord

LIBRARIES = ("timm", "torchvision")
WITHOUT_DELTA_TUNE = "import sys\nsys.modules['delta_tune'] = None\n"


def smooth_photo(width, height):
    """Colours that change slowly, so that a pixel beside is nearly the same."""
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    values = np.stack([x, y, (np.sin(5 * x + 3 * y) + 1) / 2], axis=2)
    return Image.fromarray((values * 255).astype(np.uint8))


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    """A folder with `photo.jpg`, of the stored size, so that nothing is resized, and turned by its EXIF data."""
    place = tmp_path_factory.mktemp("photo")
    exif = Image.Exif()
    exif[0x0112] = 6
    smooth_photo(73, 73).save(place / "photo.jpg", exif=exif, quality=95)
    return place


def code_of(folder):
    """The Python that the folder's README.md shows, in one piece."""
    return "\n".join(re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL))


def answers(folder, photo, monkeypatch):
    """What the README's Python leaves behind when it runs beside the folder and `photo.jpg`."""
    monkeypatch.chdir(folder.parent)
    if not Path("photo.jpg").exists():
        Path("photo.jpg").symlink_to(photo / "photo.jpg")
    monkeypatch.setitem(sys.modules, "delta_tune", None)
    left = {}
    exec(code_of(folder), left)
    return left


@pytest.fixture(scope="module")
def own():
    """Of each library, a model of a network that it alone has, with a temperature."""
    return {
        "timm": random_model("timm:test_resnet", temperature=1.7),
        "torchvision": random_model("squeezenet1_1", temperature=1.7),
    }


@pytest.mark.parametrize("library", LIBRARIES)
def test_lines_in_the_readme_load_and_predict_as_the_model(own, library, photo, tmp_path, monkeypatch):
    model = own[library]
    lines = export_folder(model, library, tmp_path / "out")
    left = answers(tmp_path / "out", photo, monkeypatch)
    (expected,) = model.predict([photo / "photo.jpg"])
    np.testing.assert_allclose(left["probabilities"], list(expected.probabilities.values()), atol=1e-3)
    assert len(lines.splitlines()) == 3
    assert str(tmp_path / "out") in lines


def test_lines_in_the_readme_load_a_network_that_asks_for_its_version(photo, tmp_path, monkeypatch):
    model = random_model("mnasnet0_5", temperature=1.7)
    export_folder(model, "torchvision", tmp_path / "out")
    left = answers(tmp_path / "out", photo, monkeypatch)
    (expected,) = model.predict([photo / "photo.jpg"])
    np.testing.assert_allclose(left["probabilities"], list(expected.probabilities.values()), atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("library", [*LIBRARIES, "hf"])
def test_lines_in_the_readme_need_nothing_of_ours(library, photo, tmp_path):
    model = random_model("mobilenet_v2", temperature=0.6, classes=[f"c{n}" for n in range(3)])
    export_folder(model, library, tmp_path / "out")
    code = f"{WITHOUT_DELTA_TUNE}{code_of(tmp_path / 'out')}"
    (tmp_path / "photo.jpg").symlink_to(photo / "photo.jpg")
    ran = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    said = eval(ran.stdout.splitlines()[-1], {"__builtins__": {}})
    if library == "hf":
        said = {each["label"]: each["score"] for each in said}
        said = [said[name] for name in model.classes]
    found = list(said.values()) if isinstance(said, dict) else said
    (expected,) = model.predict([photo / "photo.jpg"])
    np.testing.assert_allclose(found, list(expected.probabilities.values()), atol=1e-3)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_transformers_answers_with_the_sigmoids_of_several_labels(photo, tmp_path):
    from transformers import pipeline

    model = random_model("timm:test_resnet", task="multilabel", thresholds=[0.3, 0.5, 0.6], temperature=2.0)
    export_folder(model, "hf", tmp_path / "out")
    classify = pipeline("image-classification", str(tmp_path / "out"))
    found = {each["label"]: each["score"] for each in classify(str(photo / "photo.jpg"))}
    (expected,) = model.predict([photo / "photo.jpg"])
    assert classify.model.config.id2label == dict(enumerate(model.classes))
    assert found == pytest.approx(expected.probabilities, abs=1e-3)
    assert sum(found.values()) != pytest.approx(1, abs=0.05)


@pytest.mark.parametrize(
    ("name", "library", "architecture"),
    [
        ("mobilenet_v2", "timm", "mobilenetv2_100"),
        ("timm:mobilenetv2_100", "torchvision", "mobilenet_v2"),
        ("timm:resnet18.a1_in1k", "torchvision", "resnet18"),
        ("timm:resnet18.a1_in1k", "timm", "resnet18"),
        pytest.param("inception_v3", "torchvision", "inception_v3", marks=pytest.mark.slow),
        ("timm:repvit_m0_9", "timm", "repvit_m0_9"),
    ],
)
def test_networks_go_over_to_the_other_library(name, library, architecture, tmp_path):
    model = random_model(name, size=96, temperature=1.3)
    export_folder(model, library, tmp_path / "out")
    told = json.loads((tmp_path / "out" / "config.json").read_text())
    found = told["architecture"] if library == "timm" else told["constructor"]["arguments"][0]
    assert found == architecture


@pytest.mark.parametrize(
    ("name", "library", "message"),
    [
        ("squeezenet1_1", "timm", r"timm has no network .* squeezenet1_1, .*; give --format torchvision, onnx, torchs"),
        ("timm:test_resnet", "torchvision", r"torchvision has no network .*; give --format timm, hf, onnx, torchscr"),
        (
            "timm:mobilenetv3_small_100",
            "torchvision",
            "torchvision's network computes something else; give another --format",
        ),
    ],
)
def test_network_that_the_library_does_not_have_is_refused(name, library, message, tmp_path):
    with pytest.raises(UserError, match=message):
        export_folder(random_model(name), library, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize(("networks", "flip", "what"), [(2, False, "2 networks"), (1, True, "and its mirror image")])
def test_several_networks_are_refused(own, library, networks, flip, what, tmp_path):
    network = own[library].network
    several = Ensemble([network] * networks) if networks > 1 else network
    with pytest.raises(UserError, match=f"A folder for {library} cannot hold .*{what}; give --format onnx or torchs"):
        export_folder(Model(several, own[library].config, flip=flip), library, tmp_path / "out")


def test_grey_images_go_to_timm_and_to_nobody_else(photo, tmp_path, monkeypatch):
    model = random_model("resnet18", channels=1)
    export_folder(model, "timm", tmp_path / "out")
    left = answers(tmp_path / "out", photo, monkeypatch)
    monkeypatch.delitem(sys.modules, "delta_tune")
    (expected,) = model.predict([photo / "photo.jpg"])
    np.testing.assert_allclose(left["probabilities"], list(expected.probabilities.values()), atol=1e-3)
    for library in ("torchvision", "hf"):
        monkeypatch.setattr(model_as_folder, "check_transformers", lambda: None)
        with pytest.raises(UserError, match="1 channels; give --format timm, onnx"):
            export_folder(model, library, tmp_path / library)


def test_five_channels_go_to_timm_with_the_preprocessing_beside(tmp_path):
    model = random_model("timm:test_resnet", channels=5, white=4095.0)
    export_folder(model, "timm", tmp_path / "out")
    read = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    images = torch.randn(2, 5, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(read(images), model.network(images), rtol=1e-4, atol=1e-4)
    assert json.loads((tmp_path / "out/delta_tune.json").read_text())["preprocessing"] == model.config["preprocessing"]
    card = (tmp_path / "out/README.md").read_text()
    assert "timm's transform does not apply" in card
    assert "4095 is white" in card


@pytest.mark.parametrize("size", [(200, 130), (90, 220), (64, 64)])
@pytest.mark.parametrize("resize", ["crop", "squash", "letterbox"])
@pytest.mark.parametrize("library", LIBRARIES)
def test_librarys_transform_shows_the_network_what_it_was_trained_on(library, resize, size, tmp_path):
    model = random_model("mobilenet_v2", size=56, resize=resize)
    image = smooth_photo(*size)
    image.save(tmp_path / "image.png")
    square = torch.from_numpy(read_square(tmp_path / "image.png", model.preprocessing))[None]
    expected = center_crop(square, model.preprocessing)[0]
    if library == "timm":
        told = timm_folder(model).files["config.json"]["pretrained_cfg"]
        transform = timm.data.create_transform(**timm.data.resolve_data_config(pretrained_cfg=told))
    else:
        code = torchvision_folder(model).files["config.json"]["transform"]
        left = {}
        exec(f"import torch\nfrom torchvision.transforms import v2\ntransform = {code}", left)
        transform = left["transform"]
    found = transform(image)
    assert found.shape == expected.shape
    assert float((found - expected).abs().mean()) < 0.1  # a border may lie a pixel beside
    assert float((found - expected).abs().median()) < 0.03


def test_ways_to_fit_an_image_differ_by_more_than_a_pixel(tmp_path):
    smooth_photo(90, 220).save(tmp_path / "image.png")
    seen = []
    for resize in ("crop", "squash", "letterbox"):
        preprocessing = random_model("mobilenet_v2", size=56, resize=resize).preprocessing
        square = torch.from_numpy(read_square(tmp_path / "image.png", preprocessing))[None]
        seen.append(center_crop(square, preprocessing)[0])
    assert min(float((a - b).abs().mean()) for a, b in itertools.combinations(seen, 2)) > 0.2


@cases(200)
@given(st.integers(1, 400), st.integers(0, 400))
def test_timm_resizes_the_short_side_to_the_stored_size(image_size, more):
    model = random_model_preprocessing(image_size, image_size + min(more, 3 * image_size))
    assert int(np.floor(image_size / crop_share(model))) == model.stored_size


def random_model_preprocessing(image_size, stored_size):
    from delta_tune.data.images import Preprocessing

    return Preprocessing(
        image_size=image_size, stored_size=stored_size, mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bilinear"
    )


def test_folder_that_the_library_does_not_load_is_not_kept(own, tmp_path, monkeypatch):
    monkeypatch.setattr(torchvision_folder_module, "load_file", lambda file: {"strange": torch.zeros(1)})
    with pytest.raises(UserError, match=r"torchvision does not load it \(RuntimeError: .*\); give another --format"):
        export_folder(own["torchvision"], "torchvision", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_folder_that_computes_something_else_is_not_kept(own, tmp_path, monkeypatch):
    given = library_network._calibrated_state
    monkeypatch.setattr(library_network, "_calibrated_state", lambda model: {k: 2 * v for k, v in given(model).items()})
    with pytest.raises(ExportMismatch, match="computes something else"):
        export_folder(own["timm"], "timm", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_earlier_export_is_replaced_whole(own, tmp_path):
    export_folder(own["torchvision"], "torchvision", tmp_path / "out")
    export_folder(own["timm"], "timm", tmp_path / "out")
    assert json.loads((tmp_path / "out/config.json").read_text())["architecture"] == "test_resnet"
    assert [each.name for each in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("name", ["notes.txt", "config.json", "README.md"])
def test_folder_of_other_files_is_left_as_it_is(own, name, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text("{}")
    with pytest.raises(UserError, match=f"out holds '{name}', which is of no earlier export|'config.json'"):
        export_folder(own["timm"], "timm", tmp_path / "out")
    assert (tmp_path / "out" / name).read_text() == "{}"
    assert len(list((tmp_path / "out").iterdir())) == 1


def test_earlier_export_with_a_file_beside_it_is_left_as_it_is(own, tmp_path):
    export_folder(own["timm"], "timm", tmp_path / "out")
    (tmp_path / "out/mine.txt").write_text("mine")
    with pytest.raises(UserError, match=r"holds 'mine\.txt'"):
        export_folder(own["timm"], "timm", tmp_path / "out")


def test_hf_without_transformers_is_refused(own, tmp_path, monkeypatch):
    monkeypatch.setattr("delta_tune.export.hf_folder.importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'pip install "delta-tune\[hf\]", or give --format timm'):
        export_folder(own["timm"], "hf", tmp_path / "out")


def test_thresholds_are_told_where_they_cannot_be_held(tmp_path):
    model = random_model("timm:test_resnet", task="multilabel", thresholds=[0.25, 0.5, 0.6])
    export_folder(model, "timm", tmp_path / "out")
    assert json.loads((tmp_path / "out/delta_tune.json").read_text())["thresholds"] == [0.25, 0.5, 0.6]
    card = (tmp_path / "out/README.md").read_text()
    assert "threshold in `delta_tune.json` on (0.25 to 0.6)" in card
    assert ".sigmoid()" in card


def test_weights_have_the_temperature_in_the_head_alone(own, tmp_path):
    model = own["timm"]
    export_folder(model, "timm", tmp_path / "out")
    found, given = safetensors.torch.load_file(tmp_path / "out/model.safetensors"), model.network.state_dict()
    head = model.config["backbone"]["head"]
    for name, value in given.items():
        expected = value / 1.7 if name.startswith(f"{head}.") else value
        torch.testing.assert_close(found[name], expected)
    assert "divided by the temperature 1.7" in (tmp_path / "out/README.md").read_text()


# The model card


@pytest.fixture
def record(tmp_path):
    study_json(tmp_path, model="trial 0", winner=0)
    return StudyRecord.read(tmp_path)


def test_card_tells_the_hub_what_was_scored(own, record, tmp_path):
    export_folder(own["timm"], "timm", tmp_path / "out", record)
    card = ModelCard.load(tmp_path / "out/README.md")
    (result,) = card.data.eval_results
    assert (card.data.library_name, card.data.pipeline_tag) == ("timm", "image-classification")
    assert (result.metric_type, result.metric_value, result.dataset_split) == ("accuracy", 0.9, "test")
    assert result.dataset_name == "photos"
    assert "Test: accuracy 90.0 % on 60 images" in card.text


def test_card_tells_no_folder_of_the_author(own, record, tmp_path):
    record.content["settings"]["data"] = "/home/me/secret/photos"
    export_folder(own["timm"], "timm", tmp_path / "out", record)
    assert "secret" not in (tmp_path / "out/README.md").read_text()
    assert "secret" not in (tmp_path / "out/delta_tune.json").read_text()


@pytest.mark.parametrize(
    ("model", "weights", "base"),
    [
        ("timm:resnet18.a1_in1k", "default", "timm/resnet18.a1_in1k"),
        ("timm:resnet18", None, "timm/resnet18.a1_in1k"),
        ("timm:resnet18", "mine.pth", None),
        ("timm:tf_efficientnet_lite0", "demo", None),
        ("resnet18", "default", None),
    ],
)
def test_card_names_the_base_model_that_is_on_the_hub(own, record, model, weights, base, tmp_path):
    record.content["backbone"] = model
    record.content["settings"]["weights"] = weights
    text = folder_card(own["timm"], timm_folder(own["timm"]), "out", record)
    assert yaml.safe_load(text.split("---\n")[1]).get("base_model") == base


def test_study_is_found_beside_its_model_and_nowhere_else(record, tmp_path):
    (tmp_path / "best").mkdir()
    (tmp_path / "other").mkdir()
    assert study_of(tmp_path).content == study_of(tmp_path / "best").content == record.content
    assert study_of(tmp_path / "other") is None
    (tmp_path / "study.json").write_text("{")
    assert study_of(tmp_path) is None


def blocks(text):
    """Of the Markdown after the head: its blocks, and what stands in their lines."""
    tokens = MarkdownIt("gfm-like", {"linkify": False}).parse(text.split("---\n", 2)[2])
    inline = {child.type for token in tokens for child in token.children or ()}
    return [token.type for token in tokens], inline - {"text", "code_inline", "softbreak"}


@cases(60)
@given(NAMES, NAMES)
def test_names_are_names_in_the_card(first, second):
    usual = card_of_names(["a", "b"], "photos")
    odd = card_of_names([first, second + "x"], second)
    assert blocks(odd) == blocks(usual)
    assert not blocks(odd)[1]
    head = yaml.safe_load(odd.split("---\n")[1])
    assert head["model-index"][0]["results"][0]["metrics"][0]["value"] == 0.9


def card_of_names(classes, data):
    """The card of a model of these classes and this data; the folder's name is odd too."""
    scoring = {"trial": 0, "model": "m", "images": 60, "test_accuracy": 0.9, "test_accuracy_interval": [0.8, 0.95]}
    settings = {"data": data, "name": data, "weights": "default"}
    record = StudyRecord({"settings": settings, "backbone": "x", "model": "m", "test_scorings": [scoring]})
    return folder_card(Model(MODEL.network, MODEL.config | {"classes": classes}), FOLDER, data, record)


MODEL = random_model("timm:test_resnet", classes=["a", "b"])
FOLDER = timm_folder(MODEL)
