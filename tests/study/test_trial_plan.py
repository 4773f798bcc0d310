"""Which trials a study is to have."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from delta_tune.config import StudyConfig, TrialConfig, UserError
from delta_tune.study.trial_plan import plan_trials

SPACE = """
def space(trial):
    trial.suggest_float("lr", 1e-4, 1e-2, log=True)
    return {"regularizer": "l2"}

START = [{"lr": 0.001}, {"lr": 0.002}]
"""


@pytest.mark.parametrize(("sampler", "rates"), [("grid", [0.001, 0.002]), ("random", [0.004, 0.001, 0.002])])
def test_grid_runs_start_alone_and_others_begin_with_the_earlier_study(tmp_path, sampler, rates):
    (tmp_path / "space.py").write_text(SPACE)
    config = StudyConfig(space=str(tmp_path / "space.py"), sampler=sampler, start_from="first", num_trials=9)
    record = SimpleNamespace(trial_defaults=TrialConfig(), start_from=[{"regularizer": "l2", "lr": 0.004}])
    plan = plan_trials(config, record)
    assert [point["lr"] for point in plan.checked.points] == rates
    assert plan.num_trials == (2 if sampler == "grid" else 9)
    assert any("without --start-from" in note for note in plan.notes) == (sampler == "grid")


def test_plan_says_that_l2_with_terms_alone_is_no_plain_l2(tmp_path):
    (tmp_path / "space.py").write_text(SPACE.replace('"l2"}', '"l2", "contrast": 0.5}'))
    config = StudyConfig(space=str(tmp_path / "space.py"), num_trials=9, confirm=2)
    plan = plan_trials(config, SimpleNamespace(trial_defaults=TrialConfig(), start_from=None))
    assert plan.num_trials == 9
    assert "space.py has L2 with contrast or co_tuning alone: no plain L2 is compared." in plan.notes


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"train_per_class": 6}, "with --train-per-class nothing is trained anew"),
        ({"train_fraction": 0.5}, "with --train-fraction nothing is trained anew"),
        ({}, "Then the best configuration 5 times on nine tenths"),
        ({"train_per_class": 6, "final_runs": 0}, None),
    ],
)
def test_plan_says_what_becomes_of_the_final_runs(settings, told):
    plan = plan_trials(
        StudyConfig(num_trials=9, **settings), SimpleNamespace(trial_defaults=TrialConfig(), start_from=None)
    )
    found = [note for note in plan.notes if "trained anew" in note or "nine tenths" in note]
    assert [told in note for note in found] == ([] if told is None else [True])


METHODS = """
def space(trial):
    trial.suggest_categorical("regularizer", ["l2", "l2_sp", "l2_fe"])

BALANCE = "regularizer"
"""


def plan_of_two(tmp_path, text, record=None, **settings):
    (tmp_path / "space.py").write_text(text)
    config = StudyConfig(space=str(tmp_path / "space.py"), **settings)
    record = record or SimpleNamespace(trial_defaults=TrialConfig(), start_from=None)
    return plan_trials(config, record, spaces=dict.fromkeys(("a", "b"), config.space))


def test_two_networks_get_as_many_trials(tmp_path):
    assert plan_of_two(tmp_path, SPACE, num_trials=8).num_trials == 8
    plan = plan_of_two(tmp_path, SPACE, num_trials=7)
    assert plan.num_trials == 6
    assert any(note.startswith("6 trials of the 7: 3 for each backbone, so that they compare") for note in plan.notes)
    assert [point["backbone"] for point in plan.checked.points] == ["a", "b", "a", "b"]


def test_two_networks_get_as_many_trials_of_each_balanced_method(tmp_path):
    assert plan_of_two(tmp_path, METHODS, num_trials=14).num_trials == 12
    with pytest.raises(UserError, match="less than the 6 choices of backbone and regularizer"):
        plan_of_two(tmp_path, METHODS, num_trials=5)


def test_plain_l2_is_added_for_each_of_two_networks(tmp_path):
    plan = plan_of_two(tmp_path, SPACE.replace('"l2"', '"delta_uniform"'), num_trials=4, confirm=2)
    assert plan.num_trials == 8
    assert {"2 further trials" in note for note in plan.notes if "no plain L2" in note} == {True}


def test_space_that_names_the_network_is_taken_as_it_is(tmp_path):
    own = SPACE.replace("    return", '    trial.suggest_categorical("backbone", ["b", "a"])\n    return')
    assert plan_of_two(tmp_path, own, num_trials=7).num_trials == 7
    fixed = plan_of_two(tmp_path, SPACE, num_trials=7, set={"backbone": "b"})
    assert not fixed.checked.inner
    assert {config.backbone for config in fixed.checked.configs} == {"b"}


def test_each_network_begins_with_what_it_had_in_the_earlier_study(tmp_path):
    found = [
        {"regularizer": "l2", "lr": 0.004, "backbone": "b"},
        {"regularizer": "l2", "lr": 0.005},
        {"regularizer": "l2", "lr": 0.006, "backbone": "another"},
    ]
    record = SimpleNamespace(trial_defaults=TrialConfig(), start_from=found)
    plan = plan_of_two(tmp_path, SPACE, record, start_from="first")
    rates = {label: [p["lr"] for p in plan.checked.points if p["backbone"] == label] for label in ("a", "b")}
    assert rates == {"a": [0.005, 0.006, 0.001, 0.002], "b": [0.004, 0.005, 0.006, 0.001, 0.002]}
