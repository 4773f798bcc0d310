"""When a search has enough trials: another one can be expected to gain less than its validation photos can show."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

TAIL = 3
"""Scores above the next one that tell how far apart the best are."""


def expected_gain(scores: Sequence[float], num_ended: int, num_val: int) -> float:
    """What one more trial can be expected to add to the best score.

    The upper tail of the scores is taken as exponential. With a scale of σ the best of k + 1 draws is σ / (k + 1) above
    the best of k on average. σ is the mean of the best `TAIL` scores above the next one: Hill's estimate, without the
    logarithm.

    Args:
        scores: accuracies in [0, 1] of the trials that ran to their end.
        num_ended: all trials that ended; one that a rung stopped was a draw, too, and none of the best.
        num_val: photos that the accuracies are means of. They differ by whole photos, so σ is one at least.

    Returns:
        The gain, in the unit of the scores; inf while there are too few scores.
    """
    if len(scores) <= TAIL:
        return math.inf
    best = np.sort(np.asarray(scores, float))[: -TAIL - 2 : -1]
    scale = max(float(np.mean(best[:TAIL] - best[TAIL])), 1 / num_val)
    return scale / (num_ended + 1)


def enough_trials(scores: Sequence[float], num_ended: int, num_val: int, share: float = 0.03) -> bool:
    """Whether another trial's expected gain is below a share of the best score's standard error.

    The standard error is the binomial one with two right and two wrong photos more (Agresti and Coull), so that a best
    score of 1 has one.

    Args:
        scores: as in `expected_gain`.
        num_ended: the same.
        num_val: the same.
        share: of the error. k trials are enough once k + 1 > σ / (share · error), so half of it takes twice as many.
    """
    if not scores:
        return False
    right = (max(scores) * num_val + 2) / (num_val + 4)
    error = math.sqrt(right * (1 - right) / num_val)
    return expected_gain(scores, num_ended, num_val) < share * error
