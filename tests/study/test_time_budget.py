"""What the search may use of a time budget."""

from __future__ import annotations

import math
import time

import pytest

from delta_tune.config import StudyConfig, TrialConfig
from delta_tune.results.columns import EPOCH_COLUMNS
from delta_tune.results.tables import StudyTables
from delta_tune.study.time_budget import (
    PostSearchBudget,
    TimeBudget,
    cached_for,
    final_training_growth,
    fold_growth,
    mean_epoch_seconds,
    plan_final_runs,
    plan_post_search,
)


def test_time_budget_counts_all_sessions():
    budget = TimeBudget(100, spent=30, began=time.time() - 20, before=20)
    assert budget.used == pytest.approx(50, abs=1)
    assert budget.left == pytest.approx(50, abs=1)


@pytest.mark.parametrize("step", [86400, -7200])
def test_step_of_the_clock_spends_no_time_and_gives_none(monkeypatch, step):
    budget = TimeBudget(600, spent=0, began=time.time())
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + step)
    assert budget.left == pytest.approx(600, abs=5)


def test_time_budget_keeps_time_for_the_end():
    budget = TimeBudget(600, spent=0, began=time.time(), end=20)
    assert budget.left == pytest.approx(580, abs=5)
    assert budget.used == pytest.approx(0, abs=5)


def test_time_budget_without_an_end_has_all_time_left():
    assert TimeBudget(None, spent=30, began=0).left == math.inf


def test_time_budget_says_what_it_has_no_time_for():
    budget = TimeBudget(3600, spent=3500, began=time.time())
    assert budget.has_time_for(100)
    assert not budget.has_time_for(110)
    assert "left of the time budget of 1:00:00 is too short for another trial; " in budget.search_is_over()
    assert "are enough for 2 seeds instead of 5, no more." in budget.too_short_to_confirm(2, 5)
    assert "are enough neither to confirm nor to retrain." in budget.too_short_to_confirm(0, 5)


def test_time_budget_says_what_is_reserved():
    budget = TimeBudget(3600, spent=0, began=time.time())
    reserved = PostSearchBudget(repetitions=3, confirmation=600, final=90)
    assert budget.reserved_after_search(reserved, 5) == (
        "Of the 1:00:00, 10:00 are kept for a confirmation with 3 of 5 seeds and 1:30 for the final model."
    )
    assert "too short to train anew" in budget.reserved_after_search(PostSearchBudget(), 5)


def test_final_runs_are_kept_time_for_what_they_measure():
    shape = {"runs": 5, "epoch_seconds": 10.0, "max_epochs": 4, "growth": 1.5, "measuring": 4.0}
    # 4 epochs of 15 s and 4 s before them
    assert plan_final_runs(math.inf, slots=1, **shape) == PostSearchBudget(runs=5, final=5 * 64)
    assert plan_final_runs(math.inf, slots=2, **shape) == PostSearchBudget(runs=5, final=3 * 64)
    assert plan_final_runs(4 * 64 - 1, slots=1, **shape).runs == 3


def methods(tables):
    return {number: row["config.regularizer"] for number, row in tables.trials.items()}


def add(tables, method, seconds):
    number = len(tables.trials)
    tables.add(number, TrialConfig(regularizer=method), {}, {})
    for epoch, (train, validation) in enumerate(seconds, start=1):
        row = {"epoch": epoch, **dict.fromkeys(EPOCH_COLUMNS, 0.5)}
        tables.report(number, row | {"seconds": train, "eval_seconds": validation})


def test_epoch_seconds_are_the_mean_of_each_group_scoring_included(tmp_path):
    tables = StudyTables(tmp_path, "val_accuracy")
    add(tables, "delta", [(1.0, 0.5), (2.0, 0.5)])
    add(tables, "delta", [(3.0, 1.0)])
    add(tables, "l2", [(1.0, 0.0)])
    add(tables, "l2_sp", [])
    assert mean_epoch_seconds(tables, methods) == {"delta": pytest.approx(8 / 3), "l2": 1.0}


def test_epoch_seconds_of_a_group_are_its_slowest_method_s(tmp_path):
    tables = StudyTables(tmp_path, "val_accuracy")
    add(tables, "delta", [(3.0, 0.0)])
    add(tables, "delta_uniform", [(2.0, 0.0)])
    assert mean_epoch_seconds(tables, lambda t: dict.fromkeys(t.trials, "space")) == {"space": 3.0}


TWO_METHODS = {"epoch_seconds": {"delta": 3.0, "l2": 2.0}, "max_epochs": 10, "slots": 1, "growth": 1.25}


def test_reserve_is_the_work_of_all_runs_and_the_final_model():
    # one slot: 4 × (3 + 2) s × 10 epochs, and 10 epochs of the slower on a quarter more images
    assert plan_post_search(math.inf, repetitions=4, **TWO_METHODS) == PostSearchBudget(
        repetitions=4, confirmation=200, final=37.5
    )


def test_reserve_of_several_slots_has_a_last_run_alone():
    assert plan_post_search(math.inf, repetitions=4, **{**TWO_METHODS, "slots": 2}).confirmation == 4 * 5 * 10 / 2 + 30


def test_reserve_counts_the_attention_of_each_fresh_split_and_of_the_final_training_set():
    found = plan_post_search(math.inf, repetitions=4, split_seconds=7, **TWO_METHODS)
    assert (found.confirmation, found.final) == (200 + 28, 37.5 + 7)


@pytest.mark.parametrize(("within", "kept"), [(237.5, 4), (237.4, 3), (137.5, 2), (137.4, 0), (0, 0)])
def test_reserve_cuts_repetitions_first_and_never_to_one(within, kept):
    assert plan_post_search(within, repetitions=4, **TWO_METHODS).repetitions == kept


RUNS = {"runs": 5, "epoch_seconds": 3.0, "max_epochs": 10, "slots": 1, "growth": 1.1}


def test_reserve_of_final_runs_is_theirs_alone():
    found = plan_final_runs(math.inf, **RUNS)
    assert (found.runs, found.repetitions, found.confirmation) == (5, 0, 0)
    assert found.total == pytest.approx(5 * 10 * 3.0 * 1.1)


@pytest.mark.parametrize(("slots", "rounds"), [(2, 3), (4, 2), (5, 1), (8, 1)])
def test_reserve_of_final_runs_counts_rounds_of_the_slots(slots, rounds):
    assert plan_final_runs(math.inf, **RUNS | {"slots": slots}).final == pytest.approx(rounds * 33.0)


@pytest.mark.parametrize(("within", "kept"), [(165.1, 5), (164.9, 4), (66.1, 2), (65.9, 0), (-1, 0)])
def test_final_runs_are_cut_and_never_to_one(within, kept):
    found = plan_final_runs(within, **RUNS)
    assert found.runs == kept
    assert found.total <= max(0, within)


def test_sentence_on_what_is_reserved_for_final_runs_promises_none_that_do_not_fit():
    budget = TimeBudget(600, spent=0, began=0)
    assert budget.reserved_after_search(PostSearchBudget(runs=3, final=99), 0) == (
        "Of the 10:00, 1:39 are kept for 3 final runs."
    )
    assert budget.reserved_after_search(PostSearchBudget(), 0) == budget.too_short()
    assert budget.reserved_after_search(PostSearchBudget(), 4) == budget.too_short()


def test_growth_of_a_final_run_is_nine_tenths_of_train_and_val(task):
    assert fold_growth(task.dataset) == pytest.approx(0.9 * 54 / 36)


@pytest.mark.parametrize(
    ("more", "slots", "growth"),
    [
        ({}, 1, 2 * 0.9 * 54 / 36),
        ({}, 2, 0.9 * 54 / 36),
        ({"final_runs": 0}, 1, 54 / 36),
        ({"train_per_class": 5}, 1, 1.0),
        ({"train_fraction": 0.5}, 1, 1.0),
    ],
)
def test_growth_of_the_final_model_is_that_of_two_runs_or_of_one_on_all_images(task, more, slots, growth):
    assert final_training_growth(StudyConfig(**more), task.dataset, slots) == pytest.approx(growth)


def test_reserve_keeps_nothing_where_no_epoch_is_measured_yet():
    found = plan_post_search(math.inf, repetitions=4, **{**TWO_METHODS, "epoch_seconds": {}})
    assert (found.repetitions, found.total) == (4, 0)


def test_every_counts_down_between_two_looks(monkeypatch):
    now, asked = [100.0], []

    def ask():
        asked.append(now[0])
        return 50.0

    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    left = cached_for(2.0, ask)
    seen = []
    for now[0] in (100.0, 101.0, 101.5, 102.0):
        seen.append(left())
    assert seen == [50.0, 49.0, 48.5, 50.0]
    assert asked == [100.0, 102.0]


def test_every_asks_less_often_what_takes_long(monkeypatch):
    now, asked = [0.0], []

    def ask():
        asked.append(now[0])
        now[0] += 1.0
        return 100.0

    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    left = cached_for(2.0, ask)
    for _ in range(101):
        left()
        now[0] += 1.0
    assert asked == [0.0, 20.0, 40.0, 60.0, 80.0, 100.0]


def test_epoch_seconds_of_a_group_are_its_slowest_network_s_or_those_of_one(tmp_path):
    tables = StudyTables(tmp_path, "val_accuracy")
    for number, (label, seconds) in enumerate([("a", 1.0), ("b", 4.0), ("a", 3.0)]):
        tables.add(number, TrialConfig(regularizer="l2", backbone=label), {}, {})
        tables.report(number, dict.fromkeys(EPOCH_COLUMNS, 0.5) | {"epoch": 1, "seconds": seconds, "eval_seconds": 1.0})
    assert mean_epoch_seconds(tables, methods) == {"l2": 5.0}
    assert mean_epoch_seconds(tables, methods, "a") == {"l2": 3.0}
