"""Images whose label is probably wrong, by confident learning (Northcutt et al. 2021, arXiv 1911.00068)."""

from __future__ import annotations

import numpy as np

ROUNDING = 1e-6
"""By which a probability may miss its class's mean: all may be alike."""


def suspect_labels(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Indices of the images that count as another class than their label's, the most suspect first.

    An image counts as a class if its probability of it is at least the class's threshold: the mean probability of the
    class over the images with that label. Of several such classes it counts as the most probable. The suspects are
    what lies off the diagonal of the paper's confident joint, ordered by p(label) - max p(other class).

    Args:
        probabilities: (N, K), each row of a model that was not trained on the image.
        labels: (N,) given classes.
    """
    rows, classes = np.arange(len(labels)), probabilities.shape[1]
    given = probabilities[rows, labels]
    counts = np.bincount(labels, minlength=classes)
    sums = np.bincount(labels, weights=given, minlength=classes)
    thresholds = np.where(counts > 0, sums / np.maximum(counts, 1), np.inf)
    confident = np.where(probabilities >= thresholds - ROUNDING, probabilities, -1.0)
    (suspects,) = np.nonzero((confident.max(1) >= 0) & (confident.argmax(1) != labels))
    others = probabilities[suspects].copy()
    others[np.arange(len(suspects)), labels[suspects]] = -1.0
    return suspects[np.argsort(given[suspects] - others.max(1), kind="stable")]
