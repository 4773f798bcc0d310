from __future__ import annotations

import importlib.util

import optuna
import pytest

from delta_tune.config import TrialConfig, UserError
from delta_tune.search.samplers import check_sampler, conditional_params, make_sampler
from delta_tune.spaces.space import Space, load_space
from delta_tune.spaces.validation import check_space

KINDS = ("tpe", "gp", "random", "cmaes", "grid")


def checked(function, **attributes):
    return check_space(Space(name="mine.py", function=function, **attributes), seed=0)


def plain(trial):
    trial.suggest_float("lr", 1e-4, 1e-1, log=True)
    trial.suggest_categorical("batch_size", [8, 16])
    return {"regularizer": "l2"}


def branching(trial):
    trial.suggest_float("lr", 1e-4, 1e-1, log=True)
    if trial.suggest_categorical("regularizer", ["l2", "delta"]) == "delta":
        trial.suggest_float("alpha", 0.01, 100, log=True)
    return {}


def stretching(trial):
    method = trial.suggest_categorical("regularizer", ["l2", "l2_sp"])
    trial.suggest_float("lr", 1e-4, 1e-1 if method == "l2" else 1e-2, log=True)
    return {}


@pytest.mark.parametrize(
    ("function", "balance", "names"),
    [
        (plain, None, []),
        (branching, None, ["alpha"]),
        (branching, "regularizer", []),
        (stretching, None, ["lr"]),
        (stretching, "regularizer", []),
    ],
)
def test_conditional_are_the_hyperparameters_that_some_trials_lack_or_draw_from_another_range(function, balance, names):
    assert conditional_params(checked(function, balance=balance)) == names


@pytest.mark.parametrize("kind", ["gp", "cmaes"])
def test_samplers_without_conditions_refuse_a_conditional_space_and_say_why(kind, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
    with pytest.raises(UserError, match="alpha"):
        check_sampler(kind, checked(branching))
    assert check_sampler("gp", checked(branching, balance="regularizer")) is None


def test_cmaes_says_what_it_draws_at_random(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
    said = check_sampler("cmaes", checked(plain))
    assert "batch_size" in said
    assert "lr" not in said.split()


def test_cmaes_without_its_package_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install"):
        check_sampler("cmaes", checked(plain))


def test_grid_without_starting_points_is_refused():
    with pytest.raises(UserError, match="START"):
        check_sampler("grid", checked(plain))
    assert check_sampler("grid", checked(plain, start=({"lr": 0.01},))) is None


def test_grid_is_refused_where_fixed_values_contradict_every_starting_point():
    start = ({"lr": 0.01}, {"lr": 0.02, "batch_size": 8})
    with pytest.raises(UserError, match=r"--set contradicts each one of mine.py; leave --set lr out\.$"):
        check_sampler("grid", checked(plain, start=start, fixed={"lr": 0.03}))
    assert check_sampler("grid", checked(plain, start=start, fixed={"lr": 0.02})) is None


@pytest.mark.parametrize("kind", KINDS)
def test_sampler_draws_the_same_for_the_same_seed_and_number(kind):
    if kind == "cmaes":
        pytest.importorskip("cmaes")

    def draw(number):
        study = optuna.create_study(sampler=make_sampler(kind, 3, number))
        return study.ask().suggest_float("x", 0, 1)

    assert draw(7) == draw(7)
    assert draw(7) != draw(8)


@pytest.mark.parametrize("kind", ["tpe", "gp", "cmaes"])
def test_sampler_made_anew_for_each_trial_learns_from_those_before(kind):
    if kind == "cmaes":
        pytest.importorskip("cmaes")
    study = optuna.create_study()
    for number in range(40):
        study.sampler = make_sampler(kind, 0, number)
        trial = study.ask()
        x, y = (trial.suggest_float(name, 0, 1) for name in "xy")
        study.tell(trial, (x - 0.8) ** 2 + (y - 0.2) ** 2)
    late = [trial.params for trial in study.trials[20:]]
    error = sum(abs(p["x"] - 0.8) + abs(p["y"] - 0.2) for p in late) / len(late)
    assert error < 0.5, "random draws are off by 0.68 on average"


def test_grid_says_that_no_point_of_start_has_the_method(tmp_path):
    file = tmp_path / "own.py"
    file.write_text(
        "BALANCE, START = 'regularizer', [{'regularizer': 'l2'}]\n"
        "def space(trial):\n    trial.suggest_categorical('regularizer', ['l2', 'delta'])\n"
    )
    space = load_space(file, TrialConfig(), {"regularizer": "delta"})
    with pytest.raises(UserError, match=r"no point of START has regularizer=delta in own\.py"):
        check_sampler("grid", check_space(space, seed=0))
