"""The model of several runs: its weights, and what is known of it."""

from __future__ import annotations

import shutil
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors.torch
import torch

from delta_tune.config import StudyConfig
from delta_tune.models.architectures import build_architecture
from delta_tune.report.heat_map_images import read_heat_map_images
from delta_tune.report.held_out import HeldOut
from delta_tune.results.calibration import confidence_threshold, expected_calibration_error, fit_temperature
from delta_tune.results.layout import HEAT_MAPS_FILE
from delta_tune.study import final_model
from delta_tune.study.final_model import checked_means, describe, mean_weights, run_folder, save_heat_maps
from delta_tune.study.race import FoldRun
from delta_tune.training.workplace import ThisProcess


def write(folder, *states):
    files = []
    for number, state in enumerate(states):
        files.append(folder / f"{number}.safetensors")
        safetensors.torch.save_file(state, files[-1])
    return files


def test_folder_of_a_run_tells_its_trial_and_fold():
    assert run_folder(FoldRun(trial=12, fold=3)) == "final-00012-3"


def test_mean_of_weights_is_numpy_s(tmp_path):
    rng = np.random.default_rng(0)
    arrays = [rng.normal(0, 1, (4, 5)).astype(np.float32) for _ in range(3)]
    files = write(tmp_path, *({"a": torch.from_numpy(each), "b": torch.tensor([each[0, 0]])} for each in arrays))
    found = mean_weights(files)
    np.testing.assert_array_equal(found["a"].numpy(), np.mean(np.float64(arrays), axis=0).astype(np.float32))
    assert found["a"].dtype == torch.float32
    assert list(found) == ["a", "b"]


def test_mean_of_weights_is_computed_in_float64(tmp_path):
    values = [2.0**24, 1.0, 1.0, -(2.0**24)]  # in float32 a 1 is lost beside the first
    (found,) = mean_weights(write(tmp_path, *({"a": torch.tensor([value])} for value in values)))["a"].tolist()
    assert found == 0.5


def test_mean_of_weights_keeps_whole_numbers_and_types_of_the_first(tmp_path):
    states = [{"n": torch.tensor(k), "h": torch.tensor([k], dtype=torch.float16)} for k in (3, 8)]
    found = mean_weights(write(tmp_path, *states))
    assert (found["n"].item(), found["n"].dtype) == (3, torch.int64)
    assert (found["h"].item(), found["h"].dtype) == (5.5, torch.float16)


def test_mean_of_one_network_is_that_network(tmp_path):
    state = {"a": torch.randn(7), "n": torch.tensor(2)}
    found = mean_weights(write(tmp_path, state))
    assert all(torch.equal(found[name], value) for name, value in state.items())


@pytest.fixture
def state(best):
    """Weights that tell the colours apart."""
    return safetensors.torch.load_file(best / "model.safetensors")


@pytest.fixture
def opposite(state):
    """A network that computes the same with a first layer of the other sign: in the mean that layer is zero."""
    names = list(state)
    turned = {names[names.index("bn1.weight") - 1], "bn1.weight", "bn1.running_mean"}
    return {name: -value if name in turned else value.clone() for name, value in state.items()}


@pytest.fixture
def checked(task, tmp_path):
    """A function from networks to the files of the model, and what was said."""

    def check(states, members=1):
        said = []
        study = SimpleNamespace(
            config=StudyConfig(members=members),
            progress=SimpleNamespace(say=said.append),
        )
        files = write(tmp_path, *states)
        found, averaged = checked_means(study, task.on(task.dataset), files, ThisProcess(), tmp_path / "final")
        assert averaged == any(file not in files and len(files) > len(found) for file in found)
        return [safetensors.torch.load_file(file) for file in found], files, found, said

    return check


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


def test_mean_with_no_more_loss_than_its_networks_is_the_model(checked, state):
    (found,), files, (file,), said = checked([state, state])
    assert file not in files
    assert same(found, state)
    assert said == []


@pytest.mark.parametrize(("ours", "sentences"), [(0.0107, 0), (0.03, 1)])
def test_mean_may_have_a_little_more_loss_than_networks_that_have_next_to_none(
    checked, state, monkeypatch, ours, sentences
):
    losses = iter([ours, 0.005, 0.006])
    monkeypatch.setattr(final_model, "loss_of", lambda *_: next(losses))
    *_, said = checked([state, state])
    assert len(said) == sentences


def test_mean_of_networks_that_do_not_lie_together_is_refused(checked, state, opposite):
    (found,), files, (file,), (said,) = checked([state, opposite])
    assert file == files[0]
    assert same(found, state)
    assert said.startswith("The mean of 2 networks has a loss of ")
    assert said.endswith("so they are not averaged.")


def test_as_many_networks_as_members_take_the_place_of_a_mean_that_is_refused(checked, state, opposite):
    _, files, chosen, said = checked([state, state, opposite, state], members=2)
    assert chosen == files[:2], "the mean of the first and the third is refused"
    assert len(said) == 1


def test_each_member_is_the_mean_of_a_group(checked, state):
    first = {name: value + 1 if name == "fc.bias" else value for name, value in state.items()}  # moves all logits
    found, *_ = checked([first, state, state], members=2)
    assert torch.allclose(found[0]["fc.bias"], state["fc.bias"] + 0.5)
    assert same(found[1], state)


def test_member_of_its_own_is_taken_as_it_is(checked, opposite, state):
    found, _, _, said = checked([opposite, state], members=2)
    assert same(found[0], opposite)
    assert said == [], "it is no mean, so it needs no check"


def test_no_more_networks_than_runs_that_ended(checked, state):
    assert len(checked([state, state], members=5)[0]) == 2


def test_network_of_these_weights_fits(state, task):
    build_architecture(task.backbone.model, task.backbone.head, 3).load_state_dict(state)


@pytest.fixture
def held_out():
    """Overconfident predictions of 200 images, right for 160."""
    rng = np.random.default_rng(0)
    labels = np.arange(200) % 3
    logits = rng.normal(0, 1, (200, 3)).astype(np.float32)
    claimed = np.where(np.arange(200) < 160, labels, (labels + 1) % 3)
    logits[np.arange(200), claimed] += 9
    return HeldOut(names=tuple(map(str, range(200))), labels=labels, logits=logits)


def softmax(logits):
    exponents = np.exp(logits - logits.max(1, keepdims=True))
    return exponents / exponents.sum(1, keepdims=True)


def test_what_is_known_of_the_model_comes_from_the_held_out_images(held_out):
    known = describe(held_out)
    assert (known["images"], known["accuracy"]) == (200, 0.8)
    center, z2 = 0.8, 1.959964**2
    middle = (center + z2 / 400) / (1 + z2 / 200)
    half = np.sqrt(center * 0.2 / 200 * z2 + z2**2 / 4 / 200**2) / (1 + z2 / 200)
    assert known["interval"] == pytest.approx([middle - half, middle + half], rel=1e-4)
    assert known["temperature"] == fit_temperature(held_out.logits, held_out.labels)
    assert known["temperature"] > 2
    calibrated = softmax(held_out.logits.astype(float) / known["temperature"])
    before = expected_calibration_error(softmax(held_out.logits.astype(float)), held_out.labels)
    assert known["calibration_error"] == pytest.approx(before, abs=1e-4)
    assert known["calibrated_error"] == pytest.approx(expected_calibration_error(calibrated, held_out.labels), abs=1e-4)
    assert known["calibrated_error"] < known["calibration_error"]


def test_where_the_model_is_unsure_is_found_on_calibrated_probabilities(held_out):
    logits = held_out.logits.copy()
    logits[160:] /= 5  # the mistakes are less sure
    known = describe(HeldOut(names=held_out.names, labels=held_out.labels, logits=logits))
    calibrated = softmax(logits.astype(float) / known["temperature"]).astype(np.float32)
    expected = confidence_threshold(calibrated, held_out.labels)
    assert known["unsure"]["below"] == pytest.approx(expected["below"], abs=1e-5)
    assert known["unsure"]["accuracy"] >= 0.95


def test_heat_maps_of_held_out_images_are_of_the_model_in_best(best, task, tmp_path):
    shutil.copytree(best, tmp_path / "best")
    session = SimpleNamespace(measuring=SimpleNamespace(workplace=lambda: nullcontext(ThisProcess())))
    calibrated = 3 * torch.eye(3)[torch.from_numpy(np.array(task.dataset.val.labels))]
    save_heat_maps(SimpleNamespace(folder=tmp_path), session, task, calibrated, None)
    shown = read_heat_map_images(tmp_path / HEAT_MAPS_FILE)
    assert list(shown) == ["right", "doubtful"]
    assert {each.image for images in shown.values() for each in images} <= set(task.dataset.val.names)
