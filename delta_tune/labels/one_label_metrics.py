"""Scores of a classifier of one label an image on a split, from one confusion matrix."""

from __future__ import annotations

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
