"""The probability from which on a label counts as there."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import numpy.typing as npt

HALF = 0.5
SHARED_IMAGES = 5
"""So many images the threshold of all labels together counts beside a label's own."""
EXTREME = 0.001
"""Thresholds are this far from 0 and 1 at least before their log odds are taken."""


def f1_thresholds(probabilities: np.ndarray, labels: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """For each label a threshold with a high F1, float64 (K,): that of a label's own images, if they are many.

    The best threshold of a few images is an accident and loses F1 on others. So in log odds it is the weighted mean of
    two: the label's own best one with n / (n + `SHARED_IMAGES`), n the images that have the label, or that lack it if
    those are fewer, and the best one of all labels together with the rest.

    Args:
        probabilities: (N, K), calibrated, of images that the model was not trained on.
        labels: (N, K), 0 and 1.
    """
    there = labels > 0
    shared = best_threshold(probabilities.ravel(), there.ravel())
    own = np.array([best_threshold(probabilities[:, k], there[:, k]) for k in range(labels.shape[1])])
    images = np.minimum(there.sum(0), (~there).sum(0))
    weight = images / (images + SHARED_IMAGES)
    odds = weight * _log_odds(own) + (1 - weight) * _log_odds(np.array(shared))
    return cast(npt.NDArray[np.float64], 1 / (1 + np.exp(-odds)))


def best_threshold(probabilities: np.ndarray, there: npt.NDArray[np.bool_]) -> float:
    """The threshold with the highest F1 of "there if the probability is at least it"; of equal ones the nearest to 0.5.

    It lies in the middle between two probabilities that occur; a half if nothing is there, or everything.

    Args:
        probabilities: (N,).
        there: (N,).
    """
    if there.all() or not there.any():
        return HALF
    order = np.argsort(-probabilities, kind="stable")
    descending = probabilities[order].astype(float)
    last = np.append(np.flatnonzero(descending[1:] < descending[:-1]), len(order) - 1)
    f1 = 2 * np.cumsum(there[order])[last] / (last + 1 + int(there.sum()))
    thresholds = (descending[last] + np.append(descending, 0.0)[last + 1]) / 2
    best = thresholds[f1 >= f1.max() - 1e-12]
    return float(best[np.argmin(np.abs(best - HALF))])


def _log_odds(thresholds: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    inside = np.clip(thresholds, EXTREME, 1 - EXTREME)
    return cast(npt.NDArray[np.float64], np.log(inside) - np.log1p(-inside))
