"""Starting points from an earlier study."""

from __future__ import annotations

import json

import pytest

from delta_tune.config import TrialConfig, UserError
from delta_tune.results.columns import EPOCH_COLUMNS
from delta_tune.results.layout import STUDY_FILE
from delta_tune.results.tables import StudyTables
from delta_tune.spaces.l2_baseline import ARM, add_l2_baseline
from delta_tune.spaces.space import Space
from delta_tune.spaces.validation import check_space
from delta_tune.spaces.warm_start import add_starting_points, best_configurations


@pytest.fixture
def tables(tmp_path):
    folder = tmp_path / "first"
    folder.mkdir()
    (folder / STUDY_FILE).write_text(json.dumps({"settings": {"metric": "val_accuracy"}}))
    return StudyTables(folder, "val_accuracy")


def add(tables, score, state="completed", helpers=None, **config):
    number = len(tables.trials)
    tables.add(number, TrialConfig(**config), {}, helpers or {})
    tables.report(number, {"epoch": 1, **dict.fromkeys(EPOCH_COLUMNS, 0.5), "val_accuracy": score})
    tables.finish(number, state)


def methods(trial):
    if trial.suggest_categorical("regularizer", ["delta", "l2"]) == "delta":
        trial.suggest_float("alpha", 0.1, 10, log=True)
    trial.suggest_float("lr", 1e-4, 1e-2, log=True)


def checked(function=methods, **attributes):
    return check_space(Space(name="methods", function=function, **attributes), seed=0)


def test_best_configurations_are_the_three_best_of_each_method(tables):
    for score in (0.1, 0.2, 0.3, 0.4):
        add(tables, score, regularizer="l2", lr=score / 100)
    add(tables, 0.35, regularizer="delta", lr=0.002)
    add(tables, 0.9, state="pruned", regularizer="delta", lr=0.003)
    found = best_configurations(str(tables.folder), tables.folder)
    assert [(v["regularizer"], v["lr"]) for v in found] == [
        ("l2", 0.004),
        ("delta", 0.002),
        ("l2", 0.003),
        ("l2", 0.002),
    ]


def test_best_configurations_are_found_by_name(tables, tmp_path):
    add(tables, 0.5, lr=0.002)
    assert best_configurations("first", tmp_path) == best_configurations(str(tables.folder), tmp_path / "elsewhere")


def test_best_configurations_of_a_study_without_a_whole_trial_are_refused(tables, tmp_path):
    add(tables, 0.5, state="pruned")
    with pytest.raises(UserError, match="no completed trial"):
        best_configurations("first", tmp_path)


def test_best_configurations_of_no_study_are_refused(tmp_path):
    with pytest.raises(UserError, match="no study in"):
        best_configurations("missing", tmp_path)


@pytest.mark.parametrize(
    ("start", "own"),
    [
        (({"regularizer": "l2", "lr": 0.003},), {"regularizer": "l2", "lr": 0.003}),
        ((), {"regularizer": "delta", "alpha": 1.0, "lr": TrialConfig().lr}),
    ],
    ids=["START", "library default"],
)
def test_starting_points_come_before_the_space_s_own(tables, tmp_path, start, own):
    add(tables, 0.5, regularizer="delta", alpha=2.0, lr=0.002)
    found = add_starting_points(checked(start=start), best_configurations("first", tmp_path)).points
    assert found == ({"regularizer": "delta", "alpha": 2.0, "lr": 0.002}, own)


def test_starting_point_of_the_earlier_study_that_is_the_space_s_own_is_tried_once(tables, tmp_path):
    add(tables, 0.5, regularizer="l2", lr=0.003)
    start = ({"regularizer": "l2", "lr": 0.001}, {"regularizer": "l2", "lr": 0.003})
    found = add_starting_points(checked(start=start), best_configurations("first", tmp_path)).points
    assert found == (start[1], start[0])


def test_starting_points_survive_study_json(tables, tmp_path):
    add(tables, 0.5, regularizer="delta", alpha=2.0, lr=0.002, helpers={"_kind": "a"})
    found = best_configurations("first", tmp_path)
    assert json.loads(json.dumps(found)) == found


def test_what_the_space_cannot_express_is_said(tables, tmp_path):
    add(tables, 0.5, regularizer="l2", lr=0.05)
    found = add_starting_points(checked(), best_configurations("first", tmp_path))
    assert len(found.points) == 1
    assert found.notes == ("l2 with lr 0.05 of the other study is left out: methods cannot express lr=0.05.",)


def test_fixed_values_hold_against_the_earlier_study(tables, tmp_path):
    add(tables, 0.5, regularizer="delta", alpha=2.0, lr=0.002)
    found = add_starting_points(checked(fixed={"lr": 0.005}), best_configurations("first", tmp_path))
    assert found.points[0] == {"regularizer": "delta", "alpha": 2.0}


def test_plain_l2_of_the_earlier_study_goes_to_its_arm(tables, tmp_path):
    add(tables, 0.5, regularizer="l2", lr=0.002, weight_decay=1e-3)

    def held(trial):
        trial.suggest_float("lr", 1e-4, 1e-2, log=True)
        return {"regularizer": "delta_uniform"}

    both = add_l2_baseline(checked(held), 0)
    assert {ARM: "l2", "lr": 0.002, "weight_decay": 1e-3} in add_starting_points(
        both, best_configurations("first", tmp_path)
    ).points


def test_helpers_of_the_earlier_study_are_followed(tables, tmp_path):
    add(tables, 0.5, regularizer="delta", lr=0.002, helpers={"_kind": "b"})

    def helped(trial):
        trial.suggest_categorical("_kind", ["a", "b"])

    assert {"_kind": "b"} in add_starting_points(checked(helped), best_configurations("first", tmp_path)).points


def with_terms(trial):
    trial.suggest_float("lr", 1e-4, 1e-2, log=True)
    trial.suggest_float("contrast", 0, 1)
    trial.suggest_float("co_tuning", 0, 1)
    trial.suggest_float("weight_decay", 0, 1e-2)
    return {"regularizer": "l2"}


def test_trial_of_an_earlier_version_has_none_of_the_later_terms(tables, tmp_path):
    add(tables, 0.5, regularizer="l2", lr=0.002)
    for name in ("contrast", "co_tuning"):
        del tables.trials[0][f"config.{name}"]
    tables.write()
    first = add_starting_points(checked(with_terms), best_configurations("first", tmp_path)).points[0]
    assert first == {"lr": 0.002, "contrast": 0.0, "co_tuning": 0.0, "weight_decay": 1e-4}


@pytest.mark.parametrize(("method", "terms"), [("l2", (0.0, 1e-4)), ("bi_tuning", (1.0, 1e-4)), ("delta", (0.0, 0.0))])
def test_library_default_has_the_strengths_of_its_method(method, terms):
    (default,) = checked(with_terms, fixed={"regularizer": method}).points
    assert (default["contrast"], default["weight_decay"]) == terms
