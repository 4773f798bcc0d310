"""A model of several labels an image: what it answers, its folder, and its files for other programs."""

from __future__ import annotations

import json

import numpy as np
import onnx
import onnxruntime
import pytest
import safetensors.torch
import torch
from scipy.special import expit
from torch import nn

from delta_tune.cli import commands
from delta_tune.config import UserError
from delta_tune.export.model_file import export_model
from delta_tune.inference.ensemble import Flipped, combine
from delta_tune.inference.model import load
from delta_tune.inference.model_folder import save_model
from delta_tune.labels.several_labels import SEVERAL_LABELS
from delta_tune.models.backbones import build_target

THRESHOLDS = [0.3, 0.5, 0.6]


@pytest.fixture(scope="module")
def folder(label_task, tmp_path_factory):
    place = tmp_path_factory.mktemp("model")
    files = []
    for seed in range(2):
        network = build_target(label_task.backbone, 3, torch.Generator().manual_seed(seed))
        network.get_submodule(label_task.backbone.head).weight.data *= 30  # probabilities that are not all alike
        files.append(place / f"{seed}.safetensors")
        safetensors.torch.save_file(network.state_dict(), files[-1])
    origin = {"config": {"regularizer": "l2"}, "metrics": {}, "temperature": 2.0, "thresholds": THRESHOLDS}
    save_model(label_task.backbone, label_task.dataset.classes, files, origin, place / "best", SEVERAL_LABELS)
    return place / "best"


@pytest.fixture(scope="module")
def model(folder):
    return load(folder)


@pytest.fixture(scope="module")
def pixels():
    return np.random.default_rng(0).integers(0, 256, (6, 64, 64, 3), dtype=np.uint8)


def test_labels_are_those_above_their_thresholds_the_most_probable_first(model, pixels, monkeypatch):
    shares = [list(each.probabilities.values()) for each in model.predict(pixels)]
    thresholds = np.median(shares, axis=0).tolist()
    monkeypatch.setattr(model, "thresholds", thresholds)
    found = model.predict(pixels)
    for each in found:
        share = each.probabilities
        there = [label for label, least in zip(model.classes, thresholds, strict=True) if share[label] >= least]
        assert each.labels == tuple(sorted(there, key=lambda label: -share[label]))
        assert each.label == max(share, key=share.get)
        assert each.probability == share[each.label]
    assert len({each.labels for each in found}) > 1


def test_probabilities_are_means_of_the_members_sigmoids_before_the_temperature(model, label_task):
    images = torch.from_numpy(np.random.default_rng(1).normal(size=(4, 3, 64, 64)).astype(np.float32))
    with torch.inference_mode():
        mean = np.mean([expit(member(images).numpy()) for member in model.network.members], axis=0)
        np.testing.assert_allclose(expit(model.network(images).numpy()), mean, rtol=1e-4)


def test_flip_averages_the_probabilities_of_both_images():
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 4, 5)).eval()
    images = torch.randn(3, 3, 4, 4)
    flipped = combine([network], SEVERAL_LABELS, flip=True)
    assert isinstance(flipped, Flipped)
    with torch.inference_mode():
        expected = (network(images).sigmoid() + network(images.flip(3)).sigmoid()) / 2
        torch.testing.assert_close(flipped(images).sigmoid(), expected)


def test_model_whose_study_found_no_thresholds_has_a_half(label_task, folder, tmp_path):
    origin = {"config": {}, "metrics": {}}
    weights = [folder / "model.safetensors"]
    save_model(label_task.backbone, label_task.dataset.classes, weights, origin, tmp_path / "best", SEVERAL_LABELS)
    assert load(tmp_path / "best").thresholds == [0.5] * 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"thresholds": [0.5, 0.5]}, "2 for 3 classes"),
        ({"thresholds": [0.5, 0.5, 1.5]}, "thresholds"),
        ({"task": "detection"}, "task"),
    ],
)
def test_damaged_folder_is_refused(folder, tmp_path, content, message):
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | content))
    with pytest.raises(UserError, match=message):
        load(tmp_path)


@pytest.mark.slow
def test_onnx_has_task_thresholds_and_the_logits_of_the_probabilities(model, pixels, tmp_path):
    export_model(model, "onnx", tmp_path / "model.onnx", inputs="normalized")
    told = {each.key: json.loads(each.value) for each in onnx.load(str(tmp_path / "model.onnx")).metadata_props}
    assert told["task"] == "multilabel"
    assert told["output"]["thresholds"] == THRESHOLDS
    assert told["output"]["values"].endswith("the sigmoid of each is its probability")
    mean, std = (np.array(told["preprocessing"][name]) for name in ("mean", "std"))
    images = ((pixels / 255 - mean) / std).transpose(0, 3, 1, 2).astype(np.float32)
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    with torch.inference_mode():
        expected = (model.network(torch.from_numpy(images)) / 2).sigmoid().numpy()
    np.testing.assert_allclose(expit(session.run(["logits"], {"images": images})[0]), expected, atol=1e-4)


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
def test_torchscript_has_task_and_thresholds(model, tmp_path):
    export_model(model, "torchscript", tmp_path / "model.pt", inputs="normalized")
    files = {"config.json": ""}
    torch.jit.load(str(tmp_path / "model.pt"), _extra_files=files)
    told = json.loads(files["config.json"])
    assert (told["task"], told["thresholds"], told["output"]["thresholds"]) == ("multilabel", THRESHOLDS, THRESHOLDS)


def test_answer_that_no_label_is_there_is_unsure_if_the_likeliest_may_well_be(model, pixels, monkeypatch):
    monkeypatch.setattr(model, "thresholds", [1.0, 1.0, 1.0])
    plain = model.predict(pixels)
    middle = sorted(1 - each.probability for each in plain)[3]
    found = model.predict(pixels, min_confidence=middle)
    assert {each.labels for each in found} == {()}
    assert [each.unsure for each in found] == [1 - each.probability < middle for each in plain]
    assert len({each.unsure for each in found}) == 2


def test_labels_that_are_there_are_unsure_if_the_likeliest_is_improbable(model, pixels, monkeypatch):
    monkeypatch.setattr(model, "thresholds", [0.0, 0.0, 0.0])
    plain = model.predict(pixels)
    middle = sorted(each.probability for each in plain)[3]
    assert [each.unsure for each in model.predict(pixels, min_confidence=middle)] == [
        each.probability < middle for each in plain
    ]


def test_one_confidence_for_all_is_refused(model, pixels):
    with pytest.raises(UserError, match="a threshold for each label instead of one confidence"):
        model.predict(pixels, min_confidence="auto")


def test_predict_prints_the_labels_that_are_there(folder, model, pixels, tmp_path, capsys):
    from PIL import Image

    for n, each in enumerate(pixels):
        Image.fromarray(each).save(tmp_path / f"{n}.png")
    files = [str(tmp_path / f"{n}.png") for n in range(6)]
    assert commands.main(["predict", str(folder), *files, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [tuple(row["labels"]) for row in rows] == [each.labels for each in model.predict(files)]
    assert commands.main(["predict", str(folder), files[0], "--top", "3"]) == 0
    said = capsys.readouterr().out
    assert "labels" in said
    assert all(f"{100 * share:.1f}" in said for share in rows[0]["probabilities"].values())
