"""Scores of a classifier on a split, from one confusion matrix."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


def classification_metrics(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Loss, accuracy, balanced accuracy and macro F1.

    Args:
        logits: (N, K), float.
        labels: (N,), int64 in [0, K).

    Returns:
        `loss` (mean cross entropy), `accuracy`, `balanced_accuracy` (mean recall over the classes that occur among the
        labels) and `macro_f1` (over the same classes; a split may lack some). NaN logits give a NaN loss.
    """
    num_classes = logits.shape[1]
    loss = F.cross_entropy(logits.float(), labels).item()
    predicted = logits.argmax(1)
    confusion = torch.bincount(labels * num_classes + predicted, minlength=num_classes**2)
    matrix = confusion.reshape(num_classes, num_classes).cpu().numpy().astype(np.float64)
    hits, actual, claimed = np.diag(matrix), matrix.sum(1), matrix.sum(0)
    present = actual > 0
    return {
        "loss": loss,
        "accuracy": float(hits.sum() / matrix.sum()),
        "balanced_accuracy": float(np.mean(hits[present] / actual[present])),
        "macro_f1": float(np.mean(2 * hits[present] / (actual + claimed)[present])),
    }


def wilson_interval(proportion: float, count: int, z: float = 1.959964) -> tuple[float, float]:
    """95 % interval of a proportion seen on `count` examples (Wilson 1927): right near 0 and 1 too."""
    centre = (proportion + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(proportion * (1 - proportion) / count + z * z / (4 * count * count))
    return max(0.0, centre - half), min(1.0, centre + half)
