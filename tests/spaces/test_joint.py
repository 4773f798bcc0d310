"""The search spaces of several networks as one: turns, starting points, rungs, and what samplers see."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from delta_tune.config import TrialConfig
from delta_tune.results.tables import StudyTables
from delta_tune.search.optuna_search import OptunaSearcher
from delta_tune.search.samplers import space_for
from delta_tune.spaces.joint import balanced, chooses_backbone, join_spaces
from delta_tune.spaces.l2_baseline import (
    ARM,
    add_l2_baseline,
    compared,
    comparison_groups,
    rung_groups,
    turn_of,
)
from delta_tune.spaces.space import Space
from delta_tune.spaces.validation import check_space, random_answers


def of_methods(trial):
    regularizer = trial.suggest_categorical("regularizer", ["l2", "delta"])
    trial.suggest_float("lr", 1e-4, 1e-2, log=True)
    if regularizer == "delta":
        trial.suggest_float("alpha", 0.1, 10, log=True)


def of_adamw(trial):
    trial.suggest_float("lr", 1e-5, 1e-4, log=True)
    trial.suggest_float("layer_decay", 0.6, 1.0)
    return {"regularizer": "l2", "optimizer": "adamw"}


def space(function=of_methods, name="mine.py", **more):
    return check_space(Space(name=name, function=function, source=f"text of {name}", **more), seed=0)


def joint(**more):
    return join_spaces({"a": space(**more), "b": space(**more)})


def proposed(search, count):
    """The configurations of the first `count` trials."""
    found = {}
    search._on_proposal = lambda number, proposal: found.setdefault(number, proposal)
    for number in range(count):
        search.suggest(f"t{number}")
        search.on_trial_complete(f"t{number}", {"epoch": 4, "val_accuracy": 0.5})
    return [found[number] for number in range(count)]


def searcher(checked, num_trials=12, sampler="random"):
    return OptunaSearcher(
        checked,
        metric="val_accuracy",
        sampler=sampler,
        seed=0,
        max_epochs=4,
        num_trials=num_trials,
        on_proposal=lambda number, proposal: None,
        backbones=("a", "b"),
    )


def test_network_is_suggested_first_and_its_own_space_follows():
    both = join_spaces({"a": space(), "b": space(of_adamw, "adamw.py")})
    for label, optimizer, names in (("a", "sgd", {"regularizer", "lr"}), ("b", "adamw", {"lr", "layer_decay"})):
        proposal = both.space.with_fixed(backbone=label).propose(random_answers(np.random.default_rng(0)))
        assert (proposal.config.backbone, proposal.config.optimizer) == (label, optimizer)
        assert names <= proposal.params.keys() <= {*names, "alpha"}
    drawn = both.space.propose(random_answers(np.random.default_rng(0)))
    assert next(iter(drawn.params)) == "backbone"
    assert both.space.name == "mine.py, adamw.py"
    assert both.space.source == "text of mine.py\ntext of adamw.py"


def test_space_that_serves_all_networks_is_told_once():
    assert (joint().space.name, joint().space.source) == ("mine.py", "text of mine.py")


def test_what_is_fixed_for_one_network_is_not_for_the_other():
    both = join_spaces({"a": space(fixed={"lr": 0.001, "beta": 0.5}), "b": space()})
    a, b = (
        both.space.with_fixed(backbone=label).propose(random_answers(np.random.default_rng(0))) for label in ("a", "b")
    )
    assert (a.config.lr, a.config.beta) == (0.001, 0.5)
    assert "lr" not in a.params
    assert b.config.lr != 0.001
    assert b.config.beta == TrialConfig().beta


def test_starting_points_of_the_networks_take_turns():
    points = ({"regularizer": "l2", "lr": 0.001}, {"regularizer": "delta", "lr": 0.002, "alpha": 1.0})
    both = join_spaces({"a": space(start=points), "b": space(start=points[:1])})
    assert [(p["backbone"], p["lr"]) for p in both.points] == [("a", 0.001), ("b", 0.001), ("a", 0.002)]
    configs = [each.config for each in proposed(searcher(both), 4)]
    assert [(c.backbone, c.regularizer) for c in configs[:3]] == [("a", "l2"), ("b", "l2"), ("a", "delta")]


def test_networks_take_turns_and_within_them_what_the_space_balances():
    configs = [each.config for each in proposed(searcher(joint(balance="regularizer")), 8)]
    assert [c.backbone for c in configs] == ["a", "b"] * 4
    for label in ("a", "b"):
        methods = [c.regularizer for c in configs if c.backbone == label]
        assert sorted(methods[:2]) == sorted(methods[2:]) == ["delta", "l2"]


def test_networks_have_as_many_trials_where_one_of_them_balances_more():
    uneven = join_spaces({"a": space(balance="regularizer"), "b": space(of_adamw, "adamw.py")})
    configs = [each.config for each in proposed(searcher(uneven), 8)]
    assert [c.backbone for c in configs] == ["a", "b"] * 4
    assert sorted(c.regularizer for c in configs if c.backbone == "a") == ["delta", "delta", "l2", "l2"]


def test_trial_runs_on_the_task_of_its_network():
    search = searcher(joint())
    assert [search.suggest(str(number))["task"] for number in range(4)] == [0, 1, 0, 1]


def test_each_network_has_an_optuna_study_without_parameters_of_the_other():
    search = searcher(join_spaces({"a": space(), "b": space(of_adamw, "adamw.py")}), sampler="tpe")
    proposed(search, 8)
    names = {
        choice: {name for trial in study.trials for name in trial.distributions}
        for choice, study in search.studies.items()
    }
    assert names[("a", None)] <= {"regularizer", "lr", "alpha"}
    assert names[("b", None)] == {"lr", "layer_decay"}
    assert all(len(study.trials) == 4 for study in search.studies.values())


def test_grid_takes_the_points_in_their_order_and_networks_take_no_turns():
    checked = joint(start=({"regularizer": "l2", "lr": 0.001}, {"regularizer": "delta", "lr": 0.002, "alpha": 1.0}))
    assert space_for("grid", checked).turns == {None: {}}
    search = searcher(checked, num_trials=4, sampler="grid")
    configs = [each.config for each in proposed(search, 4)]
    assert [(c.backbone, c.lr) for c in configs] == [("a", 0.001), ("b", 0.001), ("a", 0.002), ("b", 0.002)]


def test_rungs_are_of_one_network_and_within_it_as_without_others():
    a, b = (TrialConfig(regularizer="l2", backbone=label) for label in ("a", "b"))
    delta = dataclasses.replace(a, regularizer="delta")
    shared, apart = rung_groups(joint()), rung_groups(joint(balance="regularizer"))
    assert shared(a) == shared(delta) != shared(b)
    assert len({apart(a), apart(delta), apart(b)}) == 3
    with_arms = rung_groups(join_spaces({label: add_l2_baseline(space(of_delta), 0) for label in ("a", "b")}))
    assert with_arms(a) != with_arms(delta) == with_arms(dataclasses.replace(delta, regularizer="delta_uniform"))
    assert with_arms(a) != with_arms(b)


def test_rungs_are_of_one_network_where_the_users_space_chooses_it():
    def own(trial):
        trial.suggest_categorical("backbone", ["a", "b"])
        trial.suggest_float("lr", 1e-4, 1e-2)
        return {"regularizer": "l2"}

    checked = space(own)
    assert chooses_backbone(checked)
    a, b = (TrialConfig(regularizer="l2", backbone=label) for label in ("a", "b"))
    assert rung_groups(checked)(a) != rung_groups(checked)(b)


def of_delta(trial):
    trial.suggest_float("lr", 1e-4, 1e-2, log=True)
    return {"regularizer": trial.suggest_categorical("regularizer", ["delta", "delta_uniform"])}


def test_plain_l2_is_searched_beside_the_space_with_each_network():
    both = join_spaces({label: add_l2_baseline(space(of_delta), 0) for label in ("a", "b")})
    assert [each.config.backbone for each in proposed(searcher(both), 8)] == ["a", "b"] * 4
    methods = [(p.config.backbone, p.config.regularizer == "l2") for p in proposed(searcher(both), 8)]
    assert all(methods.count((label, plain)) == 2 for label in ("a", "b") for plain in (True, False))
    assert compared(both) == ("space", "l2")
    assert balanced(both) == f"backbone and {ARM}"


def test_confirmation_groups_methods_whatever_their_network(tmp_path):
    tables = StudyTables(tmp_path, "val_accuracy")
    for number, (label, method) in enumerate([("a", "l2"), ("b", "l2"), ("a", "delta"), ("b", "delta_uniform")]):
        tables.add(number, TrialConfig(regularizer=method, backbone=label), {}, {})
    assert comparison_groups(joint())(tables) == {0: "l2", 1: "l2", 2: "delta", 3: "delta_uniform"}
    arms = join_spaces({label: add_l2_baseline(space(of_delta), 0) for label in ("a", "b")})
    assert comparison_groups(arms)(tables) == {0: "l2", 1: "l2", 2: "space", 3: "space"}
    assert [turn_of(arms, tables, number) for number in (0, 3)] == [("a", "l2"), ("b", "space")]


def test_resumed_search_proposes_what_the_whole_one_does():
    checked = joint(balance="regularizer")
    whole = [p.config for p in proposed(searcher(checked), 12)]
    first = proposed(searcher(checked), 5)
    resumed = searcher(checked)
    values = dict.fromkeys((4,), 0.5)
    resumed.restore_trials([(number, p.params, "completed", values) for number, p in enumerate(first)], [])
    found = {}
    resumed._on_proposal = lambda number, proposal: found.setdefault(number, proposal.config)
    for number in range(5, 12):
        resumed.suggest(f"t{number}")
        resumed.on_trial_complete(f"t{number}", {"epoch": 4, "val_accuracy": 0.5})
    assert [found[number] for number in range(5, 12)] == whole[5:]


@pytest.mark.parametrize(("label", "default", "count"), [("a", True, 2), ("b", False, 1)])
def test_trials_that_name_no_network_are_of_the_first(label, default, count):
    def own(trial):
        named = trial.suggest_categorical("_named", [0, 1, 2])
        return {"regularizer": "l2", **({} if named == 0 else {"backbone": "ab"[named - 1]})}

    kept = space(own).only(label, default=default)
    assert {config.backbone for config in kept.configs} == ({label, None} if default else {label})
    assert len({config.backbone for config in kept.configs}) == count
