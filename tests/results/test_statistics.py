from __future__ import annotations

import math

import numpy as np
import pytest

from delta_tune.results.statistics import method_comparison, resampled_interval, wilson_interval


def test_interval_is_the_formula():
    values = [0.80, 0.83, 0.79, 0.84, 0.82]
    mean = sum(values) / 5
    variance = sum((v - mean) ** 2 for v in values) / 4
    half = 2.7764451 * math.sqrt((1 / 5 + 30 / 120) * variance)  # Student's t, 4 degrees of freedom, 97.5 %
    found = resampled_interval(values, train=120, val=30)
    assert (found.mean, found.low, found.high) == pytest.approx((mean, mean - half, mean + half))
    assert found.runs == 5


def test_interval_without_overlap_is_students():
    from scipy import stats

    values = [1.0, 2.0, 4.0, 8.0]
    low, high = stats.t.interval(0.9, 3, np.mean(values), stats.sem(values))
    found = resampled_interval(values, train=10**12, val=1, level=0.9)
    assert (found.low, found.high) == pytest.approx((low, high))


def test_interval_of_splits_that_overlap_covers_where_the_plain_one_does_not():
    """200 studies of two guessers of equal skill: 10 splits of the same 100 images each."""
    rng = np.random.default_rng(0)
    plain = corrected = 0
    for _ in range(200):
        right = rng.random((2, 100)) < 0.7  # whether each gets each image right, whatever it trained on
        gaps = []
        for _ in range(10):
            val = rng.permutation(100)[:50]
            gaps.append(right[0, val].mean() - right[1, val].mean())
        truth = 0.0
        found, naive = resampled_interval(gaps, train=50, val=50), resampled_interval(gaps, train=10**12, val=50)
        corrected += found.low <= truth <= found.high
        plain += naive.low <= truth <= naive.high
    assert plain < 0.7 * 200
    assert corrected > 0.85 * 200


def test_verdict_names_means_spread_gap_and_pairs():
    said = method_comparison("delta", [0.84, 0.85, 0.84, 0.85], "l2", [0.80, 0.81, 0.81, 0.80], train=800, val=200)
    assert said.startswith("delta 84.5 ± 0.6, l2 80.5 ± 0.6: +4.0 [")
    assert said.endswith("4 pairs")


def test_verdict_says_where_data_cannot_tell():
    said = method_comparison("delta", [0.84, 0.80, 0.86], "l2", [0.81, 0.83, 0.82], train=800, val=200)
    assert said.endswith("no difference that this data can show")


@pytest.mark.parametrize(
    ("proportion", "count", "low", "high"), [(0.9, 100, 0.8256, 0.9448), (1.0, 10, 0.7225, 1.0), (0.0, 10, 0.0, 0.2775)]
)
def test_wilson_interval_equals_published_values(proportion, count, low, high):
    assert wilson_interval(proportion, count) == pytest.approx((low, high), abs=1e-4)


@pytest.mark.parametrize("count", [1, 2, 50, 153, 10_000])
def test_wilson_interval_is_the_formula(count):
    z = 1.959963984540054  # 97.5 % of the normal distribution
    for right in {0, 1, count // 3, count // 2, count - 1, count}:
        share = right / count
        centre = (share + z * z / (2 * count)) / (1 + z * z / count)
        half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
        expected = (max(0.0, centre - half), min(1.0, centre + half))
        assert wilson_interval(share, count) == pytest.approx(expected, abs=1e-9)
