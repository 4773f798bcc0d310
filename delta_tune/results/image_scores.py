"""A study's metric, image by image: what pairs of models are compared by."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from delta_tune.config import Metric

Scores = NDArray[np.float64]
CLASS_METRICS: tuple[Metric, ...] = ("val_balanced_accuracy", "val_macro_f1")
"""Metrics in which all classes count alike."""


def image_scores(logits: NDArray[np.float32], labels: NDArray[Any], metric: Metric) -> Scores:
    """A score of each image, higher is better, whose mean is the metric (of a loss: its negative).

    Args:
        logits: (N, K).
        labels: (N,), in [0, K).
        metric: of the study.
    """
    if metric == "val_loss":
        shifted = logits - logits.max(1, keepdims=True)
        losses: Scores = np.log(np.exp(shifted).sum(1)) - shifted[np.arange(len(labels)), labels]
        return -losses
    predicted = logits.argmax(1)
    right: Scores = (predicted == labels).astype(np.float64)
    if metric == "val_balanced_accuracy":
        counts = np.bincount(labels)
        right *= len(labels) / (np.count_nonzero(counts) * counts[labels])
    if metric == "val_macro_f1":
        return _f1_scores(right, labels, predicted, logits.shape[1])
    return right


def _f1_scores(right: Scores, labels: NDArray[Any], predicted: NDArray[np.int64], num_classes: int) -> Scores:
    """Macro F1 plus what each image adds to it, to first order, so that the scores have the metric's spread too.

    F_k = 2 r_k / (n_k + p_k), with r_k right ones among n_k images of class k and p_k predictions of it. An image of
    class a that is taken for b adds (2 [a = b] − F_a) / (n_a + p_a) − F_b / (n_b + p_b); over all images that is 0.
    """
    actual, claimed = (np.bincount(each, minlength=num_classes) for each in (labels, predicted))
    sums = np.maximum(actual + claimed, 1)
    f1 = 2 * np.bincount(labels, right, num_classes) / sums
    counted = actual > 0  # as in `classification_metrics`
    lost = np.where(counted, f1 / sums, 0.0)
    added = 2 * right / sums[labels] - lost[labels] - lost[predicted]
    found: Scores = f1[counted].mean() + len(labels) / counted.sum() * added
    return found
