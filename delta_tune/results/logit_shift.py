"""Whether logits should be shifted towards rare classes after the training (arXiv 2007.07314, section 4.1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from delta_tune.config import Metric
from delta_tune.results.image_scores import CLASS_METRICS, image_scores

STRENGTHS = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
"""Candidates of τ; 1 would be right if the probabilities were."""
LEAST_GAIN = 0.005
"""Of the metric, and at least a standard error of it: a smaller gain may be luck, as τ is chosen where it is seen."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LogitShift:
    """Logits − τ · log(share of the class): what it changes on images that the networks were not trained on."""

    strength: float
    """τ."""
    before: float
    """The metric without."""
    after: float
    """The metric with it."""


def choose_shift(
    logits: NDArray[np.float32], labels: NDArray[Any], log_shares: NDArray[np.float32], metric: Metric
) -> LogitShift | None:
    """The shift with the best metric; None if the metric does not count all classes alike, or the gain is too small.

    Args:
        logits: (N, K) of images that the networks were not trained on, N ≥ 2.
        labels: (N,) true classes.
        log_shares: log of each class's share of the training images, (K,).
        metric: of the study.
    """
    if metric not in CLASS_METRICS or len(labels) < 2:
        return None
    before = image_scores(logits, labels, metric)
    each = [(image_scores(logits - tau * log_shares, labels, metric), tau) for tau in STRENGTHS]
    after, strength = max(each, key=lambda found: float(found[0].mean()))  # the weakest of equal ones
    gain = after - before
    error = float(np.std(gain, ddof=1) / np.sqrt(len(gain)))
    if gain.mean() < max(LEAST_GAIN, error):
        return None
    return LogitShift(strength=strength, before=float(before.mean()), after=float(after.mean()))
