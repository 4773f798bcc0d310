from __future__ import annotations

import json

import numpy as np
import pytest
from helpers.studies import DISTRIBUTIONS, add_trial
from optuna.distributions import CategoricalDistribution
from optuna.trial import TrialState

from delta_tune.report import hyperparameter_figures


def test_pairs_place_each_trial_once_by_its_own_hyperparameters(forty_trials):
    drawn = hyperparameter_figures.pairs(forty_trials, DISTRIBUTIONS)
    shown = [point for trace in drawn.data for point in zip(trace.x, trace.y, strict=True)]
    expected = [(forty_trials.params(n).get("alpha"), forty_trials.params(n)["lr"]) for n in forty_trials.trials]
    assert sorted(map(str, shown)) == sorted(map(str, expected))


def test_pairs_menus_hold_every_hyperparameter_for_both_axes(forty_trials):
    for axis, menu in zip(
        "yx", hyperparameter_figures.pairs(forty_trials, DISTRIBUTIONS).layout.updatemenus, strict=True
    ):
        assert [button.label for button in menu.buttons] == [f"{axis}: {name}" for name in DISTRIBUTIONS]
        sizes = {tuple(len(values) for values in button.args[0][axis]) for button in menu.buttons}
        assert len(sizes) == 1


def test_optuna_study_has_each_trial_as_it_ended(forty_trials):
    study = hyperparameter_figures.optuna_study(forty_trials, DISTRIBUTIONS)
    for trial, (number, row) in zip(study.trials, forty_trials.trials.items(), strict=True):
        expected = {"completed": TrialState.COMPLETE, "pruned": TrialState.PRUNED}.get(row["state"], TrialState.FAIL)
        assert trial.state == expected
        assert trial.params == forty_trials.params(number)
        assert trial.intermediate_values == {r["epoch"]: r["val_accuracy"] for r in forty_trials.epochs[number]}
    assert study.best_value == max(r["val_accuracy"] for r in forty_trials.epochs[forty_trials.leader])


def test_optuna_study_takes_a_value_outside_the_range_that_stands_for_all(no_trials):
    add_trial(no_trials, 0, "completed", lr=0.5)
    assert hyperparameter_figures.optuna_study(no_trials, DISTRIBUTIONS).trials[0].params["lr"] == 0.5


@pytest.mark.parametrize("thorough", [False, True])
def test_importances_find_the_hyperparameter_that_decides(no_trials, thorough):
    """Of trials of one method, whose scores their learning rates alone decide."""
    rng = np.random.default_rng(0)
    for number in range(60):
        add_trial(no_trials, number, "completed", lr=10 ** rng.uniform(-4, -1), alpha=10 ** rng.uniform(-2, 1))
    drawn = hyperparameter_figures.importances(no_trials, DISTRIBUTIONS, thorough=thorough)
    assert [trace.name for trace in drawn.data] == ["PED-ANOVA", "fANOVA"][: 1 + thorough]
    for trace in drawn.data:
        share = dict(zip(trace.y, trace.x, strict=True))
        assert share.keys() == {"lr", "alpha"}
        assert share["lr"] > 3 * share["alpha"]


def test_importances_are_not_shown_of_a_few_trials(no_trials):
    for number in range(hyperparameter_figures.MIN_TRIALS - 1):
        add_trial(no_trials, number, "completed", lr=10 ** -(1 + number / 5), alpha=1 + number)
    assert hyperparameter_figures.importances(no_trials, DISTRIBUTIONS, thorough=False) is None


def test_parallel_has_a_line_for_each_trial_of_the_best_method_through_its_values(forty_trials):
    drawn = hyperparameter_figures.parallel(forty_trials, DISTRIBUTIONS)
    method = forty_trials.trials[forty_trials.leader]["config.regularizer"]
    numbers = forty_trials.ranked(method)
    lr = np.log([forty_trials.params(n)["lr"] for n in numbers])
    score = np.array([forty_trials.best_row(n)["val_accuracy"] for n in numbers])
    for trace in drawn.data:
        row = numbers.index(int(trace.name.removeprefix("trial ")))
        heights = dict(zip(trace.x, trace.y, strict=True))
        assert heights["lr"] == pytest.approx((lr[row] - lr.min()) / (lr.max() - lr.min()))
        assert heights["val_accuracy"] == pytest.approx((score[row] - score.min()) / (score.max() - score.min()))
    assert len(drawn.data) == len(numbers)


def test_parallel_shows_choices_by_name(no_trials):
    for number, size in enumerate((16, 32, 16)):
        add_trial(no_trials, number, "completed")
        no_trials.trials[number]["suggested"] = json.dumps({"batch_size": size})
    drawn = hyperparameter_figures.parallel(no_trials, {"batch_size": CategoricalDistribution([16, 32])})
    said = {(note.x, note.y): note.text for note in drawn.layout.annotations}
    assert (said["batch_size", 0], said["batch_size", 1]) == ("16", "32")


def test_pairs_name_a_choice_of_none_and_leave_out_a_trial_without_the_hyperparameter(no_trials):
    for number, suggested in enumerate(({"drop_path": None}, {"drop_path": 0.1}, {})):
        add_trial(no_trials, number, "completed")
        no_trials.trials[number]["suggested"] = json.dumps(suggested)
    drawn = hyperparameter_figures.pairs(no_trials, {"drop_path": CategoricalDistribution([None, 0.1])})
    assert drawn.data[0].x == ("None", 0.1, None)
