"""A study's epochs and trials by its time budget: what is chosen, shortened, kept and said."""

from __future__ import annotations

import dataclasses
import json
import math
from types import SimpleNamespace

import pytest

from delta_tune.config import TrialConfig, UserError
from delta_tune.results.columns import EPOCH_COLUMNS
from delta_tune.search.asha import rung_epochs
from delta_tune.spaces.space import Space
from delta_tune.spaces.validation import check_space
from delta_tune.study import budget_plan
from delta_tune.study.budget_plan import config_to_time, mean_speed, plan_by_budget
from delta_tune.study.plan import budget_lines
from delta_tune.study.schedule import expected_epochs
from delta_tune.study.search_phase import search, time_left
from delta_tune.study.setup import open_study, prepare_study
from delta_tune.training.speed import Speed

SPACE = (
    "def space(trial):\n    trial.suggest_float('lr', 1e-4, 1e-3)\n    return {'regularizer': 'l2', 'batch_size': 4}\n"
)
ONE_SLOT = SimpleNamespace(resources=SimpleNamespace(slots=1), measuring=SimpleNamespace(slots=1))


@pytest.fixture
def settings(image_folder, tiny_weights, tmp_path, monkeypatch):
    """Those of a study with a time budget: train has 36 images, nine steps an epoch."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    (tmp_path / "space.py").write_text(SPACE)
    return {
        **{"data": str(image_folder), "model": "timm:test_resnet", "weights": str(tiny_weights), "image_size": 64},
        **{"out": str(tmp_path / "results"), "name": "s", "verbose": 0, "time_budget": "1h", "final_runs": 0},
        "space": str(tmp_path / "space.py"),
    }


@pytest.fixture
def planned(monkeypatch):
    """A function that prepares and opens a study and plans it where an epoch takes so many seconds."""

    def plan(settings, epoch_seconds):
        study = prepare_study(settings)
        open_study(study)
        speed = Speed(training=epoch_seconds / 36, scoring=0.0)
        monkeypatch.setattr(budget_plan, "time_steps", lambda *args: speed)
        plan_by_budget(study, ONE_SLOT)
        study.save_record()
        return study

    return plan


@pytest.mark.parametrize(
    ("start", "timed"),
    [
        ({"regularizer": "l2", "batch_size": 4}, ("l2", 4)),
        ({"regularizer": "l2_fe", "batch_size": 4}, ("delta_uniform", 16)),
    ],
)
def test_first_starting_point_is_timed_unless_it_leaves_the_network_frozen(start, timed):
    def both(trial):
        trial.suggest_categorical("regularizer", ["l2", "l2_fe", "delta"])
        trial.suggest_categorical("batch_size", [4, 16])

    checked = check_space(Space(name="mine.py", function=both, start=(start,)), 0)
    config = config_to_time(checked)
    assert (config.regularizer, config.batch_size) == timed


def written(study):
    return json.loads((study.folder / "study.json").read_text())["settings"]


def test_epochs_and_trials_are_chosen_and_written_once_they_are(settings, planned):
    before = prepare_study(settings)
    open_study(before)
    assert not {"max_epochs", "grace_period", "num_trials"} & written(before).keys()
    study = planned({**settings, "name": "t"}, 180)
    assert study.config.max_epochs == 4
    assert {proposal.config.max_epochs for proposal in study.checked.drawn} == {4}
    assert study.searcher.suggest("first")["max_epochs"] == 4
    assert study.scheduler.rungs == [1]
    assert study.num_trials is None
    assert (written(study)["max_epochs"], written(study)["grace_period"]) == (4, 1)
    assert "num_trials" not in written(study)


def test_search_goes_on_until_the_time_is_over(settings, planned):
    study = planned(settings, 300)
    assert study.schedule.num_trials < 20
    assert all(isinstance(study.searcher.suggest(str(number)), dict) for number in range(20))


def test_plan_says_what_fits(settings, planned):
    waiting = budget_lines(prepare_study(settings))
    assert waiting == ["Budget    1:00:00 in all; what fits into it is known once a step has been timed"]
    line, why = budget_lines(planned(settings, 180))
    assert line.startswith("Budget    trials of up to 4 epochs until the time is over, about ")
    assert why.strip().endswith("a step takes 20 s and an epoch 3:00, 1 trial at a time.")


@pytest.mark.parametrize(("epoch_seconds", "epochs", "grace"), [(1, 12, 3), (60, 5, 1)])
def test_what_was_asked_for_is_shortened_only_where_it_does_not_fit(settings, planned, epoch_seconds, epochs, grace):
    study = planned({**settings, "max_epochs": 12, "grace_period": 3, "num_trials": 24}, epoch_seconds)
    assert (study.config.max_epochs, study.config.grace_period) == (epochs, grace)
    assert study.num_trials == written(study)["num_trials"] == 24
    shortened = [line for line in budget_lines(study) if "24 trials of up to 12 epochs would take about" in line]
    assert len(shortened) == (epochs < 12)


def test_resumed_study_keeps_its_epochs(settings, planned):
    study = planned({**settings, "max_epochs": 12, "num_trials": 24}, 60)
    study.searcher.suggest("first")
    study.tables.write()
    given = {**settings, "max_epochs": 12, "resume": True}
    again = planned({**given, "time_budget": "9h"}, 0.1)
    assert again.config.max_epochs == study.config.max_epochs < 12
    assert again.schedule is None
    with pytest.raises(UserError, match="was begun with max_epochs 9"):
        prepare_study({**given, "max_epochs": 8})


def test_resumed_study_keeps_time_for_its_end(settings, planned):
    study = planned(settings, 10)
    study.searcher.suggest("first")
    study.tables.write()
    again = planned({**settings, "resume": True}, 10)
    assert (again.budget.end, again.start_seconds) == (study.budget.end, study.start_seconds)
    assert again.budget.end > 0


def test_resumed_study_that_had_no_trial_yet_chooses_again(settings, planned):
    open_study(prepare_study(settings))
    assert planned({**settings, "resume": True}, 300).config.max_epochs == 3


def test_resumed_study_still_has_as_many_trials_as_there_is_time_for(settings, planned):
    study = planned(settings, 10)
    study.searcher.suggest("first")
    study.tables.write()
    assert prepare_study({**settings, "resume": True}).num_trials is None
    assert prepare_study({**settings, "resume": True, "num_trials": 7}).num_trials == 7


def test_reserve_is_said_once_trials_have_shown_what_epochs_take(settings, planned):
    study = planned({**settings, "confirm": 5}, 1)
    left = time_left(study, ONE_SLOT)
    for number, method in enumerate(("linear_probe", "l2")):
        assert "reserved" not in study.record.content
        study.tables.add(number, TrialConfig(regularizer=method), {}, {})
        study.tables.report(number, {"epoch": 1, **dict.fromkeys(EPOCH_COLUMNS, 0.5)} | {"epoch": 1})
        study.tables.finish(number, "completed")
        left()
    assert study.record.content["reserved"]["repetitions"] == 5
    assert study.record.content["reserved"]["confirmation"] > 0


def test_reserve_is_said_again_once_it_is_too_short_for_as_many_seeds(settings, planned):
    study, said = planned({**settings, "confirm": 5}, 1), []
    study.progress.say = said.append
    left = time_left(study, ONE_SLOT)
    study.tables.add(1, TrialConfig(regularizer="l2"), {}, {})
    study.tables.report(1, {**dict.fromkeys(EPOCH_COLUMNS, 0.5), "epoch": 1})
    study.tables.finish(1, "completed")
    for seconds in (0.0, 0.0, 1e6):
        study.record.set_attention(seconds, "")
        left()
    assert ["with 5 of 5 seeds" in sentence for sentence in said] == [True, False]
    assert "too short to train anew" in said[1]


def test_budget_too_short_for_a_trial_leaves_the_choice_to_a_later_session(settings, planned):
    study = planned({**settings, "time_budget": "30s"}, 100)
    assert budget_lines(study)[1].strip() == "That is too short for a trial; a larger --time-budget goes on."
    assert not search(study, None)
    assert not study.tables.searched
    assert not {"max_epochs", "grace_period", "num_trials"} & written(study).keys()
    assert planned({**settings, "resume": True}, 180).config.max_epochs == 4


def test_without_a_time_budget_nothing_is_chosen(settings):
    study = prepare_study({**settings, "time_budget": None})
    epochs = TrialConfig().max_epochs
    assert (study.num_trials, study.config.max_epochs, study.left_open) == (16, epochs, frozenset())
    assert budget_lines(study)[0].startswith(f"Budget    16 trials of up to {epochs} epochs; ")


@pytest.mark.parametrize(
    ("given", "epochs", "grace"),
    [
        *(({"max_steps": 216}, 24, 4), ({"max_steps": 217}, 25, 4), ({"max_steps": 1}, 1, 1)),
        ({"max_steps": 216, "grace_period": 5}, 24, 5),
        ({"max_steps": 216, "grace_period": 20}, 24, 20),
    ],
)
def test_steps_become_epochs_of_the_training_images(settings, given, epochs, grace):
    study = prepare_study({**settings, "time_budget": None, **given})
    open_study(study)
    assert (study.config.max_epochs, study.config.grace_period, study.num_trials) == (epochs, grace, 16)
    assert {proposal.config.max_epochs for proposal in study.checked.drawn} == {epochs}
    assert study.searcher.suggest("first")["max_epochs"] == epochs
    assert study.scheduler.rungs == rung_epochs(epochs, grace, 4)


def test_plan_says_which_steps_the_epochs_are_for(settings):
    study = prepare_study({**settings, "time_budget": None, "max_steps": 80, "confirm": 2})
    assert budget_lines(study)[0].startswith("Budget    16 trials of up to 9 epochs for 80 steps; ASHA asks ")
    assert any("seeds and splits, 9 epochs each" in note for note in study.notes)


def test_steps_and_epochs_exclude_each_other(settings):
    said = r"^--max-steps 50 and --max-epochs 12 exclude each other; give one of them\.$"
    with pytest.raises(UserError, match=said):
        prepare_study({**settings, "max_steps": 50, "max_epochs": 12})


def test_grace_period_longer_than_the_steps_is_refused(settings):
    said = r"^--grace-period 10 is more than the epochs of a full trial, 9 for 80 steps; give a shorter one, "
    with pytest.raises(UserError, match=said):
        prepare_study({**settings, "max_steps": 80, "grace_period": 10})
    assert prepare_study({**settings, "max_steps": 80, "grace_period": 9}).config.grace_period == 9


@pytest.mark.parametrize(
    ("given", "epochs"), [({"max_steps": 423}, 47), ({"max_steps": 9}, 1), ({"max_steps": 108, "num_trials": 24}, 12)]
)
def test_steps_that_fit_into_a_time_budget_are_kept(settings, planned, given, epochs):
    study = planned({**settings, **given}, 1)
    assert study.config.max_epochs == written(study)["max_epochs"] == epochs
    assert f"trials of up to {epochs} epoch{'s' * (epochs > 1)} for {given['max_steps']} st" in budget_lines(study)[0]


def test_steps_that_do_not_fit_into_a_time_budget_are_shortened_as_their_epochs_are(settings, planned):
    study = planned({**settings, "max_steps": 216, "num_trials": 24}, 60)
    epochs = planned({**settings, "max_epochs": 24, "grace_period": 4, "num_trials": 24, "name": "t"}, 60)
    assert study.config.max_epochs == epochs.config.max_epochs < 24
    assert study.config.grace_period == epochs.config.grace_period
    line, *why = budget_lines(study)
    assert f" of up to {epochs.config.max_epochs} epochs instead of 24 for 216 steps; ASHA" in line
    assert any("24 trials of up to 24 epochs would take about" in sentence for sentence in why)


@pytest.mark.parametrize("budget", [None, "1h"])
def test_resumed_study_of_steps_keeps_its_epochs(settings, planned, budget):
    given = {**settings, "max_steps": 216, "num_trials": 24, "time_budget": budget}
    study = planned(given, 60)
    study.searcher.suggest("first")
    study.tables.write()
    for again in ({}, {"max_steps": 216}, {"max_epochs": study.config.max_epochs}):
        config = prepare_study({**settings, **again, "resume": True}).config
        assert (config.max_epochs, config.grace_period) == (study.config.max_epochs, study.config.grace_period)
        assert config.max_steps == 216
    with pytest.raises(UserError, match="was begun with max_steps 216 and cannot be resumed with 217"):
        prepare_study({**given, "max_steps": 217, "resume": True})


def test_study_of_a_version_without_steps_is_resumed_with_its_epochs(settings):
    study = prepare_study({**settings, "time_budget": None, "max_epochs": 5})
    open_study(study)
    file = study.folder / "study.json"
    content = json.loads(file.read_text())
    del content["settings"]["max_steps"]
    file.write_text(json.dumps(content))
    again = prepare_study({**settings, "resume": True})
    assert (again.config.max_epochs, again.config.max_steps) == (5, None)
    with pytest.raises(UserError, match="was begun with max_steps None and cannot be resumed with 50"):
        prepare_study({**settings, "resume": True, "max_steps": 50})


def test_plan_expects_as_many_epochs_as_the_schedule_counts(settings, planned):
    study = planned({**settings, "num_trials": 24, "max_epochs": 12}, 1)
    config = study.config
    expected = expected_epochs(24, config.max_epochs, config.grace_period, config.reduction_factor)
    assert f": about {expected:.0f} epochs instead of 288" in budget_lines(study)[0]


def test_trials_on_frozen_features_do_not_count_in_either(settings, planned, tmp_path):
    (tmp_path / "both.py").write_text(
        SPACE.replace("'l2'", "trial.suggest_categorical('regularizer', ['l2', 'l2_fe'])")
    )
    with (tmp_path / "both.py").open("a") as file:
        file.write("BALANCE = 'regularizer'\n")
    study = planned({**settings, "num_trials": 24, "max_epochs": 12, "space": str(tmp_path / "both.py")}, 1)
    config = study.config
    expected = expected_epochs(12, config.max_epochs, config.grace_period, config.reduction_factor)
    assert f": about {expected:.0f} epochs instead of 288" in budget_lines(study)[0]
    alone = planned({**settings, "num_trials": 12, "max_epochs": 12, "name": "t"}, 60)
    again = planned(
        {**settings, "num_trials": 24, "max_epochs": 12, "space": str(tmp_path / "both.py"), "name": "u"}, 60
    )
    assert again.config.max_epochs == alone.config.max_epochs


def test_plan_of_a_time_budget_names_no_epochs_that_it_may_shorten(settings, planned):
    study = planned({**settings, "max_epochs": 12, "num_trials": 24, "confirm": 5}, 60)
    assert study.config.max_epochs < 12
    assert not any("12 epochs" in note for note in study.notes)


def test_busy_machine_has_more_time_kept_for_its_end(settings, planned, monkeypatch):
    study = planned(settings, 10)
    quiet = study.budget.end
    monkeypatch.setattr(budget_plan, "time_steps", lambda *args: Speed(training=0.1, scoring=0.2, waiting=3.0))
    budget_plan.choose_by_budget(study, ONE_SLOT)
    assert study.budget.end == pytest.approx(3 * quiet + 15 * 0.2)


def test_end_has_time_for_the_validation_pass_where_there_is_no_test_split(settings, planned, monkeypatch):
    study = planned(settings, 10)
    quiet, val = study.budget.end, len(study.first_task.dataset.val)
    study.first_task.dataset = dataclasses.replace(study.first_task.dataset, test=None)
    two_slots = SimpleNamespace(resources=SimpleNamespace(slots=2), measuring=SimpleNamespace(slots=1))
    monkeypatch.setattr(budget_plan, "time_steps", lambda *args: Speed(training=0.1, scoring=2.0))
    budget_plan.choose_by_budget(study, two_slots)
    assert study.budget.end == pytest.approx(quiet + val * 2.0), "one process computes it"


FIVE = {"final_runs": 5}


@pytest.mark.parametrize(("members", "passes"), [(1, 6), (2, 7), (4, 3), (5, 0)])
def test_end_has_time_for_the_check_of_means_and_for_each_network(settings, planned, monkeypatch, members, passes):
    study = planned(settings | FIVE | {"members": members}, 10)
    quiet, data = study.budget.end, study.first_task.dataset
    monkeypatch.setattr(budget_plan, "time_steps", lambda *args: Speed(training=0.1, scoring=0.2))
    budget_plan.choose_by_budget(study, ONE_SLOT)
    scored = members * len(data.test) + passes * (len(data.train) + len(data.val))
    assert study.budget.end == pytest.approx(quiet + 0.2 * scored), "each mean of several is compared with them"


def test_plan_counts_what_final_runs_measure(settings, planned):
    study, found = planned(settings | FIVE, 1), {}
    speed = Speed(training=0.1, scoring=1.0)
    for start in ("random", "probe"):
        head_start(study, start)
        found[start] = budget_plan.means_of(study, ONE_SLOT, speed).measuring
    assert found == {"random": 0.0, "probe": pytest.approx(2 * 54)}, "two runs at least, one at a time"


def test_final_runs_that_do_not_fit_are_left_out_at_the_start(settings, planned):
    assert planned(settings | FIVE, 1).trains_final
    study = planned(settings | FIVE | {"name": "t"}, 900)
    assert not study.trains_final
    assert any("too short to train anew" in line for line in budget_lines(study))


def test_search_leaves_time_for_final_runs_and_says_so_once(settings, planned):
    study, said = planned(settings | FIVE, 1), []
    study.progress.say = said.append
    left = time_left(study, ONE_SLOT)
    study.tables.add(1, TrialConfig(regularizer="l2"), {}, {})
    study.tables.report(1, dict.fromkeys(EPOCH_COLUMNS, 0.5) | {"epoch": 1, "seconds": 0.9, "eval_seconds": 0.1})
    study.tables.finish(1, "completed")
    one_pass = 54 * 0.1 / 18  # before each run, for its head
    final = 5 * (study.config.max_epochs * 1.0 * 0.9 * 54 / 36 + one_pass)
    assert left() == pytest.approx(study.budget.left - final, abs=0.5)
    left()
    assert len(said) == 1
    assert said[0].endswith("are kept for 5 final runs.")
    assert study.record.content["reserved"]["runs"] == 5


def test_final_runs_take_at_most_half_of_the_time_budget(settings, planned):
    study = planned(settings | FIVE, 1)
    study.progress.say = lambda text: None
    study.tables.add(1, TrialConfig(regularizer="l2"), {}, {})
    seconds = 3600 / 2 / (study.config.max_epochs * 0.9 * 1.5) / 3.5  # of an epoch: half of the budget holds 3.5 runs
    study.tables.report(1, dict.fromkeys(EPOCH_COLUMNS, 0.5) | {"epoch": 1, "seconds": seconds, "eval_seconds": 0.0})
    study.tables.finish(1, "completed")
    left = time_left(study, ONE_SLOT)()
    assert study.record.content["reserved"]["runs"] == 3
    assert left == pytest.approx(study.budget.left - 1800 * 3 / 3.5, abs=1)


def head_start(study, start):
    """Make the configurations of the study begin with this head."""
    drawn = [
        dataclasses.replace(p, config=dataclasses.replace(p.config, head_start=start)) for p in study.checked.drawn
    ]
    study.checked = dataclasses.replace(study.checked, drawn=drawn)


def test_reserve_has_the_passes_over_fresh_splits_that_a_fitted_head_needs(settings, planned):
    study, kept = planned({**settings, "confirm": 5}, 1), {}
    study.tables.add(1, TrialConfig(regularizer="l2"), {}, {})
    study.tables.report(1, {**dict.fromkeys(EPOCH_COLUMNS, 0.5), "epoch": 1, "eval_seconds": 2.0})
    for start in ("random", "probe"):
        head_start(study, start)
        kept[start] = study.reserve(math.inf, ONE_SLOT)
    dataset = study.first_task.dataset
    one_pass = 2.0 / len(dataset.val) * (len(dataset.train) + len(dataset.val))
    assert kept["probe"].confirmation == pytest.approx(kept["random"].confirmation + 5 * one_pass)
    assert kept["probe"].final == pytest.approx(kept["random"].final + one_pass)


def test_plan_leaves_time_for_these_passes(settings, planned):
    study, found = planned({**settings, "confirm": 5}, 1), {}
    speed = Speed(training=0.1, scoring=1.0)
    for start in ("random", "probe"):
        head_start(study, start)
        found[start] = budget_plan.means_of(study, ONE_SLOT, speed).measuring
    dataset = study.first_task.dataset
    assert found == {"random": 0.0, "probe": pytest.approx(3 * (len(dataset.train) + len(dataset.val)))}


def test_confirmation_that_does_not_fit_is_left_out_at_the_start(settings, planned):
    study = planned({**settings, "confirm": 5}, 900)
    assert not study.confirms
    assert any("too short to train anew" in line for line in budget_lines(study))
    assert planned({**settings, "confirm": 5, "name": "t"}, 1).confirms


def test_study_of_two_networks_is_planned_with_their_mean_and_ends_with_the_slower_scoring():
    speeds = [Speed(training=1.0, scoring=0.5, waiting=1.0), Speed(training=3.0, scoring=0.2, waiting=2.0)]
    assert mean_speed(speeds) == Speed(training=2.0, scoring=0.5, waiting=2.0)
