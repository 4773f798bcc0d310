"""Trials on images with several labels each."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from helpers.simulated_gpu import by_line, simulated_gpu
from sklearn.metrics import average_precision_score, f1_score

from delta_tune.config import MULTILABEL_METRIC, TrialConfig
from delta_tune.models.backbones import build_target
from delta_tune.report.predictions import split_logits
from delta_tune.training import trial
from delta_tune.training.trial import run_trial

LAYER = "layer4.0.conv2"


def quick(**settings):
    return TrialConfig(**{"lr": 0.01, "batch_size": 8, "max_epochs": 2, "layers": LAYER, **settings})


@pytest.mark.parametrize(
    "settings",
    [
        {"regularizer": "l2"},
        {"regularizer": "l2_sp"},
        {"regularizer": "l2_fe"},
        {"regularizer": "delta"},
        {"regularizer": "delta_uniform", "label_smoothing": 0.1, "class_weights": "balanced"},
        {"regularizer": "l2", "mixup": 0.2, "cutmix": 1.0},
        {"regularizer": "linear_probe"},
    ],
    ids=str,
)
def test_trial_learns_the_labels(label_task, settings):
    result = run_trial(label_task, quick(**settings), metric=MULTILABEL_METRIC)
    assert result.state == "completed"
    assert result.best_metrics["val_mean_average_precision"] > 0.8
    assert np.isfinite(result.best_metrics["val_loss"])


def test_scores_are_those_of_the_saved_network(label_task):
    result = run_trial(label_task, quick(regularizer="l2"), metric=MULTILABEL_METRIC)
    network = build_target(label_task.backbone, 3, torch.Generator()).eval()
    network.load_state_dict(result.model_state)
    val = label_task.dataset.val
    logits = split_logits(label_task, val, network).numpy()
    row = result.best_metrics
    assert row["val_mean_average_precision"] == pytest.approx(average_precision_score(val.labels, logits))
    assert row["val_macro_f1"] == pytest.approx(f1_score(val.labels, logits > 0, average="macro"))
    assert row["val_accuracy"] == (val.labels == (logits > 0)).all(1).mean()


def test_resumed_trial_is_the_same_bit_for_bit(label_task, tmp_path):
    config = quick(regularizer="l2", max_epochs=3)
    whole = run_trial(label_task, config, metric=MULTILABEL_METRIC)

    class Stop(Exception):
        pass

    def stop(row):
        if row["epoch"] == 2:
            raise Stop

    with pytest.raises(Stop):
        run_trial(label_task, config, stop, metric=MULTILABEL_METRIC, checkpoint=tmp_path, decisive=[1])
    resumed = run_trial(label_task, config, metric=MULTILABEL_METRIC, checkpoint=tmp_path)
    scores = ("train_loss", "val_loss", "val_mean_average_precision")
    assert [[row[s] for s in scores] for row in resumed.epochs] == [[row[s] for s in scores] for row in whole.epochs]


def test_column_is_empty_with_one_label_an_image(task):
    result = run_trial(task, quick(regularizer="linear_probe"))
    assert result.epochs[0]["val_mean_average_precision"] is None


@pytest.fixture
def gpu_case(label_task):
    """A configuration whose measurements are there, and a copy of the task without networks of another device."""
    config = quick(regularizer="delta_uniform", class_weights="balanced", mixup=0.2, label_smoothing=0.1, lr=0.002)
    label_task.measurements.measure([config])
    fresh = dataclasses.replace(label_task)
    fresh.measurements = label_task.measurements
    return config, fresh


def test_trial_in_float32_on_a_gpu_learns_as_on_the_cpu(label_task, gpu_case):
    config, fresh = gpu_case
    on_cpu = run_trial(label_task, config, metric=MULTILABEL_METRIC).epochs[-1]
    with simulated_gpu("mps"):
        row = run_trial(fresh, config, metric=MULTILABEL_METRIC, device="mps").epochs[-1]
    assert row["val_loss"] == pytest.approx(on_cpu["val_loss"], rel=1e-3)


def test_no_line_waits_for_the_gpu_in_every_step(gpu_case, monkeypatch):
    (config, fresh), train, waits = gpu_case, trial._Run._train, []

    def counted(run, *args):
        gpu.clear()
        result = train(run, *args)
        waits.append(by_line(gpu.waits))
        return result

    monkeypatch.setattr(trial._Run, "_train", counted)
    with simulated_gpu() as gpu:
        run_trial(fresh, config, metric=MULTILABEL_METRIC, device="cuda")
    steps = len(fresh.dataset.train) / config.batch_size
    assert not {line: count for line, count in waits[-1].items() if count >= steps}
