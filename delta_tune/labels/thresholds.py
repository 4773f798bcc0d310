"""The probability from which on a label counts as there."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

HALF = 0.5
LEAST_IMAGES = 5
"""With fewer images that have a label, or that do not, the best threshold would be an accident."""


def f1_thresholds(probabilities: np.ndarray, labels: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """For each label the threshold with the highest F1, float64 (K,) in [0, 1]; of equal ones the nearest to a half.

    A threshold lies in the middle between two probabilities that occur; a label is there if its probability is at least
    the threshold. It is a half for a label that fewer than `LEAST_IMAGES` images have, or lack.

    Args:
        probabilities: (N, K), calibrated, of images that the model was not trained on.
        labels: (N, K), 0 and 1.
    """
    return np.array([_best(probabilities[:, k].astype(float), labels[:, k] > 0) for k in range(labels.shape[1])])


def _best(probabilities: npt.NDArray[np.float64], there: npt.NDArray[np.bool_]) -> float:
    with_it = int(there.sum())
    if min(with_it, len(there) - with_it) < LEAST_IMAGES:
        return HALF
    order = np.argsort(-probabilities, kind="stable")
    descending = probabilities[order]
    last = np.append(np.flatnonzero(descending[1:] < descending[:-1]), len(order) - 1)
    f1 = 2 * np.cumsum(there[order])[last] / (last + 1 + with_it)
    thresholds = (descending[last] + np.append(descending, 0.0)[last + 1]) / 2
    best = thresholds[f1 >= f1.max() - 1e-12]
    return float(best[np.argmin(np.abs(best - HALF))])
