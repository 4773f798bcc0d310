from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import timm
import torch

from delta_tune.config import TrialConfig, UserError
from delta_tune.data.augmentation import center_crop
from delta_tune.filesystem.cache import Cache
from delta_tune.models.feature_maps import head_inputs
from delta_tune.training import measurements, trial
from delta_tune.training.co_tuning import SourceHead, category_relationship, learn_relationship
from delta_tune.training.measurements import Measurements
from delta_tune.training.trial import run_trial

CPU = torch.device("cpu")
CONFIG = TrialConfig(regularizer="co_tuning", lr=0.01, batch_size=8, head_start="random", max_epochs=2)


@pytest.fixture
def fresh(task, tmp_path):
    """Nothing measured, and a cache of its own."""
    return Measurements(dataset=task.dataset, backbone=task.backbone, seed=0, cache=Cache(tmp_path / "cache"))


@pytest.fixture(scope="module")
def source(tiny_weights):
    """The source as its library builds it."""
    model = timm.create_model("test_resnet")
    model.load_state_dict(safetensors.torch.load_file(tiny_weights))
    return model.eval()


def images_of(task, count):
    pixels = torch.from_numpy(task.dataset.train.images.batch(np.arange(count)))
    return center_crop(pixels, task.backbone.preprocessing)


def test_relationship_of_certain_predictions_is_their_share_of_the_target_class():
    """With one-hot predictions an unpenalised regression finds n_st / n_s, and Bayes' rule makes it n_st / n_t."""
    counts = np.array([[6000, 2000, 0, 0], [0, 4000, 0, 4000], [800, 0, 3200, 0]])  # target class × source class
    labels, predicted = (np.repeat(axis.ravel(), counts.ravel()) for axis in np.indices(counts.shape))
    probabilities = torch.eye(4)[predicted]
    found = category_relationship(probabilities, torch.tensor(labels), 3, seed=0)
    np.testing.assert_allclose(found, counts / counts.sum(1, keepdims=True), atol=0.02)
    assert found.dtype == np.float32


def test_relationship_has_rows_of_probabilities_where_no_image_can_be_held_out():
    found = category_relationship(torch.eye(4)[[0, 1, 3]], torch.tensor([0, 1, 1]), 2, seed=0)
    np.testing.assert_allclose(found.sum(1), 1, rtol=1e-5)
    assert found[0].argmax() == 0
    assert set(found[1].argsort()[-2:]) == {1, 3}
    assert (found[:, 2] == 0).all(), "a source class that is never predicted"


def test_relationship_is_learnt_from_what_the_source_predicts(task, source):
    images, labels = images_of(task, 36), np.array(task.dataset.train.labels)
    with torch.no_grad():
        features = head_inputs(source, task.backbone.head, images).numpy()
        expected = category_relationship(source(images).softmax(1), torch.tensor(labels), 3, seed=5)
    found = learn_relationship(task.backbone, features, labels, 3, 5, CPU)
    assert found.shape == (3, 1000)
    np.testing.assert_allclose(found, expected, rtol=1e-2, atol=1e-6)


@pytest.fixture
def source_head(task):
    generator = np.random.default_rng(0)
    relationship = generator.dirichlet(np.ones(1000), 3).astype(np.float32)
    return SourceHead(task.backbone, relationship, CPU), relationship


def test_loss_is_the_cross_entropy_with_the_rows_of_the_labels(task, source, source_head):
    (head, relationship), images = source_head, images_of(task, 4)
    labels = [2, 0, 2, 1]
    with torch.no_grad():
        features = head_inputs(source, task.backbone.head, images)
        log_p = source(images).double().log_softmax(1).numpy()
    expected = np.mean([-(relationship[label] * row).sum() for label, row in zip(labels, log_p, strict=True)])
    assert head.loss(features, torch.tensor(labels)).item() == pytest.approx(expected, rel=1e-5)


def test_loss_of_mixed_labels_is_the_mix_of_their_losses(task, source_head):
    head, _ = source_head
    features = torch.rand(1, len(task.backbone.source_head["weight"][0]))
    one, other = (head.loss(features, torch.tensor([label])).item() for label in (0, 2))
    mixed = head.loss(features, torch.tensor([[0.3, 0.0, 0.7]])).item()
    assert mixed == pytest.approx(0.3 * one + 0.7 * other, rel=1e-5)


def test_loss_has_gradients_of_head_and_features(task, source_head):
    head, _ = source_head
    features = torch.rand(2, len(task.backbone.source_head["weight"][0]), requires_grad=True)
    head.loss(features, torch.tensor([0, 1])).backward()
    assert features.grad.any()
    assert all(p.grad.any() for p in head.module.parameters())


def test_source_head_is_trained_from_the_sources_weights_and_not_saved(task, monkeypatch):
    built = []

    class Watched(SourceHead):
        def __init__(self, *args):
            super().__init__(*args)
            built.append({name: value.clone() for name, value in self.module.state_dict().items()})
            built.append(self.module)

    monkeypatch.setattr(trial, "SourceHead", Watched)
    result = run_trial(task, CONFIG)
    start, module = built
    for name, value in task.backbone.source_head.items():
        assert np.array_equal(start[name], value)
        assert not torch.equal(module.state_dict()[name], start[name])
    plain = run_trial(task, dataclasses.replace(CONFIG, regularizer="l2"))
    shapes = [{name: value.shape for name, value in each.model_state.items()} for each in (result, plain)]
    assert shapes[0] == shapes[1]
    assert not torch.equal(result.model_state["conv1.0.weight"], plain.model_state["conv1.0.weight"])


@pytest.mark.parametrize(
    "off", [{"regularizer": "co_tuning", "co_tuning": 0.0}, {"regularizer": "bi_tuning", "contrast": 0.0}]
)
def test_method_at_strength_zero_is_l2_bit_for_bit(task, off):
    found, plain = (run_trial(task, dataclasses.replace(CONFIG, **each)) for each in (off, {"regularizer": "l2"}))
    assert all(torch.equal(found.model_state[name], value) for name, value in plain.model_state.items())
    assert [row["train_loss"] for row in found.epochs] == [row["train_loss"] for row in plain.epochs]


@pytest.mark.parametrize("method", ["delta_uniform", "l2_sp"])
def test_method_with_both_terms_has_all_parts_and_resumes_bit_for_bit(task, tmp_path, method):
    both = {"co_tuning": 0.5, "contrast": 0.2, "alpha": 0.7, "beta": 0.3, "average_epochs": 0.5}
    config = dataclasses.replace(CONFIG, regularizer=method, max_epochs=3, **both)
    whole = run_trial(task, config)
    for row in whole.epochs:
        penalty = row["behavior"] if method == "delta_uniform" else row["weight_l2_sp"]
        total = row["cross_entropy"] + 0.7 * penalty + 0.3 * row["head_l2"]
        assert row["train_loss"] == pytest.approx(total + 0.5 * row["co_tuning"] + 0.2 * row["contrast"], rel=1e-5)

    def stop(row):
        if row["epoch"] == 2:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        run_trial(task, config, stop, checkpoint=tmp_path, decisive=[1])
    resumed = run_trial(task, config, checkpoint=tmp_path)
    for name in ("train_loss", "co_tuning", "contrast", "val_loss"):
        assert [row[name] for row in resumed.epochs] == [row[name] for row in whole.epochs]


def test_relationship_is_measured_only_for_trials_that_need_it(fresh):
    fresh.measure([TrialConfig(regularizer="l2", head_start="random"), dataclasses.replace(CONFIG, co_tuning=0.0)])
    assert fresh.relationship is None
    assert not fresh.features
    fresh.measure([TrialConfig(regularizer="l2", head_start="random", co_tuning=0.1)])
    assert fresh.relationship.shape == (3, 1000)


def test_relationship_is_found_by_a_later_study(fresh, monkeypatch):
    fresh.measure([CONFIG])
    again = dataclasses.replace(fresh, relationship=None, features={})
    monkeypatch.setattr(measurements, "learn_relationship", lambda *a, **k: pytest.fail("learnt again"))
    again.measure([CONFIG])
    assert not again.features
    assert np.array_equal(again.relationship, fresh.relationship)


@pytest.mark.parametrize("what", ["cut off", "another study's", "not finite", "other classes", "no probabilities"])
def test_damaged_relationship_is_learnt_again(fresh, what):
    fresh.measure([CONFIG])
    name = f"{fresh.files.relationship_key()}.safetensors"
    arrays = safetensors.numpy.load(fresh.cache.read(name, 2**30))
    if what == "another study's":
        arrays["key"] = arrays["key"][::-1].copy()
    elif what == "not finite":
        arrays["relationship"] = arrays["relationship"] * np.nan
    elif what == "other classes":
        arrays["relationship"] = arrays["relationship"][:2].copy()
    elif what == "no probabilities":
        arrays["relationship"] = arrays["relationship"] * 2
    content = safetensors.numpy.save(arrays)
    fresh.cache.write(name, content[:-8] if what == "cut off" else content)
    again, said = dataclasses.replace(fresh, relationship=None), []
    again.measure([CONFIG], say=said.append)
    assert any("is damaged" in sentence and "learnt again" in sentence for sentence in said)
    assert np.array_equal(again.relationship, fresh.relationship)


def test_trials_take_the_relationship_of_a_sample_that_stands_in(fresh, task):
    fresh.measure([CONFIG])
    whole = Measurements(dataset=task.dataset, backbone=task.backbone, seed=0, cache=None)
    whole.stand_in(fresh)
    whole.measure([CONFIG])
    assert whole.relationship is fresh.relationship
    assert not whole.features


def test_relationship_key_depends_on_the_sources_head(fresh):
    other = {name: value + 1 for name, value in fresh.backbone.source_head.items()}
    changed = dataclasses.replace(fresh, backbone=dataclasses.replace(fresh.backbone, source_head=other))
    assert changed.files.relationship_key() != fresh.files.relationship_key()
    assert changed.files.head_key() == fresh.files.head_key()


def test_trial_without_a_source_head_is_refused(task):
    without = dataclasses.replace(task, backbone=dataclasses.replace(task.backbone, source_head=None))
    with pytest.raises(UserError, match=r"bring no classifier that fits .*; give weights that have it\.$"):
        run_trial(without, CONFIG)
    run_trial(without, dataclasses.replace(CONFIG, co_tuning=0.0, max_epochs=1))


def test_source_that_predicts_nothing_finite_is_refused(task):
    head = {name: value * np.nan for name, value in task.backbone.source_head.items()}
    broken = dataclasses.replace(task.backbone, source_head=head)
    features = np.zeros((4, head["weight"].shape[1]), np.float32)
    with pytest.raises(UserError, match=rf"{re.escape(broken.weights)} .* not finite.*--set co_tuning=0"):
        learn_relationship(broken, features, np.array([0, 1, 2, 0]), 3, 0, CPU)
