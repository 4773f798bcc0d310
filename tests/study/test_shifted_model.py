"""The shift of the final model's logits, in the bias of its head."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import safetensors.torch
import torch

from delta_tune.config import StudyConfig
from delta_tune.models.architectures import build_architecture
from delta_tune.models.network_state import build_network
from delta_tune.report.held_out import HeldOut
from delta_tune.results.logit_shift import LogitShift
from delta_tune.study import shifted_model
from delta_tune.study.shifted_model import find_shift, reaches_logits, shares_of, shift_networks

OFFSETS = torch.tensor([0.5, -1.0, 2.0])


@pytest.fixture
def state(best):
    return safetensors.torch.load_file(best / "model.safetensors")


def test_shifted_networks_add_the_offsets_to_every_logit(task, best, state, tmp_path):
    first, second = shift_networks(task.backbone, [best / "model.safetensors"] * 2, OFFSETS, tmp_path / "new")
    images = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    found = safetensors.torch.load_file(first)
    with torch.inference_mode():
        before, after = (build_network(task.backbone, each)(images) for each in (state, found))
    torch.testing.assert_close(after, before + OFFSETS)
    assert [name for name in state if not torch.equal(state[name], found[name])] == [f"{task.backbone.head}.bias"]
    assert second != first
    assert second.read_bytes() == first.read_bytes()


def test_bias_of_a_linear_head_reaches_the_logits(task, state):
    assert reaches_logits(task.backbone, state, OFFSETS)


def test_bias_in_front_of_a_relu_does_not():
    backbone = SimpleNamespace(
        model="squeezenet1_1", head="classifier.1", preprocessing=SimpleNamespace(image_size=64, channels=3)
    )
    network = build_architecture(backbone.model, backbone.head, 3)
    generator = torch.Generator().manual_seed(0)
    for value in network.parameters():
        torch.nn.init.normal_(value, std=0.05, generator=generator)
    assert not reaches_logits(backbone, network.state_dict(), torch.tensor([-9.0, -9.0, -9.0]))


def test_shares_are_those_of_train_and_validation(task):
    labels = np.concatenate([task.dataset.train.labels, task.dataset.val.labels])
    expected = np.bincount(labels, minlength=3) / len(labels)
    np.testing.assert_allclose(shares_of(task.dataset).exp(), expected, rtol=1e-6)


@pytest.fixture
def find(task, best, monkeypatch):
    """A function from a metric to what is found for some predictions, and what is said."""

    def found(metric, reaches=True):
        said = []
        study = SimpleNamespace(config=StudyConfig(metric=metric), progress=SimpleNamespace(say=said.append))
        monkeypatch.setattr(shifted_model, "choose_shift", lambda *_: LogitShift(strength=0.5, before=0.6, after=0.7))
        if not reaches:
            monkeypatch.setattr(shifted_model, "reaches_logits", lambda *_: False)
        held_out = HeldOut(names=("a",), labels=np.array([0]), logits=np.zeros((1, 3), np.float32))
        return find_shift(study, task, held_out, best / "model.safetensors"), said

    return found


def test_offsets_are_less_the_strength_times_the_log_shares(find, task):
    (shift, offsets), said = find("val_macro_f1")
    assert shift.strength == 0.5
    torch.testing.assert_close(offsets, -0.5 * shares_of(task.dataset))
    assert said == []


@pytest.mark.parametrize("metric", ["val_accuracy", "val_loss"])
def test_other_metrics_shift_nothing(find, metric):
    assert find(metric) == (None, [])


def test_network_in_which_the_bias_does_not_reach_the_logits_is_left_and_that_is_said(find):
    found, (said,) = find("val_balanced_accuracy", reaches=False)
    assert found is None
    assert said == (
        "The logits of rare classes are not raised, although val_balanced_accuracy would gain: in timm:test_resnet "
        "more than a sum follows the head's bias."
    )
