from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from delta_tune.config import METHODS, ImageSettings, TrialConfig
from delta_tune.config.methods import BEHAVIOR
from delta_tune.data.augmentation import center_crop
from delta_tune.labels.one_label import balanced_class_weights
from delta_tune.models.backbones import build_source, build_target
from delta_tune.models.feature_maps import feature_maps
from delta_tune.training.objective import Objective
from delta_tune.training.regularizers import WEIGHT_PENALTIES
from delta_tune.training.source_map_index import StepKey
from delta_tune.training.source_maps import SourceMaps

BATCH = StepKey(seed=0, batch_size=4, images=ImageSettings(augmentation="none"), epoch=1, step=0)
LAYERS = ("layer1.0.conv2", "layer3.0.conv1", "layer4.0.conv2")


def quick(**settings):
    base = {"lr": 0.01, "batch_size": 8, "head_start": "random", "head_lr_multiplier": 1.0, "max_epochs": 2}
    return TrialConfig(**{**base, "layers": LAYERS, **settings})


def objective_of(task, config, target):
    head = target.get_submodule(task.backbone.head)
    if not config.uses_behavior:
        return Objective(config, target, head)
    task.measurements.measure([config])
    factors = task.measurements.channel_factors(config, torch.device("cpu"))
    source = SourceMaps(task.source_model(torch.device("cpu"), LAYERS), LAYERS)
    return Objective(config, target, head, source, factors)


@pytest.mark.parametrize("scale", ["raw", "relative"])
@pytest.mark.parametrize("method", ["delta_uniform", "delta"])
def test_objective_behavior_equals_the_formula_on_the_networks_maps(task, method, scale):
    config = quick(regularizer=method, behavior_scale=scale, batch_norm="frozen")
    target = build_target(task.backbone, 3, torch.Generator().manual_seed(0)).eval()
    with torch.no_grad():
        for p in target.parameters():
            p.mul_(1.05)
    images = center_crop(torch.from_numpy(task.dataset.train.images.batch(np.arange(4))), task.backbone.preprocessing)
    labels = torch.zeros(4, dtype=torch.int64)
    objective = objective_of(task, config, target)
    with objective.hooked():
        behavior = objective(target(images), labels, images, BATCH)["behavior"].item()
    source = build_source(task.backbone)
    layers = LAYERS
    with torch.no_grad(), feature_maps(source, layers) as theirs, feature_maps(target, layers) as ours:
        source(images)
        target(images)
        expected = 0.0
        for layer in layers:
            channels, height, width = theirs[layer].shape[1:]
            weights = np.full(channels, 1 / channels)
            if method == "delta":
                d = task.measurements.attention["exact"][layer].losses.astype(np.float64)
                z = (d - d.mean()) / d.std() / config.attention_temperature
                weights = np.exp(z) / np.exp(z).sum()
            distance = ((ours[layer] - theirs[layer]) ** 2).sum((2, 3)).double().numpy() / (height * width)
            term = 0.5 * (channels * weights * distance).sum(1).mean()
            expected += term / (channels * task.measurements.mean_squares[layer]) if scale == "relative" else term
    assert behavior == pytest.approx(expected, rel=1e-4)


def test_objective_behavior_is_zero_at_the_start_with_frozen_batch_norm(task):
    config = quick(regularizer="delta", batch_norm="frozen")
    target = build_target(task.backbone, 3, torch.Generator().manual_seed(0)).eval()
    images = center_crop(torch.from_numpy(task.dataset.train.images.batch(np.arange(4))), task.backbone.preprocessing)
    objective = objective_of(task, config, target)
    with objective.hooked():
        parts = objective(target(images), torch.zeros(4, dtype=torch.int64), images, BATCH)
    assert parts["behavior"].item() == pytest.approx(0.0, abs=1e-10)


def test_objective_weight_l2_sp_is_zero_at_the_start(task):
    target = build_target(task.backbone, 3, torch.Generator().manual_seed(0))
    objective = objective_of(task, quick(regularizer="l2_sp"), target)
    parts = objective(torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64), torch.empty(0), BATCH)
    assert parts["weight_l2_sp"].item() == 0


def test_objective_hooks_are_gone_after_an_exception(task):
    target = build_target(task.backbone, 3, torch.Generator().manual_seed(0))
    objective = objective_of(task, quick(regularizer="delta_uniform"), target)
    with pytest.raises(KeyboardInterrupt), objective.hooked():
        raise KeyboardInterrupt
    source = task.source_model(torch.device("cpu"), LAYERS)
    for module in [*target.modules(), *source.modules()]:
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


def test_objective_label_smoothing_reaches_the_cross_entropy(task):
    target = build_target(task.backbone, 3, torch.Generator().manual_seed(0))
    objective = objective_of(task, quick(regularizer="l2", label_smoothing=0.1), target)
    logits, labels = torch.tensor([[2.0, 0.0, 0.0]]), torch.tensor([0])
    log_p = nn.functional.log_softmax(logits, 1)[0]
    expected = -(0.9 + 0.1 / 3) * log_p[0] - 0.1 / 3 * (log_p[1] + log_p[2])
    assert objective(logits, labels, torch.empty(0), BATCH)["cross_entropy"].item() == pytest.approx(expected.item())


def test_balanced_class_weights_are_inverse_to_the_shares():
    weights = balanced_class_weights(np.array([0, 0, 0, 2]), 3)
    assert weights.tolist() == pytest.approx([4 / (3 * 3), 0, 4 / 3])
    assert balanced_class_weights(np.array([1, 0, 2, 2, 1, 0]), 3).tolist() == [1, 1, 1]


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("soft", [False, True])
def test_objective_weighs_each_class_and_divides_by_the_number_of_images(task, soft, smoothing):
    """−1/B Σ_i Σ_k w_k p_ik log q_ik, by numpy, where labels are numbers and where they are probabilities."""
    rng = np.random.default_rng(0)
    logits, weights, numbers = rng.normal(size=(5, 3)), np.array([0.5, 3.0, 1.0]), np.array([0, 1, 1, 2, 0])
    p = rng.dirichlet(np.ones(3), 5) if soft else np.eye(3)[numbers]
    log_q = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    expected = -(weights * ((1 - smoothing) * p + smoothing / 3) * log_q).sum() / 5
    target = build_target(task.backbone, 3, torch.Generator().manual_seed(0))
    config = quick(regularizer="l2", label_smoothing=smoothing)
    head = target.get_submodule(task.backbone.head)
    objective = Objective(config, target, head, class_weights=torch.tensor(weights, dtype=torch.float32))
    labels = torch.tensor(p, dtype=torch.float32) if soft else torch.tensor(numbers)
    parts = objective(torch.tensor(logits), labels, torch.empty(0), BATCH)
    assert parts["train_loss"].item() == pytest.approx(expected, rel=1e-5)


def test_objective_computes_the_penalty_of_a_method_that_the_table_gains(task, monkeypatch):
    """A sixth method costs its row and its penalty, a function of the weights and of where they started."""
    sixth = dataclasses.replace(METHODS["l2_sp"], name="sixth", penalty="weight_l1_sp")
    monkeypatch.setitem(METHODS, "sixth", sixth)
    monkeypatch.setitem(
        WEIGHT_PENALTIES,
        "weight_l1_sp",
        lambda ours, theirs: sum((a - b).abs().sum() for a, b in zip(ours, theirs, strict=True)),
    )
    target = build_target(task.backbone, 3, torch.Generator().manual_seed(0))
    config = quick(regularizer="l2_sp", alpha=0.5, beta=2.0)
    object.__setattr__(config, "regularizer", "sixth")  # the choices of the field are fixed at import
    objective = objective_of(task, config, target)
    with torch.no_grad():
        next(target.parameters()).view(-1)[0] += 0.25
    parts = objective(torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64), torch.empty(0), BATCH)
    assert list(parts) == ["train_loss", "cross_entropy", "weight_l1_sp", "head_l2"]
    assert parts["weight_l1_sp"].item() == pytest.approx(0.25)
    total = parts["cross_entropy"] + 0.5 * parts["weight_l1_sp"] + 2.0 * parts["head_l2"]
    assert parts["train_loss"].item() == pytest.approx(total.item())


def test_penalties_of_all_methods_are_computed():
    penalties = {method.penalty for method in METHODS.values()} - {None, BEHAVIOR}
    assert penalties <= WEIGHT_PENALTIES.keys()
