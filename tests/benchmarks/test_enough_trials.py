"""When another trial is worth no more than the validation photos can show."""

import math
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))  # programs, not a package
from selection_parts.enough_trials import enough_trials, expected_gain


def test_expected_gain_by_hand():
    # Above 0.70: 0.12, 0.07, 0.02, 0.07 of mean; the fifth does not matter, nor does the order.
    assert expected_gain([0.72, 0.1, 0.82, 0.7, 0.77], 9, 1000) == pytest.approx(0.07 / 10)


def test_expected_gain_is_that_of_exponential_draws():
    draws = np.random.default_rng(0).exponential(0.1, (20_000, 21))
    gained = np.mean(draws.max(1) - draws[:, :20].max(1))
    told = np.mean([expected_gain(list(each[:20]), 20, 10**6) for each in draws[:4000]])
    assert told == pytest.approx(gained, rel=0.1)


def test_expected_gain_of_few_scores_is_unbounded():
    assert expected_gain([0.5, 0.6, 0.7], 30, 100) == math.inf
    assert expected_gain([], 30, 100) == math.inf


def test_expected_gain_of_equal_scores_is_a_photo_among_the_trials():
    assert expected_gain([0.8] * 6, 9, 50) == pytest.approx(1 / 50 / 10)


def test_enough_trials_compares_with_the_standard_error():
    scores, error = [0.82, 0.77, 0.72, 0.7], math.sqrt((84 / 104) * (20 / 104) / 100)
    last = 0.07 / (0.05 * error) - 1  # the number of trials at which both are equal
    assert not enough_trials(scores, math.floor(last), 100, share=0.05)
    assert enough_trials(scores, math.ceil(last), 100, share=0.05)


def test_enough_trials_takes_fewer_where_photos_show_less():
    scores = [0.82, 0.77, 0.72, 0.7]
    needed = [next(k for k in range(4, 10_000) if enough_trials(scores, k, num_val)) for num_val in (50, 500, 5000)]
    assert needed == sorted(set(needed))


@pytest.mark.parametrize("scores", [[1.0] * 8, [0.0] * 8])
def test_enough_trials_ends_where_all_are_right_or_wrong(scores):
    assert any(enough_trials(scores, k, 170) for k in range(8, 400))


def test_enough_trials_without_a_score_goes_on():
    assert not enough_trials([], 1000, 170)
