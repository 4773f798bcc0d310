"""What repeated runs say about methods: means, and intervals that allow for splits that overlap."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.95


def standard_error(proportion: float, count: int) -> float:
    """Of a proportion seen on `count` examples; at 0 and 1 that of half an example, for a few cannot show certainty."""
    return math.sqrt(max(proportion * (1 - proportion), 0.25 / count) / count)


def wilson_interval(proportion: float, count: int) -> tuple[float, float]:
    """95 % interval of a proportion seen on `count` examples (Wilson 1927): right near 0 and 1 too."""
    from scipy import stats  # takes a second, which a study's start need not wait for

    interval = stats.binomtest(round(proportion * count), count).proportion_ci(LEVEL, method="wilson")
    return float(interval.low), float(interval.high)


def wilson_intervals(
    hits: NDArray[np.int64], counts: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """95 % intervals of many proportions at once, which `wilson_interval` has one by one in a millisecond each.

    Args:
        hits: (K,), 0 to `counts`.
        counts: (K,), ≥ 1.

    Returns:
        Low and high ends, (K,).
    """
    from scipy import special

    z2 = float(special.ndtri((1 + LEVEL) / 2)) ** 2
    middle = (hits + z2 / 2) / (counts + z2)
    half = np.sqrt(z2 * (hits * (counts - hits) / counts + z2 / 4)) / (counts + z2)
    return np.clip(middle - half, 0, 1), np.clip(middle + half, 0, 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Interval:
    """A mean with its interval of confidence."""

    mean: float
    low: float
    high: float
    runs: int

    @property
    def clear(self) -> bool:
        """Whether 0 lies outside."""
        return self.low > 0 or self.high < 0


def resampled_interval(values: Sequence[float], train: float, val: float, level: float = LEVEL) -> Interval:
    """The corrected resampled t interval (Nadeau & Bengio 2003, section 4) of scores, or of differences of scores.

    Splits drawn anew from the same images overlap, so the scores depend on one another and their plain standard error
    is far too small: the variance of the mean is (1/n + val/train) times that of the values instead of 1/n times.

    Args:
        values: one for each split, n ≥ 2.
        train: images a split trains on.
        val: images it is scored on.
        level: probability that such an interval holds the expectation, in (0, 1).
    """
    from scipy import stats

    assert len(values) >= 2, "one run has no spread"
    mean, n = float(np.mean(values)), len(values)
    half = stats.t.ppf((1 + level) / 2, n - 1) * np.sqrt((1 / n + val / train) * np.var(values, ddof=1))
    return Interval(mean=mean, low=mean - float(half), high=mean + float(half), runs=n)


def method_comparison(
    first: str, first_scores: Sequence[float], second: str, second_scores: Sequence[float], train: float, val: float
) -> str:
    """Two methods on the same seeds and splits, in a sentence; scores are shares of 1, higher is better."""
    names = (first, first_scores), (second, second_scores)
    each = [f"{name} {100 * np.mean(s):.1f} ± {100 * np.std(s, ddof=1):.1f}" for name, s in names]
    gap = resampled_interval([a - b for a, b in zip(first_scores, second_scores, strict=True)], train, val)
    said = f"{', '.join(each)}: {100 * gap.mean:+.1f} [{100 * gap.low:.1f}, {100 * gap.high:.1f}], {gap.runs} pairs"
    return said if gap.clear else f"{said}: no difference that this data can show"
