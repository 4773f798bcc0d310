"""Plain L2 beside a space that lacks it."""

from __future__ import annotations

import numpy as np
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution

from delta_tune.config import TrialConfig
from delta_tune.results.tables import StudyTables
from delta_tune.search.optuna_search import OptunaSearcher
from delta_tune.spaces.l2_baseline import (
    ARM,
    add_l2_baseline,
    arm_of,
    comparison_groups,
    lacks_l2_baseline,
    rung_groups,
)
from delta_tune.spaces.space import Space
from delta_tune.spaces.validation import check_space, random_answers


def held(trial):
    method = trial.suggest_categorical("regularizer", ["delta", "delta_uniform"])
    trial.suggest_float("lr", 1e-3, 1e-1, log=True)
    trial.suggest_float("alpha", 0.1, 10, log=True)
    if method == "delta":
        trial.suggest_float("attention_temperature", 1, 10)
    return {"batch_norm": "train", "batch_size": 16}


def checked(**attributes):
    return check_space(Space(name="held", function=held, **attributes), seed=0)


def configs(both):
    rng = np.random.default_rng(3)
    proposals = [both.space.propose(random_answers(rng)) for _ in range(60)]
    return [(p.helpers[ARM], p.config) for p in proposals]


def test_lacks_plain_l2_looks_at_every_branch():
    assert lacks_l2_baseline(checked())
    some = Space(name="some", function=lambda t: {"regularizer": t.suggest_categorical("_m", ["delta", "l2"])})
    assert not lacks_l2_baseline(check_space(some, seed=0))


def test_arms_are_the_space_and_plain_l2():
    found = configs(add_l2_baseline(checked(), 0))
    assert {(arm, config.regularizer) for arm, config in found} == {
        ("space", "delta"),
        ("space", "delta_uniform"),
        ("l2", "l2"),
    }


def test_plain_l2_keeps_what_the_space_keeps_constant():
    plain = [config for arm, config in configs(add_l2_baseline(checked(), 0)) if arm == "l2"]
    assert {(c.batch_norm, c.batch_size) for c in plain} == {("train", 16)}


def test_plain_l2_is_searched_over_the_space_s_own_ranges_and_its_weight_decay():
    plain = next(p for p in add_l2_baseline(checked(), 0).drawn if p.config.regularizer == "l2")
    assert plain.distributions == {
        ARM: CategoricalDistribution(("space", "l2")),
        "lr": FloatDistribution(1e-3, 1e-1, log=True),
        "weight_decay": FloatDistribution(1e-5, 1e-2, log=True),
    }


@pytest.mark.parametrize("balance", [None, "regularizer"])
@pytest.mark.parametrize("by", ["space", "user"])
def test_terms_of_other_methods_are_not_plain_l2s(balance, by):
    def function(trial):
        trial.suggest_categorical("regularizer", ["delta", "bi_tuning"])
        trial.suggest_float("contrast", 0.1, 1.0)
        return {"co_tuning": 0.5} if by == "space" else {}

    fixed = {} if by == "space" else {"co_tuning": 0.5, "contrast": 0.3}
    both = add_l2_baseline(check_space(Space(name="own", function=function, fixed=fixed, balance=balance), seed=0), 0)
    plain, others = ([c for arm, c in configs(both) if (arm == "l2") == is_plain] for is_plain in (True, False))
    assert {(c.effective_co_tuning, c.effective_contrast) for c in plain} == {(0.0, 0.0)}
    assert {c.co_tuning for c in others} == {0.5}
    assert all(c.contrast >= 0.1 for c in others)


def test_fixed_values_hold_for_both_arms_but_the_method_for_the_space_alone():
    found = configs(add_l2_baseline(checked(fixed={"regularizer": "delta", "lr": 0.02}), 0))
    assert {(arm, c.regularizer, c.lr) for arm, c in found} == {("space", "delta", 0.02), ("l2", "l2", 0.02)}


def test_balanced_methods_get_plain_l2_as_one_more():
    both = add_l2_baseline(checked(balance="regularizer"), 0)
    assert both.choices == ("delta", "delta_uniform", "l2")
    assert all(arm == config.regularizer for arm, config in configs(both))


@pytest.mark.parametrize("balance", [None, "regularizer"])
def test_starting_points_stay_and_plain_l2_begins_with_its_recipe(balance):
    start = ({"regularizer": "delta_uniform", "lr": 0.005},)
    both = add_l2_baseline(checked(balance=balance, start=start), 0)
    uniform = {ARM: "delta_uniform"} if balance else {ARM: "space", "regularizer": "delta_uniform"}
    assert both.points == ({"lr": 0.005, **uniform}, {ARM: "l2", "lr": 0.001, "weight_decay": 1e-4})


@pytest.mark.parametrize("balance", [None, "regularizer"])
def test_library_default_stays_where_the_space_has_no_starting_points(balance):
    both = add_l2_baseline(checked(balance=balance, base=TrialConfig(batch_norm="train", lr=0.004)), 0)
    default, plain = both.points
    assert (default[ARM], default["lr"]) == ("delta" if balance else "space", 0.004)
    assert plain[ARM] == "l2"


def test_groups_are_the_arms_or_the_methods(tmp_path):
    tables = StudyTables(tmp_path, "val_accuracy")
    for number, method in enumerate(["delta", "delta_uniform", "l2"]):
        tables.add(number, TrialConfig(regularizer=method), {}, {})
    assert comparison_groups(add_l2_baseline(checked(), 0))(tables) == {0: "space", 1: "space", 2: "l2"}
    assert comparison_groups(checked())(tables) == {0: "delta", 1: "delta_uniform", 2: "l2"}
    by_method = add_l2_baseline(checked(balance="regularizer"), 0)
    assert comparison_groups(by_method)(tables) == {0: "delta", 1: "delta_uniform", 2: "l2"}


def test_group_of_a_trial_that_ran_without_its_attention_is_that_of_the_method_that_was_searched(tmp_path):
    tables = StudyTables(tmp_path, "val_accuracy")
    tables.add(1, TrialConfig(regularizer="delta_uniform"), {"regularizer": "delta"}, {})
    tables.add(2, TrialConfig(regularizer="delta_uniform"), {}, {})
    for by_method in (checked(balance="regularizer"), add_l2_baseline(checked(balance="regularizer"), 0)):
        assert comparison_groups(by_method)(tables) == {1: "delta", 2: "delta_uniform"}


def test_rungs_are_shared_within_what_has_a_budget_of_its_own():
    methods = ("delta", "delta_uniform", "l2")
    configs = [TrialConfig(regularizer=method) for method in methods]
    assert [rung_groups(add_l2_baseline(checked(), 0))(c) for c in configs] == ["space", "space", "l2"]
    assert [rung_groups(checked(balance="regularizer"))(c) for c in configs] == list(methods)
    assert len({rung_groups(checked())(c) for c in configs}) == 1


def test_arms_take_turns_also_after_a_session_that_had_none():
    both = add_l2_baseline(checked(), 0)
    asked = []
    search = OptunaSearcher(
        both,
        metric="val_accuracy",
        sampler="random",
        seed=0,
        max_epochs=2,
        num_trials=8,
        on_proposal=lambda number, proposal: asked.append((number, proposal.config.regularizer)),
    )
    earlier = {"regularizer": "delta", "lr": 0.01, "alpha": 1.0, "attention_temperature": 5.0}
    finished = [(number, earlier, "completed", {1: 0.1, 2: 0.2}) for number in range(3)]
    search.restore_trials(finished, [], {number: arm_of("delta", both.choices) for number in range(3)})
    for number in range(3, 8):
        search.suggest(str(number))
    assert [number for number, method in asked if method == "l2"] == [3, 4, 5, 7], "it catches up, then takes turns"


def test_plain_l2_has_the_space_s_drop_path():
    def function(trial):
        return {**held(trial), "drop_path": 0.1}

    both = add_l2_baseline(check_space(Space(name="dropping", function=function), seed=0), 0)
    assert {config.drop_path for _, config in configs(both)} == {0.1}
