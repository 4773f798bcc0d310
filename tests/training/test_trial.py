from __future__ import annotations

import dataclasses
import json
import math
import time
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors.torch
import torch
from torch.nn import functional as F

from delta_tune.attention.probe_head import PENALTIES
from delta_tune.config import LOSS_PARTS, TrialConfig, UserError
from delta_tune.data import training_images
from delta_tune.data.augmentation import augment, center_crop
from delta_tune.data.batches import shuffled_batches
from delta_tune.data.resampling import pool_train_val
from delta_tune.labels.one_label_metrics import classification_metrics
from delta_tune.models.backbones import build_target
from delta_tune.results.layout import BEST_FILE, RESUME_FILE
from delta_tune.training import checkpoint, trial
from delta_tune.training.objective import Objective
from delta_tune.training.trial import far_above_start, lr_factor, run_trial

LAYERS = ("layer1.0.conv2", "layer3.0.conv1", "layer4.0.conv2")
METHODS = ("l2", "co_tuning", "bi_tuning", "l2_sp", "l2_fe", "delta_uniform", "delta")


def quick(**settings):
    base = {"lr": 0.01, "batch_size": 8, "head_start": "random", "head_lr_multiplier": 1.0, "max_epochs": 2}
    return TrialConfig(**{**base, "layers": LAYERS, **settings})


RECIPE = {"augmentation": "trivial", "random_erasing": 0.5, "mixup": 0.2, "cutmix": 1.0, "early_size": 0.5}


def without_times(rows):
    return [{k: v for k, v in row.items() if not k.endswith("seconds")} for row in rows]


@pytest.mark.parametrize("method", METHODS)
def test_run_trial_same_seed_gives_the_same_numbers_bit_for_bit(task, method):
    first, second = run_trial(task, quick(regularizer=method)), run_trial(task, quick(regularizer=method))
    assert without_times(first.epochs) == without_times(second.epochs)
    assert all(torch.equal(first.model_state[k], second.model_state[k]) for k in first.model_state)


def test_run_that_resumes_an_earlier_versions_has_rows_with_all_parts(task, tmp_path):
    config = quick(regularizer="l2")
    with pytest.raises(_Interrupt):
        run_trial(task, config, _interrupt_after(1), checkpoint=tmp_path, decisive=[1])
    with pytest.raises(_Interrupt):  # saved once the run goes on
        run_trial(task, config, _interrupt_after(2), checkpoint=tmp_path)
    file = tmp_path / RESUME_FILE
    point = json.loads(file.read_text())
    del point["rows"][0]["contrast"], point["rows"][0]["co_tuning"]
    file.write_text(json.dumps(point))
    heard = []
    run_trial(task, config, heard.append, checkpoint=tmp_path)
    assert [(row["contrast"], row["co_tuning"]) for row in heard] == [(None, None)] * 2


def test_run_trial_another_seed_gives_other_numbers(task):
    assert (
        run_trial(task, quick(regularizer="l2", seed=1)).epochs[0]["train_loss"]
        != run_trial(task, quick(regularizer="l2", seed=2)).epochs[0]["train_loss"]
    )


def test_run_trial_leaves_the_callers_random_state_alone(task):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    run_trial(task, quick(regularizer="l2", max_epochs=1))
    assert torch.equal(torch.rand(3), expected)


def test_run_trial_equals_a_plain_fine_tuning_loop_step_for_step(task):
    """alpha = beta = 0 makes every method plain fine-tuning; the loop here shares no code with the trainer's."""
    config = quick(alpha=0.0, beta=0.0, batch_norm="train", max_epochs=3, augmentation="none", momentum=0.9)
    ours = {m: run_trial(task, TrialConfig(**{**_fields(config), "regularizer": m})) for m in ("delta", "l2_sp")}

    model = build_target(task.backbone, 3, torch.Generator().manual_seed(0)).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, nesterov=True)
    pixels = torch.from_numpy(task.dataset.train.images.batch(np.arange(len(task.dataset.train))))
    images, labels = (
        center_crop(pixels, task.backbone.preprocessing),
        torch.from_numpy(np.array(task.dataset.train.labels)),
    )
    for epoch in (1, 2, 3):
        model.train()
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(epoch))
        total = 0.0
        for step, batch in enumerate(order.split(8)):
            time = (epoch - 1 + step / math.ceil(len(labels) / 8)) / 3
            optimizer.param_groups[0]["lr"] = 0.01 * 0.5 * (1 + math.cos(math.pi * time))
            loss = F.cross_entropy(model(images[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(batch)
        for result in ours.values():
            assert result.epochs[epoch - 1]["train_loss"] == pytest.approx(total / len(labels), rel=1e-4)


def test_run_trial_l2_equals_weight_decay_of_the_optimizer(task):
    model = build_target(task.backbone, 3, torch.Generator().manual_seed(0)).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=1e-4)
    pixels = torch.from_numpy(task.dataset.train.images.batch(np.arange(len(task.dataset.train))))
    images, labels = (
        center_crop(pixels, task.backbone.preprocessing),
        torch.from_numpy(np.array(task.dataset.train.labels)),
    )
    model.train()
    for batch in torch.randperm(len(labels), generator=torch.Generator().manual_seed(1)).split(8):
        loss = F.cross_entropy(model(images[batch]), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    config = quick(regularizer="l2", batch_norm="train", augmentation="none", schedule="constant", max_epochs=1)
    state = run_trial(task, config).model_state
    for name, value in model.state_dict().items():
        torch.testing.assert_close(state[name], value, rtol=1e-4, atol=1e-6)


def _interrupt_after(epoch):
    def stop(row):
        if row["epoch"] == epoch:
            raise _Interrupt

    return stop


def _fields(config):
    return {name: getattr(config, name) for name in TrialConfig.__dataclass_fields__}


@pytest.mark.parametrize("method", METHODS)
def test_train_loss_is_the_weighted_sum_of_its_logged_parts(task, method):
    config = quick(regularizer=method, alpha=0.7, beta=0.3)
    for row in run_trial(task, config).epochs:
        penalty = (row["behavior"] or 0.0) + (row["weight_l2_sp"] or 0.0)
        total = row["cross_entropy"] + 0.7 * penalty + 0.3 * (row["head_l2"] or 0.0)
        total += (row["co_tuning"] or 0.0) + (row["contrast"] or 0.0)
        assert row["train_loss"] == pytest.approx(total, rel=1e-5)


def test_logged_parts_are_null_where_the_method_has_none(task):
    expected = {
        "l2": set(),
        "co_tuning": {"co_tuning"},
        "bi_tuning": {"contrast"},
        "l2_sp": {"weight_l2_sp", "head_l2"},
        "l2_fe": {"head_l2"},
        "delta_uniform": {"behavior", "head_l2"},
        "delta": {"behavior", "head_l2"},
    }
    for method, parts in expected.items():
        row = run_trial(task, quick(regularizer=method, max_epochs=1)).epochs[0]
        assert {part for part in LOSS_PARTS if row[part] is not None} == parts | {"cross_entropy"}


def test_run_trial_never_changes_the_source(task):
    source = task.source_model(torch.device("cpu"), LAYERS)
    before = {k: v.clone() for k, v in source.state_dict().items()}
    arrays = {k: v.copy() for k, v in task.backbone.state.items()}
    run_trial(task, quick(regularizer="delta", batch_norm="train", lr=0.05))
    assert all(torch.equal(v, before[k]) for k, v in source.state_dict().items())
    assert all(np.array_equal(v, arrays[k]) for k, v in task.backbone.state.items())


def test_run_trial_frozen_batch_norm_keeps_statistics_and_trains_affine_parameters(task):
    state = run_trial(task, quick(regularizer="l2", batch_norm="frozen", max_epochs=1)).model_state
    statistics = [k for k in state if k.endswith("running_mean")]
    affine = [k.replace("running_mean", "weight") for k in statistics]
    assert all(np.array_equal(state[k].numpy(), task.backbone.state[k]) for k in statistics)
    assert any(not np.array_equal(state[k].numpy(), task.backbone.state[k]) for k in affine)


def test_run_trial_train_batch_norm_moves_statistics(task):
    state = run_trial(task, quick(regularizer="l2", batch_norm="train", max_epochs=1)).model_state
    name = next(k for k in state if k.endswith("running_mean"))
    assert not np.array_equal(state[name].numpy(), task.backbone.state[name])


def test_run_trial_l2_fe_changes_the_head_alone(task):
    state = run_trial(task, quick(regularizer="l2_fe")).model_state
    head = task.backbone.head
    assert all(np.array_equal(v.numpy(), task.backbone.state[k]) for k, v in state.items() if not k.startswith(head))


def test_run_trial_l2_fe_scores_equal_those_of_its_whole_network(task):
    result = run_trial(task, quick(regularizer="l2_fe", max_epochs=3))
    model = build_target(task.backbone, 3, torch.Generator()).eval()
    model.load_state_dict(result.model_state)
    val = task.dataset.val
    with torch.no_grad():
        images = center_crop(torch.from_numpy(val.images.batch(np.arange(len(val)))), task.backbone.preprocessing)
        scores = classification_metrics(model(images), torch.from_numpy(np.array(val.labels)))
    assert result.best_metrics["val_accuracy"] == pytest.approx(scores["accuracy"])
    assert result.best_metrics["val_loss"] == pytest.approx(scores["loss"], rel=1e-4)


def test_linear_probe_is_a_minimum_of_the_penalised_loss_on_frozen_features(task):
    result = run_trial(task, TrialConfig(regularizer="linear_probe"))
    assert [row["epoch"] for row in result.epochs] == [1]
    head = task.backbone.head
    state = {name: value for name, value in result.model_state.items() if name.startswith(head)}
    rest = result.model_state.keys() - state.keys()
    assert all(np.array_equal(result.model_state[name].numpy(), task.backbone.state[name]) for name in rest)
    weight, bias = (state[f"{head}.{name}"].double().requires_grad_() for name in ("weight", "bias"))
    features = torch.from_numpy(task.measurements.features["train"]).double()
    labels = torch.from_numpy(np.array(task.dataset.train.labels))
    loss = F.cross_entropy(features @ weight.T + bias, labels)
    assert result.epochs[0]["train_loss"] == pytest.approx(loss.item(), rel=1e-4)
    gradient, _ = torch.autograd.grad(loss, (weight, bias))
    penalties = -(gradient * weight).sum() / weight.square().sum()  # gradient = -penalty · weight at a minimum
    assert any(penalties.item() == pytest.approx(penalty, rel=0.05) for penalty in PENALTIES)


def test_head_start_begins_with_the_linear_probe(task):
    probe = run_trial(task, TrialConfig(regularizer="linear_probe"))
    still = run_trial(task, quick(regularizer="l2", head_start="probe", lr=1e-12, max_epochs=1))
    assert still.epochs[0]["val_loss"] == pytest.approx(probe.epochs[0]["val_loss"], rel=1e-3)


def test_run_that_begins_near_zero_may_rise_to_ten_times_guessing():
    assert far_above_start(10.0, first_loss=0.01, guessing_loss=math.log(3)) is None
    assert far_above_start(11.0, first_loss=0.01, guessing_loss=math.log(3)) == "that of guessing, 1.099"
    assert far_above_start(29.0, first_loss=3.0, guessing_loss=math.log(3)) is None
    assert far_above_start(31.0, first_loss=3.0, guessing_loss=math.log(3)) == "the first batch's 3"


class _Interrupt(Exception):
    pass


@pytest.mark.parametrize(
    ("method", "changes"),
    [*((method, {}) for method in METHODS), ("delta", {"average_epochs": 1.5}), ("delta_uniform", RECIPE)],
)
def test_run_trial_resumed_equals_uninterrupted_bit_for_bit(task, tmp_path: Path, method, changes):
    changes = {"warmup_epochs": 1.5, "augmentation": "resized_crop_flip"} | changes
    config = quick(regularizer=method, max_epochs=4, **changes)
    whole = run_trial(task, config)

    def stop_after_three(row):
        if row["epoch"] == 3:
            raise _Interrupt

    with pytest.raises(_Interrupt):
        run_trial(task, config, stop_after_three, checkpoint=tmp_path, decisive=[2])
    heard = []
    resumed = run_trial(task, config, heard.append, checkpoint=tmp_path)
    assert [row["epoch"] for row in heard] == [1, 2, 3, 4], (
        "what was saved is told again, what was not is trained again"
    )
    assert without_times(resumed.epochs) == without_times(whole.epochs)
    assert_best_is(tmp_path, whole)


@pytest.mark.parametrize("method", ["l2_sp", "l2_fe"])
def test_run_trial_with_the_optimizers_ingredients_resumed_equals_uninterrupted(task, tmp_path: Path, method):
    ingredients = {"optimizer": "adamw", "lr": 1e-3, "layer_decay": 0.7, "class_weights": "balanced", "drop_path": 0.5}
    ingredients |= {"sampling": "balanced", "logit_adjustment": 0.5}
    config = quick(regularizer=method, max_epochs=3, **ingredients)
    whole = run_trial(task, config)

    def stop(row):
        raise _Interrupt

    with pytest.raises(_Interrupt):
        run_trial(task, config, stop, checkpoint=tmp_path, decisive=[1])
    resumed = run_trial(task, config, checkpoint=tmp_path)
    assert without_times(resumed.epochs) == without_times(whole.epochs)
    assert_best_is(tmp_path, whole)


def test_layer_decay_moves_early_layers_by_their_multiple(task):
    """One plain step of SGD is proportional to the learning rate, and the same gradient reaches every layer."""
    plain = {"regularizer": "l2", "max_epochs": 1, "momentum": 0.0, "batch_size": 1000, "weight_decay": 0.0}
    start = build_target(task.backbone, 3, torch.Generator().manual_seed(0)).state_dict()
    states = [run_trial(task, quick(**plain, layer_decay=decay)).model_state for decay in (1.0, 0.5)]
    for name, depths in (("conv1.0.weight", 5), ("layer3.0.conv1.weight", 2), ("layer4.0.conv1.weight", 1)):
        full, reduced = (state[name] - start[name] for state in states)
        assert full.abs().max() > 1e-5
        torch.testing.assert_close(reduced, full * 0.5**depths, rtol=1e-2, atol=1e-6)


@pytest.mark.parametrize("method", ["l2", "l2_fe"])
def test_class_weights_reach_the_training_loss(task, method):
    """One batch of all images, before the first step: the loss of the first epoch is the network's at its start."""
    unequal = dataclasses.replace(task, dataset=dataclasses.replace(task.dataset, train=task.dataset.train.first(8)))
    labels = np.array(unequal.dataset.train.labels)
    assert len(set(np.bincount(labels, minlength=3))) > 1
    settings = {"regularizer": method, "max_epochs": 1, "beta": 0.0, "augmentation": "none", "batch_size": 1000}
    loss = run_trial(unequal, quick(**settings, class_weights="balanced")).epochs[0]["cross_entropy"]
    model = build_target(task.backbone, 3, torch.Generator().manual_seed(0)).eval()
    pixels = torch.from_numpy(unequal.dataset.train.images.batch(np.arange(8)))
    with torch.inference_mode():
        log_q = F.log_softmax(model(center_crop(pixels, task.backbone.preprocessing)), 1).numpy()
    present = np.bincount(labels, minlength=3)
    weights = [8 / (3 * present[label]) for label in labels]
    assert loss == pytest.approx(-np.mean(weights * log_q[np.arange(8), labels]), rel=1e-4)
    assert loss != pytest.approx(-np.mean(log_q[np.arange(8), labels]), rel=1e-4)


@pytest.fixture
def unequal(task):
    """A task of 8 training images: 5, 2 and 1 of the classes."""
    labels = np.array(task.dataset.train.labels)
    positions = np.concatenate([np.flatnonzero(labels == label)[:count] for label, count in enumerate((5, 2, 1))])
    train = pool_train_val(task.dataset).split(positions)
    return task.on(dataclasses.replace(task.dataset, train=train))


ONE_BATCH = {"max_epochs": 1, "beta": 0.0, "augmentation": "none", "batch_size": 1000}
"""The loss of the first epoch is that of the network at its start."""


@pytest.mark.parametrize("method", ["l2", "l2_fe"])
def test_logit_adjustment_reaches_the_training_loss_and_not_the_scores(unequal, method):
    labels = np.array(unequal.dataset.train.labels)
    settings = {"regularizer": method, **ONE_BATCH, "lr": 1e-9}
    row = run_trial(unequal, quick(**settings, logit_adjustment=1.5)).epochs[0]
    model = build_target(unequal.backbone, 3, torch.Generator().manual_seed(0)).eval()
    pixels = torch.from_numpy(unequal.dataset.train.images.batch(np.arange(8)))
    with torch.inference_mode():
        logits = model(center_crop(pixels, unequal.backbone.preprocessing)).numpy()
    adjusted = logits + 1.5 * np.log(np.bincount(labels) / 8)
    log_q = adjusted - np.log(np.exp(adjusted).sum(1, keepdims=True))
    assert row["cross_entropy"] == pytest.approx(-np.mean(log_q[np.arange(8), labels]), rel=1e-4)
    assert row["val_loss"] == pytest.approx(run_trial(unequal, quick(**settings)).epochs[0]["val_loss"], rel=1e-4)


def test_fitted_head_begins_with_the_loss_that_it_was_fitted_to_whatever_the_adjustment(unequal):
    settings = {"regularizer": "l2", "head_start": "probe", **ONE_BATCH}
    losses = [
        run_trial(unequal, quick(**settings, logit_adjustment=tau)).epochs[0]["cross_entropy"] for tau in (0.0, 2.0)
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_linear_probe_is_what_it_is_without_an_adjustment(unequal):
    plain, adjusted = (
        run_trial(unequal, quick(regularizer="linear_probe", logit_adjustment=tau)).model_state for tau in (0.0, 1.0)
    )
    assert all(torch.equal(adjusted[name], value) for name, value in plain.items())


def test_balanced_sampling_trains_on_as_many_images_of_each_class(unequal):
    with seen_batches() as steps:
        run_trial(unequal, quick(regularizer="l2", sampling="balanced", batch_size=3, max_epochs=3))
    for epoch in (1, 2, 3):
        counts = torch.cat([labels for _, labels, number in steps if number == epoch]).bincount(minlength=3)
        assert sorted(counts.tolist()) == [2, 3, 3]
    assert len({tuple(labels.tolist()) for _, labels, number in steps}) > 3


def test_drop_path_changes_training_and_nothing_is_dropped_where_images_are_scored(task):
    settings = {"regularizer": "l2", "max_epochs": 1, "augmentation": "none"}
    without, with_it = (run_trial(task, quick(**settings, drop_path=rate)) for rate in (0.0, 0.9))
    assert without_times(without.epochs) == without_times(run_trial(task, quick(**settings)).epochs)
    assert with_it.epochs[0]["train_loss"] != without.epochs[0]["train_loss"]
    model = build_target(task.backbone, 3, torch.Generator()).eval()
    model.load_state_dict(with_it.model_state)
    val = task.dataset.val
    with torch.inference_mode():
        logits = model(
            center_crop(torch.from_numpy(val.images.batch(np.arange(len(val)))), task.backbone.preprocessing)
        )
    expected = F.cross_entropy(logits, torch.from_numpy(np.array(val.labels))).item()
    assert with_it.epochs[0]["val_loss"] == pytest.approx(expected, rel=1e-5)


def assert_best_is(folder, result):
    best = safetensors.torch.load_file(folder / BEST_FILE)
    assert all(torch.equal(best[k], v) for k, v in result.model_state.items())


@pytest.fixture(scope="module")
def eight_epochs(task):
    """A run whose best epoch is neither the first nor the last."""
    config = quick(regularizer="l2", lr=0.03, max_epochs=8, schedule="constant")
    result = run_trial(task, config, metric="val_accuracy")
    assert 1 < result.best_epoch < 8
    return config, result


@pytest.mark.parametrize(("decisive", "killed"), [((), (1, 8)), ((1, 3), (4,)), ((2, 5), (3, 3, 7)), ((6,), (6, 7))])
def test_run_killed_at_any_epoch_ends_with_the_same_rows_and_best_weights(
    task, eight_epochs, tmp_path, decisive, killed
):
    """Killed after the report of these epochs, one session each; saved only after decisive epochs, and at the end."""
    config, whole = eight_epochs
    table = {}

    def session(ends=None):
        def hear(row):
            table[row["epoch"]] = row
            if row["epoch"] == ends:
                raise _Interrupt

        return run_trial(task, config, hear, checkpoint=tmp_path, decisive=decisive)

    for epoch in killed:
        with pytest.raises(_Interrupt):
            session(epoch)
    resumed = session()
    assert without_times(resumed.epochs) == without_times(whole.epochs)
    assert without_times(table[epoch] for epoch in sorted(table)) == without_times(whole.epochs)
    assert resumed.best_epoch == whole.best_epoch
    assert_best_is(tmp_path, whole)


def saves(task, folder, monkeypatch, seconds, saving, **settings):
    """Epochs after which a run of six was saved, where an epoch and a save take so many seconds."""
    done, found = [], []
    clock = SimpleNamespace(monotonic=lambda: seconds * len(done) + saving * len(found))
    monkeypatch.setattr(checkpoint, "time", clock)
    run_trial(
        task, quick(regularizer="l2", max_epochs=6), done.append, checkpoint=folder, saved=found.append, **settings
    )
    return found


@pytest.mark.parametrize(
    ("seconds", "saving", "decisive", "epochs"),
    [
        (0.1, 0.0, [], [6]),
        (0.1, 0.0, [1, 3], [1, 3, 6]),
        (0.5, 0.0, [], [4, 6]),
        (5.0, 0.5, [], [1, 3, 5, 6]),
        (8.0, 10.0, [], [1, 4, 6]),
        (300.0, 10.0, [], [1, 2, 3, 4, 5, 6]),
    ],
)
def test_run_is_saved_by_time_after_decisive_epochs_and_at_its_end(
    task, tmp_path, monkeypatch, seconds, saving, decisive, epochs
):
    monkeypatch.setattr(checkpoint.Checkpoint, "save", _saved_at_once(checkpoint.Checkpoint.save))
    assert saves(task, tmp_path, monkeypatch, seconds, saving, decisive=decisive) == epochs


def _saved_at_once(save):
    def save_and_wait(self, *args, **kwargs):
        save(self, *args, **kwargs)
        self._saving.exception()

    return save_and_wait


def test_nothing_is_being_saved_while_a_decisive_epoch_is_reported(task, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "INTERVAL_S", 0.0)
    files = {}

    def report(row):
        before = sorted(tmp_path.iterdir())
        time.sleep(0.05)
        files[row["epoch"]] = before == sorted(tmp_path.iterdir()) and not list(tmp_path.glob(".*"))

    slow = lambda epoch: time.sleep(0.02)  # noqa: E731
    run_trial(task, quick(regularizer="l2", max_epochs=4), report, checkpoint=tmp_path, decisive=[2], saved=slow)
    assert files[2]
    assert files[4]


def test_run_that_cannot_be_saved_ends_before_its_last_report(task, tmp_path):
    def fails(epoch):
        raise OSError("no space left on device")

    heard = []
    with pytest.raises(OSError, match="no space"):
        run_trial(task, quick(regularizer="l2"), heard.append, checkpoint=tmp_path, saved=fails)
    assert [row["epoch"] for row in heard] == [1]


def test_diverged_run_leaves_the_weights_of_its_best_epoch(task, tmp_path, monkeypatch):
    config = quick(regularizer="l2", max_epochs=5)

    def explode(self, epoch, generator, train=trial._Run._train):
        if epoch == 3:
            raise trial.Diverged("the loss is inf")
        return train(self, epoch, generator)

    monkeypatch.setattr(trial._Run, "_train", explode)
    alone, kept = run_trial(task, config), run_trial(task, config, checkpoint=tmp_path)
    assert kept.state == "diverged"
    assert kept.model_state is None
    assert_best_is(tmp_path, alone)


def test_run_trial_resumed_equals_uninterrupted_with_dropout(task, tmp_path: Path, monkeypatch):
    def with_dropout(*args):
        model = build_target(*args)
        head = model.get_submodule(task.backbone.head)
        head.register_forward_pre_hook(lambda module, x: (F.dropout(x[0], 0.5, module.training),))
        return model

    monkeypatch.setattr(trial, "build_target", with_dropout)
    config = quick(regularizer="l2", max_epochs=3)
    whole = run_trial(task, config)

    def stop_after_one(row):
        raise _Interrupt

    with pytest.raises(_Interrupt):
        run_trial(
            task, config, lambda row: row["epoch"] == 2 and stop_after_one(row), checkpoint=tmp_path, decisive=[1]
        )
    assert without_times(run_trial(task, config, checkpoint=tmp_path).epochs) == without_times(whole.epochs)


def test_run_trial_refuses_the_checkpoint_of_another_configuration(task, tmp_path: Path):
    run_trial(task, quick(regularizer="l2", max_epochs=1), checkpoint=tmp_path)
    with pytest.raises(UserError, match="another configuration"):
        run_trial(task, quick(regularizer="l2", max_epochs=1, lr=0.02), checkpoint=tmp_path)


@pytest.mark.parametrize("lr", [1e8, 3.0])
def test_run_trial_that_explodes_ends_as_diverged_with_the_reason(task, lr):
    result = run_trial(task, quick(regularizer="l2", lr=lr, schedule="constant", max_epochs=5, batch_norm="frozen"))
    assert result.state == "diverged"
    assert "loss" in result.error
    assert all(math.isfinite(row["train_loss"]) for row in result.epochs)


def test_run_trial_best_epoch_is_the_first_with_the_best_metric(task):
    result = run_trial(task, quick(regularizer="l2", max_epochs=4), metric="val_loss")
    losses = [row["val_loss"] for row in result.epochs]
    assert result.best_epoch == losses.index(min(losses)) + 1


@pytest.mark.parametrize(
    "changes",
    [
        {"regularizer": "delta_uniform", **RECIPE},
        *(
            pytest.param({"regularizer": method}, marks=pytest.mark.slow, id=method)
            for method in ("l2", "co_tuning", "bi_tuning")
        ),
    ],
)
def test_run_trial_compiled_gives_the_same_numbers(task, changes):
    plain, compiled = (run_trial(task, quick(**changes), compile_with=backend) for backend in (None, "eager"))
    for row, other in zip(without_times(plain.epochs), without_times(compiled.epochs), strict=True):
        given = {name for name, value in row.items() if value is not None}
        assert {name: row[name] for name in given} == pytest.approx({name: other[name] for name in given}, rel=1e-5)


def test_average_of_the_weights_is_the_formula(task, monkeypatch):
    config = quick(regularizer="l2", batch_norm="train", average_epochs=0.7)
    steps, seen = 5, []  # 36 images in batches of 8

    class Watched(torch.optim.SGD):
        def step(self, *args, **kwargs):
            result = super().step(*args, **kwargs)
            seen.append(self.param_groups[0]["params"][0].detach().clone())
            return result

    monkeypatch.setattr(torch.optim, "SGD", Watched)
    name = next(iter(build_target(task.backbone, 3, torch.Generator()).state_dict()))
    result = run_trial(task, config)
    expected = seen[0]
    averages = [expected]
    for weight in seen[1:]:
        expected = expected * math.exp(-1 / (0.7 * steps)) + weight * (1 - math.exp(-1 / (0.7 * steps)))
        averages.append(expected)
    torch.testing.assert_close(result.model_state[name], averages[steps * result.best_epoch - 1])


def test_average_is_what_is_scored(task):
    config = quick(regularizer="l2", schedule="constant", average_epochs=50.0)
    averaged, last = run_trial(task, config), run_trial(task, dataclasses.replace(config, average_epochs=0))
    assert averaged.epochs[-1]["train_loss"] == last.epochs[-1]["train_loss"], "training goes on from the last weights"
    assert averaged.epochs[-1]["val_loss"] != last.epochs[-1]["val_loss"]


def test_further_splits_are_scored_beside_and_change_nothing(task):
    config = quick(regularizer="l2")
    alone, beside = run_trial(task, config), run_trial(task, config, also_score={"test": [2]})
    for row, more in zip(without_times(alone.epochs), without_times(beside.epochs), strict=True):
        assert {name: more[name] for name in row} == row
        further = {"test_loss", "test_accuracy", "test_balanced_accuracy", "test_macro_f1"}
        assert set(more) - set(row) == (further if row["epoch"] == 2 else set())


def test_further_splits_are_refused_where_their_features_are_not_measured(task):
    with pytest.raises(UserError, match="l2_fe"):
        run_trial(task, quick(regularizer="l2_fe"), also_score={"test": [1]})


def test_run_trial_learns_the_easy_classes(task):
    result = run_trial(task, quick(regularizer="l2", lr=0.05, max_epochs=8, batch_norm="train"))
    assert result.best_metrics["val_accuracy"] > 0.8


def test_run_trial_clips_gradients(task):
    free = run_trial(task, quick(regularizer="l2", max_epochs=1, momentum=0.0, schedule="constant", weight_decay=0.0))
    config = quick(
        regularizer="l2", max_epochs=1, momentum=0.0, schedule="constant", weight_decay=0.0, max_grad_norm=1e-3
    )
    clipped = run_trial(task, config)
    steps = math.ceil(len(task.dataset.train) / 8)
    start = build_target(task.backbone, 3, torch.Generator().manual_seed(0)).state_dict()

    def moved(result):
        names = [k for k, _ in build_target(task.backbone, 3, torch.Generator()).named_parameters()]
        return math.sqrt(sum((result.model_state[k] - start[k]).square().sum().item() for k in names))

    assert moved(clipped) <= steps * 0.01 * 1e-3 * 1.001
    assert moved(free) > moved(clipped)


def test_lr_factor_step_drops_after_two_thirds():
    config = TrialConfig(schedule="step", max_epochs=9)
    assert [lr_factor(config, t) for t in (0, 5.99, 6, 8.9)] == [1, 1, 0.1, 0.1]


def test_lr_factor_cosine_falls_from_one_to_zero():
    config = TrialConfig(schedule="cosine", max_epochs=10)
    assert [lr_factor(config, t) for t in (0, 5, 10)] == pytest.approx([1, 0.5, 0])


def test_lr_factor_warm_up_is_linear():
    config = TrialConfig(schedule="constant", max_epochs=10, warmup_epochs=2)
    assert [lr_factor(config, t) for t in (0, 0.5, 1, 2, 9)] == pytest.approx([0, 0.25, 0.5, 1, 1])


def test_shuffled_batches_hold_every_image_once_and_leave_no_single_one():
    batches = shuffled_batches(17, 8, torch.Generator().manual_seed(0))
    assert [len(b) for b in batches] == [8, 9]
    assert sorted(np.concatenate(batches)) == list(range(17))


@contextmanager
def seen_batches():
    """What enters the objective, step by step: images, labels and epoch."""
    steps, call = [], Objective.__call__

    def spy(self, logits, labels, images, key):
        steps.append((images, labels, key.epoch))
        return call(self, logits, labels, images, key)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Objective, "__call__", spy)
        yield steps


def test_images_are_small_in_the_first_half_of_the_epochs(task):
    with seen_batches() as steps:
        run_trial(task, quick(regularizer="delta_uniform", early_size=0.5, max_epochs=5))
    sides = {epoch: images.shape[2:] for images, _, epoch in steps}
    assert sides == {1: (32, 32), 2: (32, 32), 3: (64, 64), 4: (64, 64), 5: (64, 64)}


def test_mixed_images_have_the_cross_entropy_of_both_their_classes(task):
    with seen_batches() as plain:
        run_trial(task, quick(regularizer="l2", lr=1e-12, batch_size=36, max_epochs=1))
    with seen_batches() as mixed:
        result = run_trial(task, quick(regularizer="l2", lr=1e-12, batch_size=36, max_epochs=1, mixup=1.0))
    (images, labels, _), (mixed_images, shares, _) = plain[0], mixed[0]
    own = shares[0, labels[0]] if labels[0] != labels[-1] else 1 - shares[1, labels[0]]
    neighbours = torch.cat([images[-1:], images[:-1]])
    torch.testing.assert_close(mixed_images, own * images + (1 - own) * neighbours, atol=1e-5, rtol=1e-4)
    model = build_target(task.backbone, 3, torch.Generator().manual_seed(0)).eval()
    with torch.no_grad():
        logits = model(mixed_images)
    expected = own * F.cross_entropy(logits, labels) + (1 - own) * F.cross_entropy(logits, labels.roll(1))
    assert result.epochs[0]["train_loss"] == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize("method", ["l2_fe", "linear_probe"])
def test_methods_on_frozen_features_use_nothing_of_the_images_recipe(task, method):
    with_it, without = (run_trial(task, quick(regularizer=method, **changes)) for changes in (RECIPE, {}))
    assert without_times(with_it.epochs) == without_times(without.epochs)


def test_augmentation_of_an_epoch_does_not_depend_on_the_method(task):
    """Common random numbers: trials of one seed see the same pixels, which sharpens their comparison."""
    seen = {}
    for method in ("l2", "delta_uniform"):
        frames = seen.setdefault(method, [])

        def spy(*args, frames=frames):
            frames.append(augment(*args))
            return frames[-1]

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(training_images, "augment", spy)
            run_trial(task, quick(regularizer=method, max_epochs=2))
    assert all(torch.equal(a, b) for a, b in zip(*seen.values(), strict=True))
