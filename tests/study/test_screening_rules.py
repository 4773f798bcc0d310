from __future__ import annotations

import math

import numpy as np
import pytest

from delta_tune.study.screening_rules import (
    MOST_IMAGES,
    PASSES_OF_STEP,
    SHARE,
    TIMED_EPOCHS,
    TYPICAL_IMAGES,
    Room,
    keep,
    sampled_images,
    timed_images,
)

NAMES = ["a", "b", "c"]


def scores(mean, noise=0.0, seed=0, count=400):
    """Log-likelihoods of images of this mean, with noise of each network's own."""
    drawn = np.random.default_rng(seed).normal(size=count)
    return mean + noise * (drawn - drawn.mean())


def test_likeliest_is_kept():
    kept, told = keep(NAMES, [scores(-2), scores(-1), scores(-3)], [True] * 3)
    assert kept == [1]
    assert told[1] == "the best"
    assert told[0].startswith("clearly less likely than the best (-1.000 ± 0.000")


def test_second_is_kept_where_it_is_not_told_apart():
    kept, told = keep(NAMES, [scores(-1.01, 1, 1), scores(-1, 1, 2), scores(-3, 1, 3)], [True] * 3)
    assert sorted(kept) == [0, 1]
    assert told[kept[1]].startswith("not told apart from the best (")


def test_no_more_than_two_are_kept():
    kept, told = keep(NAMES, [scores(-1, 1, seed) for seed in range(3)], [True] * 3)
    assert len(kept) == 2
    (third,) = set(range(3)) - set(kept)
    assert told[third].endswith(", but two are enough")


def test_comparison_is_image_by_image():
    hard = scores(-2, 2)  # the same images are hard for both, so a small difference is clear
    kept, _ = keep(NAMES[:2], [hard - 0.05, hard], [True] * 2)
    assert kept == [1]


def test_difference_that_is_sure_but_tiny_drops_nobody():
    hard = scores(-2, 2)
    assert sorted(keep(NAMES[:2], [hard - 0.019, hard], [True] * 2)[0]) == [0, 1]
    assert keep(NAMES[:2], [hard - 0.021, hard], [True] * 2)[0] == [1]


def test_slow_one_is_the_best_only_if_it_is_clearly_likelier():
    close, far = scores(-1.0, 0.5, 1), scores(-0.3, 0.5, 2)
    kept, told = keep(NAMES[:2], [scores(-1.01, 0.5, 3), close], [True, False])
    assert kept[0] == 0
    assert told[0] == "not told apart from b, whose full trials do not fit into the time"
    assert keep(NAMES[:2], [scores(-1.01, 0.5, 3), far], [True, False])[0] == [1]


def test_second_is_one_that_fits_into_the_time_if_there_is_one():
    likelihoods = [scores(-1.00, 1, 1), scores(-1.02, 1, 2), scores(-1.04, 1, 3)]
    assert keep(NAMES, likelihoods, [True, False, True])[0] == [0, 2]


def test_one_image_tells_nobody_apart():
    assert sorted(keep(NAMES[:2], [scores(-9, count=1), scores(-1, count=1)], [True] * 2)[0]) == [0, 1]


def test_without_a_time_budget_all_epochs_fit():
    room = Room(seconds=math.inf, slots=1, epochs=6)
    assert room.epochs_in_time(1e9) == 6


@pytest.mark.parametrize(
    ("seconds", "slots", "num_trials", "epochs"),
    [
        (240, 1, None, 6),  # four full trials of six epochs of 10 s
        (239, 1, None, 5),
        (120, 2, None, 6),
        (119, 8, None, 5),  # two rounds at least: later trials learn from earlier ones
        (60, 1, 1, 6),
        (60, 8, 4, 6),
        (240, 1, 16, 6),  # ASHA ends most of them early
        (0, 1, None, 0),
    ],
)
def test_epochs_that_a_search_has_time_for(seconds, slots, num_trials, epochs):
    assert Room(seconds=seconds, slots=slots, epochs=6, num_trials=num_trials).epochs_in_time(10) == epochs


@pytest.mark.parametrize("images", [1, 2, 10, 60, 500, 3000, 100_000])
@pytest.mark.parametrize("candidates", [2, 4, 7])
@pytest.mark.parametrize("epochs", [1, 6, 20])
def test_screening_costs_less_than_a_trial(images, candidates, epochs):
    timed = timed_images(images, epochs, candidates, 8)
    count, least = sampled_images(images, 10, epochs, candidates, 0.01, 1e9)
    passes = candidates * (count + TIMED_EPOCHS * (PASSES_OF_STEP + 1) * timed)
    trial = PASSES_OF_STEP * epochs * images
    if images * epochs >= 40 * candidates:  # else one image for each is more than half of a trial
        assert passes <= SHARE * trial
        assert candidates * 10 * least <= SHARE * trial
    assert 1 <= count <= images


def test_sample_is_of_a_size_that_tells_networks_apart():
    assert sampled_images(100_000, 10, 6, 4, 0.001, 1e9) == (TYPICAL_IMAGES, 4)
    assert sampled_images(100_000, 200, 6, 4, 0.001, 1e9) == (1600, 4)
    assert sampled_images(10_000_000, 5000, 6, 4, 0.001, 1e9)[0] == MOST_IMAGES


def test_sample_is_smaller_where_networks_are_slow_but_has_each_class():
    assert sampled_images(100_000, 10, 6, 4, 1.0, 100) == (100, 4)
    assert sampled_images(100_000, 100, 6, 4, 1.0, 100) == (400, 4)
