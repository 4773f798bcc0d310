"""Scores of a classifier of several labels an image: how it ranks the images, and how often its answers are right."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Scores = npt.NDArray[np.float64]


def multilabel_metrics(
    logits: np.ndarray, labels: npt.NDArray[np.float32], thresholds: Sequence[float] | None = None
) -> dict[str, float]:
    """Scores of the probabilities, and of the answers: the labels whose probability is at least the threshold.

    Args:
        logits: (N, K), float.
        labels: (N, K), 0 and 1.
        thresholds: (K,), in [0, 1]; a half for all if not given.

    Returns:
        `accuracy` (share of the images all of whose labels are right), `balanced_accuracy` (mean over the labels of the
        mean of recall and specificity), `macro_f1` and `mean_average_precision` (means over the labels). A label is
        left out of a mean if no image has it, and of the balanced accuracy if all have it too; a mean of none is 0.
    """
    there, said = labels > 0, logits >= log_odds(thresholds)
    hits, actual, claimed = ((there & said).sum(0), there.sum(0), said.sum(0))
    present, absent = actual > 0, len(labels) - actual
    both = present & (absent > 0)
    specificity = (~there & ~said).sum(0)[both] / absent[both]
    return {
        "accuracy": float((there == said).all(1).mean()),
        "balanced_accuracy": _mean((hits[both] / actual[both] + specificity) / 2),
        "macro_f1": _mean(2 * hits[present] / (actual + claimed)[present]),
        "mean_average_precision": _mean(average_precisions(logits, labels)[present]),
    }


def log_odds(thresholds: Sequence[float] | None) -> np.ndarray | float:
    """The logits whose probabilities are these thresholds, (K,); 0 for a half."""
    if thresholds is None:
        return 0.0
    found = np.asarray(thresholds, dtype=float)
    with np.errstate(divide="ignore"):  # 0 and 1 are the infinities
        odds: np.ndarray = np.log(found) - np.log1p(-found)
    return odds


def average_precisions(scores: np.ndarray, labels: npt.NDArray[np.float32]) -> Scores:
    """Of each label Σ_n (R_n − R_{n−1}) P_n over the thresholds n, float64 (K,); NaN for a label that no image has.

    P_n and R_n are precision and recall of the images whose score is at least the n-th highest; equal scores are one
    threshold, as scikit-learn has it.

    Args:
        scores: (N, K), higher where the label is likelier.
        labels: (N, K), 0 and 1.
    """
    found = np.full(labels.shape[1], np.nan)
    for k in np.flatnonzero(labels.any(0)):
        order = np.argsort(-scores[:, k], kind="stable")
        descending, right = scores[order, k], np.cumsum(labels[order, k], dtype=np.float64)
        last = np.append(np.flatnonzero(descending[1:] != descending[:-1]), len(order) - 1)
        precision, recall = right[last] / (last + 1), right[last] / right[-1]
        found[k] = np.sum(np.diff(recall, prepend=0.0) * precision)
    return found


def ranking_precisions(scores: np.ndarray, labels: npt.NDArray[np.float32]) -> Scores:
    """Average precision of each image's ranking of the labels, float64 (N,); 1 of an image without any.

    Its mean is scikit-learn's `label_ranking_average_precision_score`.

    Args:
        scores: (N, K).
        labels: (N, K), 0 and 1.
    """
    found = average_precisions(scores.T, labels.T)
    return np.where(np.isnan(found), 1.0, found)


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else 0.0
