"""Which configuration the final runs are of: the order of the runs, and what drops a racer."""

from __future__ import annotations

import math

import numpy as np
import pytest

from delta_tune.config import LOSS_PARTS, TrialConfig
from delta_tune.results.columns import SCORES
from delta_tune.results.tables import StudyTables
from delta_tune.study.race import FoldRun, Race, finalists, race_sentences


def scores(mean, images=100):
    """Right for so many of 100 images, evenly spread."""
    return (np.arange(images) % 100 < 100 * mean).astype(float)


def run_all(race, results, slots=1):
    """Let the race run with so many slots; each run ends in the order it began. Returns (trial, fold) in order.

    Args:
        race: from its start.
        results: trial → a function of the fold that returns its scores.
        slots: runs at a time.
    """
    order, running = [], []
    while True:
        while len(running) < slots and (run := race.upcoming()) is not None:
            running.append(run)
            order.append((run.trial, run.fold))
        if not running:
            return order
        ended = running.pop(0)
        race.ended(ended, results[ended.trial](ended.fold))


def always(mean):
    return lambda fold: scores(mean)


def test_single_racer_runs_on_each_fold():
    race = Race([7], 3)
    assert run_all(race, {7: always(0.5)}) == [(7, 0), (7, 1), (7, 2)]
    assert race.leader == 7


def test_racers_that_are_not_told_apart_run_in_rounds_and_the_leader_has_the_rest():
    race = Race([4, 2], 4)
    order = run_all(race, {4: always(0.6), 2: always(0.61)})
    assert order == [(4, 0), (2, 0), (4, 1), (2, 1), (2, 2), (2, 3)]
    assert race.leader == 2


def test_favourite_leads_where_racers_are_equal():
    race = Race([4, 2], 2)
    run_all(race, {4: always(0.6), 2: always(0.6)})
    assert race.leader == 4


def test_racer_that_is_clearly_behind_runs_no_further():
    race = Race([4, 2], 4)
    # 100 images, the favourite is right for 30 more: the standard error of the difference is 0.046
    assert run_all(race, {4: always(0.9), 2: always(0.6)}) == [(4, 0), (2, 0), (4, 1), (4, 2), (4, 3)]
    assert race.alive == [4]


def test_favourite_that_is_clearly_behind_is_dropped_itself():
    race = Race([4, 2], 3)
    assert run_all(race, {4: always(0.6), 2: always(0.9)}) == [(4, 0), (2, 0), (2, 1), (2, 2)]
    assert race.leader == 2


def test_racer_behind_by_less_than_chance_explains_is_not_dropped():
    better, worse = scores(0.5, 10), scores(0.5, 10)
    worse[:2] = 0  # two of ten: a difference of 0.2 with a standard error of 0.13
    race = Race([0, 1], 2)
    race.ended(race.upcoming(), better)
    race.ended(race.upcoming(), worse)
    assert race.alive == [0, 1]


def test_leader_is_the_better_one_over_both_rounds():
    race = Race([0, 1], 3)
    results = {0: lambda fold: scores((0.62, 0.5, 0)[fold]), 1: lambda fold: scores((0.6, 0.58, 0)[fold])}
    assert run_all(race, results)[-1] == (1, 2)


def test_racer_whose_run_fails_is_out():
    race = Race([0, 1], 3)
    assert run_all(race, {0: lambda fold: None, 1: always(0.3)}) == [(0, 0), (1, 0), (1, 1), (1, 2)]
    assert race.leader == 1


def test_last_racer_goes_on_after_a_run_that_fails():
    race = Race([5], 3)
    assert run_all(race, {5: lambda fold: None if fold == 0 else scores(0.5)}) == [(5, 0), (5, 1), (5, 2)]
    assert race.leader == 5


def test_rest_waits_for_the_rounds_that_several_slots_still_run():
    race = Race([0, 1], 3)
    begun = [race.upcoming() for _ in range(4)]
    assert [(run.trial, run.fold) for run in begun] == [(0, 0), (1, 0), (0, 1), (1, 1)]
    assert race.upcoming() is None, "either may lead"
    for run in begun[:3]:
        race.ended(run, scores(0.6 if run.trial else 0.59))
        assert race.upcoming() is None
    race.ended(begun[3], scores(0.61))
    assert race.upcoming() == FoldRun(trial=1, fold=2)
    assert race.upcoming() is None


def test_rest_does_not_wait_for_a_run_of_a_racer_that_is_out():
    race = Race([0, 1], 3)
    begun = [race.upcoming() for _ in range(4)]
    race.ended(begun[0], scores(0.9))
    race.ended(begun[1], scores(0.2))
    race.ended(begun[2], scores(0.9))
    assert race.upcoming() == FoldRun(trial=0, fold=2)
    race.ended(begun[3], scores(0.99))
    assert race.leader == 0, "who was dropped stays so"


def test_several_slots_give_the_same_leader_and_the_same_runs_of_it():
    results = {0: always(0.6), 1: always(0.62), 2: always(0.3)}
    for slots in (1, 2, 5):
        race = Race([0, 1, 2], 5)
        order = run_all(race, results, slots)
        assert race.leader == 1
        assert [fold for trial, fold in order if trial == 1] == [0, 1, 2, 3, 4]
        assert len(order) == len(set(order))


def test_difference_is_image_by_image_on_the_folds_that_both_have():
    rng = np.random.default_rng(0)
    race = Race([0, 1], 3)
    mine, other = rng.random((2, 20)), rng.random((2, 20))
    race.scores = {FoldRun(trial=0, fold=fold): mine[fold] for fold in range(2)}
    race.scores |= {FoldRun(trial=1, fold=0): other[0], FoldRun(trial=1, fold=1): None}
    gap = mine[0] - other[0]
    assert race.compared(0, 1) == pytest.approx((gap.mean(), gap.std(ddof=1) / math.sqrt(20), 20))
    assert race.compared(0, 9) == (0.0, math.inf, 0)


def raced(mine, other, images=100):
    race = Race([3, 8], 2)
    race.scores = {FoldRun(trial=3, fold=0): scores(mine, images), FoldRun(trial=8, fold=0): scores(other, images)}
    return race


def test_sentence_of_a_race_tells_who_is_ahead_and_by_how_much():
    (line,) = race_sentences(raced(0.9, 0.6), lambda trial: f"m{trial}", "val_accuracy")
    assert line == (
        "Race: m3 against m8 on 100 images that neither was trained on: +30.0 points [21.0, 39.0], ahead."
    )  # 0.3 ± 1.96 · sqrt(0.3 · 0.7 / 99)
    (line,) = race_sentences(raced(0.61, 0.6), str, "val_accuracy")
    assert line.endswith("+1.0 points [-1.0, 3.0], not told apart.")


def test_sentence_of_a_race_by_loss_has_digits_that_tell_losses_apart():
    race = Race([3, 8], 2)
    race.scores = {
        FoldRun(trial=3, fold=0): -np.full(50, 0.41) - 0.001 * np.arange(50),
        FoldRun(trial=8, fold=0): -np.full(50, 0.43) - 0.0011 * np.arange(50),
    }
    (line,) = race_sentences(race, str, "val_loss")
    assert line.endswith(": loss -0.022 [-0.023, -0.022], ahead.")


def test_race_without_rivals_says_nothing():
    assert race_sentences(Race([3], 2), str, "val_accuracy") == []


def epoch(number, accuracy, loss):
    values = dict.fromkeys(("train_loss", *LOSS_PARTS, *SCORES), 0.0)
    return values | {
        **{"epoch": number, "val_accuracy": accuracy, "val_loss": loss},
        **{"lr": 0.1, "seconds": 1.0, "eval_seconds": 1.0},
    }


@pytest.fixture
def searched(tmp_path):
    """A function from (method, accuracies) of completed trials, numbered from 0, to the study's tables."""

    def make(*trials, metric="val_accuracy", losses=None):
        tables = StudyTables(tmp_path, metric)
        for number, (method, accuracies, *fields) in enumerate(trials):
            tables.add(number, TrialConfig(regularizer=method, **(fields[0] if fields else {})), {}, {})
            for position, accuracy in enumerate(accuracies, 1):
                loss = 1 - accuracy if losses is None else losses[number]
                tables.report(
                    number, epoch(position, accuracy, loss) | ({} if metric == "val_loss" else {metric: accuracy})
                )
            tables.finish(number, "completed")
        return tables

    return make


def test_finalists_are_ordered_by_their_last_epoch(searched):
    # Within one standard error of 0.8 on 100 images, 0.04
    tables = searched(("delta", [0.9, 0.78]), ("delta", [0.7, 0.8]), ("delta", [0.7, 0.77]))
    assert finalists(tables, 100) == [1, 0, 2]


def test_favourite_has_the_lowest_loss_of_those_that_validation_cannot_tell_apart(searched):
    tables = searched(
        ("delta", [0.8]), ("delta", [0.77]), ("delta", [0.79]), ("delta", [0.5]), losses=[0.9, 0.7, 0.8, 0.1]
    )
    assert finalists(tables, 100) == [1, 2, 0]


@pytest.mark.parametrize(
    ("metric", "expected"),
    [("val_accuracy", [1, 2, 0]), ("val_macro_f1", [2, 0, 1]), ("val_balanced_accuracy", [2, 0, 1])],
)
def test_loss_of_a_trial_for_other_shares_of_the_classes_tells_nothing_where_all_count_alike(
    searched, metric, expected
):
    weighted = {"class_weights": "balanced"}
    tables = searched(
        *(("delta", [0.8], weighted), ("delta", [0.77]), ("delta", [0.79], weighted)),
        metric=metric,
        losses=[0.9, 0.7, 0.8],
    )
    assert finalists(tables, 100) == expected


def test_first_model_that_is_best_is_the_favourite_whatever_its_loss(searched):
    tables = searched(("linear_probe", [0.8]), ("delta", [0.79]), losses=[0.9, 0.1])
    assert finalists(tables, 100) == [0, 1]


def test_finalists_beyond_one_standard_error_are_left_out(searched):
    tables = searched(("delta", [0.8]), ("delta", [0.77]), ("delta", [0.75]))
    assert finalists(tables, 100) == [0, 1]
    assert finalists(tables, 60) == [0, 1, 2], "0.052 on 60 images"


def test_best_of_plain_l2_is_among_the_finalists_however_far_behind(searched):
    tables = searched(("delta", [0.8]), ("l2", [0.3]), ("l2", [0.4]), ("delta", [0.79]), ("delta", [0.78]))
    assert finalists(tables, 100) == [0, 3, 2]


def test_plain_l2_that_is_best_needs_no_control(searched):
    tables = searched(("l2", [0.8]), ("delta", [0.79]), ("delta", [0.78]), ("l2", [0.77]))
    assert finalists(tables, 100) == [0, 1, 2]


def test_configurations_of_plain_l2_race_where_there_are_no_others(searched):
    assert finalists(searched(("l2", [0.8]), ("l2", [0.79]), ("l2", [0.3])), 100) == [0, 1]


def test_first_model_races_only_if_nothing_is_better(searched):
    assert finalists(searched(("linear_probe", [0.79]), ("delta", [0.8])), 100) == [1]


def test_next_best_race_where_the_metric_is_a_loss(searched):
    tables = searched(
        *(("delta", [0.5]),) * 4,
        metric="val_loss",
        losses=[0.9, 0.5, 0.7, 0.6],
    )
    assert finalists(tables, 100) == [1, 3, 2]


def test_trial_that_was_not_completed_is_no_finalist(searched, no_trials):
    tables = searched(("delta", [0.8]), ("delta", [0.79]))
    tables.trials[0]["state"] = "pruned"
    assert finalists(tables, 100) == [1]
    assert finalists(no_trials, 100) == []


def test_l2_with_terms_of_other_methods_is_no_control(searched):
    tables = searched(("delta", [0.8]), ("l2", [0.3]), ("l2", [0.4]))
    tables.trials[2]["config.contrast"] = 0.5
    assert finalists(tables, 100) == [0, 1]
