"""A study's metric, image by image."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from delta_tune.results.image_scores import image_scores

LOGITS = np.random.default_rng(3).normal(0, 1, (40, 4)).astype(np.float32)
LABELS = np.random.default_rng(4).integers(0, 3, 40)  # class 3 does not occur


@pytest.mark.parametrize(
    ("metric", "reference"),
    [
        ("val_accuracy", lambda: sklearn_metrics.accuracy_score(LABELS, LOGITS.argmax(1))),
        (
            "val_balanced_accuracy",
            lambda: np.mean([np.mean(LOGITS[label == LABELS].argmax(1) == label) for label in range(3)]),
        ),
        (
            "val_macro_f1",
            lambda: sklearn_metrics.f1_score(LABELS, LOGITS.argmax(1), labels=[0, 1, 2], average="macro"),
        ),
        (
            "val_loss",
            lambda: (
                -sklearn_metrics.log_loss(
                    LABELS, np.exp(LOGITS) / np.exp(LOGITS).sum(1, keepdims=True), labels=[0, 1, 2, 3]
                )
            ),
        ),
    ],
)
def test_mean_of_the_images_scores_is_the_metric(metric, reference):
    found = image_scores(LOGITS, LABELS, metric)
    assert found.shape == (40,)
    assert found.mean() == pytest.approx(reference(), rel=1e-5)


def test_loss_of_a_hopeless_image_is_finite():
    found = image_scores(np.array([[1e4, -1e4]], dtype=np.float32), np.array([1]), "val_loss")
    assert found.tolist() == [-2e4]


@pytest.mark.parametrize("left_out", range(0, 40, 7))
def test_macro_f1_s_scores_tell_what_each_image_adds(left_out):
    """To first order: the macro F1 without an image, by scikit-learn, is the mean of the others' scores."""
    logits, labels = np.repeat(LOGITS, 25, axis=0), np.repeat(LABELS, 25)  # so many that one image is a small change
    rest = np.arange(len(labels)) != 25 * left_out
    found = image_scores(logits, labels, "val_macro_f1")
    f1 = [
        sklearn_metrics.f1_score(labels[part], logits[part].argmax(1), labels=[0, 1, 2], average="macro")
        for part in (rest, slice(None))
    ]
    assert found[rest].mean() - found.mean() == pytest.approx(f1[0] - f1[1], rel=0.05)
