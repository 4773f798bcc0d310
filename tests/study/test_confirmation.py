from __future__ import annotations

import dataclasses

import pytest
from ray.tune.search import Searcher

from delta_tune.config import LOSS_PARTS, TrialConfig
from delta_tune.results.columns import SCORES
from delta_tune.results.tables import StudyTables
from delta_tune.search.messages import TrialAssignment, TrialOutcome
from delta_tune.search.planned_runs import PlannedRuns
from delta_tune.study.confirmation import compare_methods, contenders, plan_runs

EPOCHS = 3


def row(epoch, score):
    values = dict.fromkeys(("train_loss", *LOSS_PARTS, *SCORES), 0.0)
    return values | {"epoch": epoch, "val_accuracy": score, "lr": 0.1, "seconds": 1.0, "eval_seconds": 1.0}


def add(tables, method, scores, state="completed", seed=0):
    number = len(tables.trials)
    tables.add(number, TrialConfig(regularizer=method, seed=seed, max_epochs=EPOCHS), {}, {})
    for epoch, score in enumerate(scores, 1):
        tables.report(number, row(epoch, score))
    tables.finish(number, state)
    return number


@pytest.fixture
def tables(tmp_path):
    return StudyTables(tmp_path, "val_accuracy")


def methods(tables):
    return {number: row["config.regularizer"] for number, row in tables.trials.items()}


def test_contenders_are_the_best_of_each_method_and_one_with_far_fewer_trials_is_left_out(tables):
    scores = ("l2", 0.6), ("delta", 0.7), ("l2", 0.8), ("delta", 0.5), ("l2_sp", 0.9), ("l2", 0.4), ("delta", 0.6)
    for method, score in scores:
        add(tables, method, [0.1, score, 0.2])
    chosen, remark = contenders(tables, methods)
    assert chosen == {"l2": 2, "delta": 1}
    assert remark.startswith("Not compared: l2_sp, ")


def test_contenders_are_chosen_among_as_many_trials_of_each_where_the_search_ended_between_turns(tables):
    for number, score in enumerate((0.6, 0.7, 0.5, 0.6, 0.9)):
        add(tables, "delta" if number % 2 == 0 else "l2", [score])
    add(tables, "l2", [0.99], "stopped")
    assert contenders(tables, methods) == ({"delta": 0, "l2": 1}, None)


def test_contenders_of_a_space_beside_plain_l2_are_its_best_and_l2_s(tables):
    add(tables, "delta", [0.5])
    add(tables, "l2", [0.6])
    add(tables, "delta_uniform", [0.7])
    add(tables, "l2", [0.4])
    assert contenders(tables, lambda _: {0: "space", 1: "l2", 2: "space", 3: "l2"}) == (
        {"delta_uniform": 2, "l2": 1},
        None,
    )


@pytest.mark.parametrize(("first", "second", "best"), [(0.7, 0.5, 0), (0.5, 0.7, 1)])
def test_contender_of_two_groups_that_ran_the_same_method_is_the_better_one(tables, first, second, best):
    add(tables, "delta_uniform", [first])
    add(tables, "delta_uniform", [second])
    assert contenders(tables, lambda _: {0: "delta", 1: "delta_uniform"}) == ({"delta_uniform": best}, None)


def test_contenders_were_never_stopped_early(tables):
    add(tables, "l2", [0.9], "pruned")
    add(tables, "delta", [0.1, 0.2, 0.3])
    chosen, remark = contenders(tables, methods)
    assert chosen == {"delta": 1}
    assert "l2" in remark


def test_runs_give_every_method_the_same_fresh_seed_on_the_same_split(tables):
    chosen = {"l2": add(tables, "l2", [0.5] * 3), "delta": add(tables, "delta", [0.5] * 3)}
    runs = plan_runs(tables, chosen, 3, seed=0)
    assert [(run.number, run.repetition, run.config.regularizer) for run in runs] == [
        *((0, 0, "l2"), (1, 0, "delta"), (2, 1, "l2"), (3, 1, "delta"), (4, 2, "l2"), (5, 2, "delta"))
    ]
    seeds = [run.config.seed for run in runs]
    assert seeds[::2] == seeds[1::2]
    assert len({0, *seeds}) == 4, "the study's own seed has been looked at"
    for run in runs:
        assert dataclasses.replace(run.config, seed=0) == tables.config(chosen[run.config.regularizer])


def test_runs_are_handed_out_once_and_in_order(tables):
    planned, asked = plan_runs(tables, {"l2": add(tables, "l2", [0.5] * 3)}, 2, seed=0), []
    runs = [dataclasses.replace(run, task=place) for place, run in enumerate(planned)]
    search = PlannedRuns(runs, "val_accuracy", asked.append)
    first, second = (TrialAssignment.from_config(search.suggest(trial_id)) for trial_id in "ab")
    assert (first.number, first.task, first.gpus) == (0, 0, 0.0)
    assert (second.number, second.task) == (1, 1)
    assert search.suggest("c") == Searcher.FINISHED
    assert asked == runs


@pytest.mark.parametrize(("kind", "gpus"), [("out of memory", 1.0), ("GPU lost", 0.5)])
def test_run_that_lost_its_gpu_or_had_too_little_of_it_comes_again(tables, kind, gpus):
    runs = plan_runs(tables, {"l2": add(tables, "l2", [0.5] * 3)}, 1, seed=0)
    search = PlannedRuns([dataclasses.replace(run, gpus=0.5) for run in runs], "val_accuracy", lambda run: None)
    first = TrialAssignment.from_config(search.suggest("a"))
    assert search.suggest("b") is None, "it may come back"
    search.on_trial_complete("a", TrialOutcome(kind=kind, error="of a test").to_result({"epoch": 1}))
    again = TrialAssignment.from_config(search.suggest("c"))
    assert (again.number, again.task, again.gpus) == (first.number, first.task, gpus)
    search.on_trial_complete("c", {"epoch": 3})
    assert search.suggest("d") == Searcher.FINISHED


def compared(tables, scores, states=()):
    """The verdict on runs with these last scores: method → one for each repetition."""
    chosen = {method: add(tables, method, [0.5] * 3) for method in scores}
    found = StudyTables(tables.folder, "val_accuracy")
    runs = plan_runs(tables, chosen, len(next(iter(scores.values()))), seed=0)
    for run in runs:
        last = scores[run.config.regularizer][run.repetition]
        state = "completed" if run.number not in states else "failed"
        add(found, run.config.regularizer, [0.99, 0.1, last], state, seed=run.config.seed)
    return compare_methods(found, runs, chosen, None, train=80, val=20)


def test_comparison_is_of_the_last_epochs_pair_by_pair(tables):
    found = compared(tables, {"l2": [0.80, 0.82, 0.81], "delta": [0.84, 0.86, 0.85]})
    assert found.scores == {"l2": [0.80, 0.82, 0.81], "delta": [0.84, 0.86, 0.85]}
    assert found.best == "delta"
    (said,) = found.sentences
    assert "delta 85.0 ± 1.0, l2 81.0 ± 1.0: +4.0 [4.0, 4.0], 3 pairs" in said


def test_repetitions_with_a_failed_run_are_left_out_of_all_methods_and_said(tables):
    found = compared(tables, {"l2": [0.80, 0.82, 0.81], "delta": [0.84, 0.86, 0.85]}, states={2})
    assert found.scores == {"l2": [0.80, 0.81], "delta": [0.84, 0.85]}
    assert "1 repetitions are left out" in found.sentences[0]


def test_one_method_alone_has_an_interval_but_no_comparison(tables):
    found = compared(tables, {"delta": [0.84, 0.86, 0.85]})
    assert found.best == "delta"
    assert "no other method" in found.sentences[-1]


def test_too_few_whole_repetitions_compare_nothing(tables):
    assert compared(tables, {"l2": [0.80, 0.82], "delta": [0.84, 0.86]}, states={0}) is None
