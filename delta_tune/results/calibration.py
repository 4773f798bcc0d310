"""How far a model's probabilities can be trusted: temperature, calibration error, and when to answer "unsure"."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

COOLEST, HOTTEST = 0.05, 20.0
"""Range of a fitted temperature."""
BINS = 15
LEAST_SURE_ACCURACY = 0.95
LEAST_SURE_PHOTOS = 20


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The temperature T in [0.05, 20] for which softmax(logits / T) has the lowest mean negative log-likelihood.

    Temperature scaling (Guo et al. 2017, arXiv 1706.04599). If no prediction is wrong, any smaller T is likelier still,
    so the labels say nothing about T, and it is 1.

    Args:
        logits: (N, K) of images that the model was not trained on, N ≥ 1.
        labels: (N,) true classes.
    """
    from scipy import optimize, special  # takes a second, which a study's start need not wait for

    logits, rows = np.asarray(logits, dtype=float), np.arange(len(labels))
    if (logits.argmax(1) == labels).all():
        return 1.0

    def loss(log_temperature: float) -> float:
        scaled = logits / math.exp(log_temperature)
        return float(np.mean(special.logsumexp(scaled, axis=1) - scaled[rows, labels]))

    # Convex in 1/T, so it falls, then rises in log T too
    found = optimize.minimize_scalar(loss, bounds=(math.log(COOLEST), math.log(HOTTEST)), method="bounded")
    return math.exp(float(found.x))


def expected_calibration_error(probabilities: np.ndarray, labels: np.ndarray, bins: int = BINS) -> float:
    """Mean gap between confidence and accuracy over bins of confidence, weighted by images (Guo et al. 2017, eq. 3).

    Args:
        probabilities: (N, K), N ≥ 1.
        labels: (N,) true classes.
        bins: of equal width; bin m is ((m - 1) / bins, m / bins].
    """
    confidence, right = _confidence(probabilities, labels)
    return _gap(confidence, right, bins)


def binary_calibration_error(probabilities: np.ndarray, labels: np.ndarray, bins: int = BINS) -> float:
    """The same of labels that are there or not: the gap between their probability and how often they are there.

    Args:
        probabilities: (N, K), N ≥ 1.
        labels: (N, K), 0 and 1.
        bins: as of `expected_calibration_error`.
    """
    return _gap(probabilities.ravel(), labels.ravel() > 0, bins)


def _gap(said: np.ndarray, seen: np.ndarray, bins: int) -> float:
    number = np.searchsorted(np.arange(1, bins) / bins, said)
    gaps = np.bincount(number, weights=seen - said.astype(float), minlength=bins)
    return float(np.abs(gaps).sum() / len(said))


def confidence_threshold(
    probabilities: np.ndarray, labels: np.ndarray, accuracy: float | None = None
) -> dict[str, Any] | None:
    """The lowest confidence c so that the images with confidence ≥ c have at least the target accuracy.

    Args:
        probabilities: (N, K), calibrated, of images that the model was not trained on.
        labels: (N,) true classes.
        accuracy: the target. None is half of the errors of all images and at least 95 %: half, so that a model which is
            good anyway still refuses something, and 95 %, so that the answers of a poor one can be relied on.

    Returns:
        What stands in `config.json` as `unsure`: c as `below`, the share `refused` of the images, the `accuracy` of the
        others, and how many `images` say so; None if no c reaches the target with 20 images or more.
    """
    confidence, right = _confidence(probabilities, labels)
    if accuracy is None:
        accuracy = max(LEAST_SURE_ACCURACY, (1 + float(right.mean())) / 2)
    order = np.argsort(-confidence, kind="stable")
    sorted_confidence, kept = confidence[order], np.arange(1, len(order) + 1)
    accuracies = np.cumsum(right[order]) / kept
    whole = np.append(sorted_confidence[1:] < sorted_confidence[:-1], True)  # those alike are kept or refused together
    (enough,) = np.nonzero(whole & (accuracies >= accuracy) & (kept >= LEAST_SURE_PHOTOS))
    if not len(enough):
        return None
    last = enough[-1]
    return {
        "below": min(1.0, float(sorted_confidence[last])),
        "refused": 1 - float(kept[last]) / len(order),
        "accuracy": float(accuracies[last]),
        "images": len(order),
    }


def _confidence(probabilities: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each image: its highest probability, and whether that class is the true one."""
    return probabilities.max(1), probabilities.argmax(1) == labels
