"""What a time budget buys."""

from __future__ import annotations

import dataclasses

import pytest
from helpers.fuzz import cases
from hypothesis import assume, given
from hypothesis import strategies as st

from delta_tune.study.schedule import (
    FULL_TRIALS,
    LONGEST,
    SHORTEST,
    TARGET_STEPS,
    Means,
    Wishes,
    choose_schedule,
    epochs_of_set,
    epochs_of_steps,
    expected_epochs,
    passing,
    search_seconds,
)

OPEN = Wishes(max_epochs=None, num_trials=None, grace_period=1, grace_of=12, reduction_factor=4)
MEANS = Means(seconds=100.0, epoch_seconds=5.0, steps=200, slots=2)

some_wishes = st.builds(
    Wishes,
    max_epochs=st.none() | st.integers(1, 200),
    num_trials=st.none() | st.integers(1, 500),
    grace_period=st.integers(1, 5),
    grace_of=st.none() | st.integers(5, 50),
    reduction_factor=st.floats(1.1, 10),
)
some_means = st.builds(
    Means,
    seconds=st.floats(-100, 1e5),
    epoch_seconds=st.floats(1e-3, 1e4),
    steps=st.integers(1, 100_000),
    slots=st.integers(1, 64),
)
a_factor = st.floats(1, 100)


def with_confirmation(means, share):
    return dataclasses.replace(means, confirming=7 * means.epoch_seconds, for_confirming=share)


@cases(100)
@given(some_wishes, some_means, st.none() | st.floats(0, 1e5))
def test_schedule_is_within_its_ranges(wishes, means, share):
    found = choose_schedule(wishes, means if share is None else with_confirmation(means, share))
    assert 1 <= found.grace_period <= found.max_epochs
    assert found.max_epochs <= (wishes.max_epochs or LONGEST)
    assert 0 <= found.num_trials <= (wishes.num_trials or 1000)
    assert found.num_trials or not found.confirms
    assert not found.confirms or share is not None


@cases(100)
@given(some_wishes, some_means)
def test_schedule_fits_if_an_epoch_of_each_trial_does(wishes, means):
    trials = wishes.num_trials or 1
    assume(search_seconds(wishes, means, trials, 1) <= means.seconds)
    found = choose_schedule(wishes, means)
    assert search_seconds(wishes, means, trials, found.max_epochs) <= means.seconds
    assert search_seconds(wishes, means, found.num_trials, found.max_epochs) <= means.seconds
    assert found.num_trials == trials or wishes.num_trials is None


@cases(100)
@given(some_wishes, some_means, a_factor)
def test_more_time_never_means_fewer_epochs(wishes, means, factor):
    assume(means.seconds > 0)
    more = dataclasses.replace(means, seconds=means.seconds * factor)
    assert choose_schedule(wishes, more).max_epochs >= choose_schedule(wishes, means).max_epochs


@cases(100)
@given(some_wishes, some_means, a_factor)
def test_faster_machine_never_means_fewer_epochs(wishes, means, factor):
    faster = dataclasses.replace(means, epoch_seconds=means.epoch_seconds / factor)
    assert choose_schedule(wishes, faster).max_epochs >= choose_schedule(wishes, means).max_epochs


@cases(100)
@given(some_means, a_factor)
def test_more_time_never_means_fewer_trials_of_as_many_epochs(means, factor):
    assume(means.seconds > 0)
    more = dataclasses.replace(means, seconds=means.seconds * factor)
    one, other = choose_schedule(OPEN, means), choose_schedule(OPEN, more)
    assert other.num_trials >= one.num_trials or other.max_epochs > one.max_epochs


@cases(100)
@given(some_means)
def test_several_full_trials_fit_once_there_are_more_epochs_than_the_fewest(means):
    found = choose_schedule(OPEN, means)
    assume(found.max_epochs > SHORTEST)
    assert FULL_TRIALS * found.max_epochs * means.epoch_seconds / means.slots <= means.seconds * (1 + 1e-9)


def test_full_trials_have_as_many_steps_whatever_the_size_of_the_set_between_the_fewest_and_the_most_epochs():
    assert [epochs_of_set(steps) for steps in (160, 199, 200)] == [TARGET_STEPS // 160, 5, TARGET_STEPS // 200]
    assert (epochs_of_set(1), epochs_of_set(10**6)) == (LONGEST, SHORTEST)


def test_steps_have_as_few_epochs_as_hold_them():
    assert [epochs_of_steps(60, steps) for steps in (1, 10, 11, 30, 31, 60, 61)] == [60, 6, 6, 2, 2, 1, 1]


def test_what_is_left_open_is_chosen():
    # Four full trials in 100 s on two slots: 50 s each, ten epochs; the set needs four, a small one the most there are
    assert choose_schedule(OPEN, MEANS).max_epochs == TARGET_STEPS // 200
    assert choose_schedule(OPEN, dataclasses.replace(MEANS, steps=10)).max_epochs == LONGEST
    assert choose_schedule(OPEN, dataclasses.replace(MEANS, steps=10, slots=1)).max_epochs == 5


def test_epochs_that_were_asked_for_stay_if_a_trial_of_them_fits():
    asked = dataclasses.replace(OPEN, max_epochs=20, grace_of=20)
    assert choose_schedule(asked, MEANS).max_epochs == 20
    assert choose_schedule(asked, dataclasses.replace(MEANS, seconds=99)).max_epochs == 19


def test_trials_that_were_asked_for_are_shortened_with_their_rungs():
    asked = Wishes(max_epochs=24, num_trials=8, grace_period=6, grace_of=24, reduction_factor=4)
    assert choose_schedule(asked, dataclasses.replace(MEANS, seconds=10_000)).max_epochs == 24
    found = choose_schedule(asked, MEANS)
    assert (found.max_epochs, found.grace_period, found.num_trials) == (10, 2, 8)


def test_rung_that_was_asked_for_stays_where_epochs_are_chosen():
    asked = dataclasses.replace(OPEN, grace_period=2, grace_of=None)
    assert choose_schedule(asked, MEANS).grace_period == 2


@pytest.mark.parametrize(("seconds", "trials"), [(-3.0, 0), (4.9, 0), (5.0, 2)])
def test_budget_too_short_for_an_epoch_buys_no_trial(seconds, trials):
    found = choose_schedule(OPEN, dataclasses.replace(MEANS, seconds=seconds))
    assert (found.max_epochs, found.num_trials) == (1, trials)


def test_confirmation_has_its_share_or_is_left_out():
    means = dataclasses.replace(MEANS, confirming=20.0, for_confirming=50.0)
    found = choose_schedule(OPEN, means)
    assert (found.max_epochs, found.confirms) == (2, True), "50 s for two epochs in each of its runs"
    assert not choose_schedule(OPEN, dataclasses.replace(means, confirming=51.0)).confirms
    assert choose_schedule(OPEN, dataclasses.replace(means, confirming=51.0)).max_epochs == 4


def test_more_trials_than_fit_leave_the_confirmation_its_share():
    asked = dataclasses.replace(OPEN, num_trials=1000)
    found = choose_schedule(asked, dataclasses.replace(MEANS, confirming=20.0, for_confirming=50.0))
    assert (found.max_epochs, found.num_trials, found.confirms) == (1, 20, True)


def test_first_trials_at_a_rung_pass_more_often_than_later_ones():
    assert [passing(count, 4) for count in (1, 2, 4, 8)] == [1, 1.5, pytest.approx(25 / 12), pytest.approx(37 / 12)]


@cases(100)
@given(st.floats(0, 1000), st.floats(1.01, 20))
def test_no_more_trials_pass_than_came(trials, factor):
    assert 0 <= passing(trials, factor) <= trials + 1e-9


def test_confirmation_has_less_room_for_epochs_where_its_splits_are_measured_first():
    asked = dataclasses.replace(OPEN, max_epochs=30)
    means = dataclasses.replace(MEANS, seconds=4000.0, confirming=40.0, for_confirming=1000.0)
    epochs = [choose_schedule(asked, dataclasses.replace(means, measuring=each)).max_epochs for each in (0.0, 600.0)]
    assert epochs == [25, 10]


def test_expected_epochs_count_each_stage_once():
    # 8 trials of one epoch, 37/12 of three more
    assert expected_epochs(8, 4, 1, 4) == pytest.approx(8 + 3 * 37 / 12)
    assert expected_epochs(3, 5, 5, 4) == 15
