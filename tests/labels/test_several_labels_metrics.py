"""Scores of several labels an image, against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn import metrics

from delta_tune.labels.several_labels import SEVERAL_LABELS
from delta_tune.labels.several_labels_metrics import average_precisions, multilabel_metrics


@pytest.fixture(params=[1, 0.5])
def split(request):
    """Logits, some of them equal if they are rounded to halves, and labels."""
    rng = np.random.default_rng(3)
    labels = (rng.random((200, 6)) < 0.3).astype(np.float32)
    logits = rng.normal(size=labels.shape) + labels
    logits = logits if request.param == 1 else np.round(2 * logits) / 2 + 0.1
    return logits.astype(np.float32), labels


def test_scores_are_scikit_learn_s(split):
    logits, labels = split
    found = multilabel_metrics(logits, labels)
    assert found["mean_average_precision"] == pytest.approx(metrics.average_precision_score(labels, logits), rel=1e-6)
    assert found["macro_f1"] == pytest.approx(metrics.f1_score(labels, logits > 0, average="macro"))
    assert found["accuracy"] == metrics.accuracy_score(labels, logits > 0)
    each = [metrics.balanced_accuracy_score(labels[:, k], logits[:, k] > 0) for k in range(6)]
    assert found["balanced_accuracy"] == pytest.approx(np.mean(each))


def test_thresholds_change_the_answers_and_not_the_ranking(split):
    logits, labels = split
    thresholds = [0.2, 0.3, 0.4, 0.5, 0.6, 0.7]
    found = multilabel_metrics(logits, labels, thresholds)
    said = 1 / (1 + np.exp(-logits.astype(float))) >= thresholds
    assert found["macro_f1"] == pytest.approx(metrics.f1_score(labels, said, average="macro"))
    assert found["accuracy"] == metrics.accuracy_score(labels, said)
    assert found["mean_average_precision"] == multilabel_metrics(logits, labels)["mean_average_precision"]


def test_label_that_no_image_has_is_left_out():
    labels = np.array([[1, 0], [0, 0]], dtype=np.float32)
    found = multilabel_metrics(np.array([[1.0, 5.0], [-1.0, 5.0]]), labels)
    assert (found["macro_f1"], found["mean_average_precision"], found["balanced_accuracy"]) == (1, 1, 1)
    assert np.isnan(average_precisions(labels, labels)).tolist() == [False, True]


def test_split_without_any_label_has_scores():
    found = multilabel_metrics(np.full((3, 2), -1.0), np.zeros((3, 2), dtype=np.float32))
    assert found == {"accuracy": 1, "balanced_accuracy": 0, "macro_f1": 0, "mean_average_precision": 0}


def test_logits_that_are_no_numbers_give_such_a_loss():
    assert np.isnan(SEVERAL_LABELS.metrics(torch.full((2, 2), torch.nan), torch.ones(2, 2))["loss"])
