"""A folder of several networks: read as it was written, never as a mixture."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from delta_tune.config import UserError
from delta_tune.inference import model_folder
from delta_tune.inference.ensemble import members_of
from delta_tune.inference.model import load
from delta_tune.inference.model_folder import save_model
from delta_tune.models.backbones import build_target

IMAGE = np.random.default_rng(0).integers(0, 255, (80, 80, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def weights(task, tmp_path_factory):
    """Files of five networks that answer differently."""
    folder, files = tmp_path_factory.mktemp("weights"), []
    for seed in range(5):
        network = build_target(task.backbone, 3, torch.Generator().manual_seed(seed))
        network.get_submodule(task.backbone.head).weight.data *= 30
        files.append(folder / f"{seed}.safetensors")
        safetensors.torch.save_file(network.state_dict(), files[-1])
    return files


@pytest.fixture(scope="module")
def save(task):
    """A function that makes the folder a model of some files."""
    return lambda folder, files, **origin: save_model(task.backbone, task.dataset.classes, files, origin, folder)


def answer(folder):
    (prediction,) = load(folder).predict(IMAGE)
    return np.array(list(prediction.probabilities.values()))


@pytest.fixture(scope="module")
def single(weights, save, tmp_path_factory):
    """What each network answers alone."""
    answers = []
    for file in weights:
        folder = tmp_path_factory.mktemp("single") / "best"
        save(folder, [file])
        answers.append(answer(folder))
    return answers


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_model_of_several_networks_answers_with_their_mean(weights, save, single, tmp_path):
    save(tmp_path / "best", weights[:3])
    np.testing.assert_allclose(answer(tmp_path / "best"), np.mean(single[:3], axis=0), rtol=1e-5)
    assert len(members_of(load(tmp_path / "best").network)) == 3
    files = ["model-2.safetensors", "model-3.safetensors", "model.safetensors"]
    assert names(tmp_path / "best") == ["config.json", *files]
    assert json.loads((tmp_path / "best" / "config.json").read_text())["networks"] == 3


def test_each_file_is_a_plain_state_dict(weights, save, tmp_path):
    save(tmp_path / "best", weights[:2])
    assert (tmp_path / "best" / "model-2.safetensors").read_bytes() == weights[1].read_bytes()


def test_networks_of_a_former_model_are_removed(weights, save, single, tmp_path):
    save(tmp_path / "best", weights[:3], temperature=2.0)
    save(tmp_path / "best", weights[3:4])
    assert names(tmp_path / "best") == ["config.json", "model.safetensors"]
    np.testing.assert_array_equal(answer(tmp_path / "best"), single[3])


def interrupted_at(monkeypatch, moment):
    """Let the process end before the call `moment` that changes a name in a folder."""
    calls = 0

    def ending(original):
        def call(self, *given, **named):
            nonlocal calls
            calls += not str(self).endswith(".partial") or original.__name__ == "replace"
            if calls > moment:
                raise KeyboardInterrupt
            return original(self, *given, **named)

        return call

    monkeypatch.setattr(Path, "replace", ending(Path.replace))
    monkeypatch.setattr(Path, "unlink", ending(Path.unlink))


@pytest.mark.parametrize("moment", [3, 4, 5, 6, 7, 20, 21])
def test_folder_is_readable_and_of_one_model_whenever_the_process_ends(
    weights, save, single, tmp_path, monkeypatch, moment
):
    best = tmp_path / "best"
    save(best, weights[:3], temperature=5.0)
    former = answer(best)
    ended = False
    with monkeypatch.context() as patch:
        interrupted_at(patch, moment)
        try:
            save(best, weights[3:])
        except KeyboardInterrupt:
            ended = True
    assert ended == (moment < 21), "report 3, config 1, weights 2, stale ones 14, config 1: then it is whole"
    possible = [former, single[0], single[3], np.mean(single[3:], axis=0)]
    assert any(np.allclose(answer(best), each, rtol=1e-5) for each in possible)


def test_former_model_stays_if_weights_are_missing(weights, save, tmp_path):
    best = tmp_path / "best"
    save(best, weights[:2], temperature=2.0)
    former = answer(best)
    with pytest.raises(FileNotFoundError):
        save(best, [weights[2], tmp_path / "missing.safetensors"])
    np.testing.assert_array_equal(answer(best), former)
    assert len(names(best)) == 3


def test_model_may_be_made_of_files_of_its_own_folder(weights, save, single, tmp_path):
    best = tmp_path / "best"
    save(best, weights[:2])
    save(best, [best / "model-2.safetensors", best / "model.safetensors", weights[2]])
    np.testing.assert_allclose(answer(best), np.mean(single[:3], axis=0), rtol=1e-5)


def test_mixture_of_two_models_is_refused(weights, save, tmp_path):
    save(tmp_path / "best", weights[:2])
    shutil.copyfile(weights[4], tmp_path / "best" / "model-2.safetensors")
    with pytest.raises(UserError, match=r"model-2.safetensors is not the one that config.json tells of"):
        load(tmp_path / "best")


def test_model_that_is_replaced_while_it_is_read_is_read_anew(weights, save, single, tmp_path, monkeypatch):
    best, read = tmp_path / "best", model_folder._read
    save(best, weights[:3])

    def read_slowly(filesystem, path, limit):
        if path.endswith("model-2.safetensors"):
            monkeypatch.setattr(model_folder, "_read", read)
            save(best, weights[3:])
        return read(filesystem, path, limit)

    monkeypatch.setattr(model_folder, "_read", read_slowly)
    np.testing.assert_allclose(answer(best), np.mean(single[3:], axis=0), rtol=1e-5)


def test_temperature_divides_the_logits(weights, save, single, tmp_path):
    save(tmp_path / "best", weights[:1], temperature=2.5)
    shares = single[0] ** (1 / 2.5)
    np.testing.assert_allclose(answer(tmp_path / "best"), shares / shares.sum(), rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("networks", 0, "networks: it should be greater than or equal to 1"),
        ("networks", 17, "networks: it should be less than or equal to 16"),
        ("networks", "2", "networks: it should be a valid integer"),
        ("networks", 3, "sha256: it has 2 sums for 3 networks"),
        ("sha256", None, "sha256: it should be a valid list"),
        ("temperature", 0, "temperature: it should be greater than or equal to 0.01"),
        ("temperature", 101, "temperature: it should be less than or equal to 100"),
        ("temperature", float("inf"), "Infinity, which is not finite"),
        ("temperature", "1", "temperature: it should be a valid number"),
        ("unsure", {"below": 0.5}, "unsure.refused: Field required"),
        ("unsure", {"below": 2, "refused": 0, "accuracy": 1, "images": 9}, "unsure.below: it should be less"),
    ],
)
def test_load_names_the_field(weights, save, tmp_path, name, value, said):
    file = tmp_path / "best" / "config.json"
    save(file.parent, weights[:2])
    file.write_text(json.dumps(json.loads(file.read_text()) | {name: value}))
    with pytest.raises(UserError, match=f"There is no model in .*{said}"):
        load(file.parent)
