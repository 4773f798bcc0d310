"""What a space is put through before a study: branches, draws, starting points."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from delta_tune.config import FIRST_MODEL, METHODS, TrialConfig, UserError
from delta_tune.spaces.space import Space, load_space
from delta_tune.spaces.validation import check_space, contains, random_answers

SHIPPED = sorted((Path(__file__).parents[2] / "search_spaces").glob("[a-z]*.py"))


def check(function, **attributes):
    return check_space(Space(name="mine.py", function=function, **attributes), seed=0)


def two_methods(trial):
    """An own branch for each method."""
    trial.suggest_float("lr", 1e-4, 1e-2, log=True)
    if trial.suggest_categorical("regularizer", ["l2", "delta"]) == "delta":
        trial.suggest_float("alpha", 0.1, 10)
        trial.suggest_int("batch_size", 16, 64, step=16)
    else:
        trial.suggest_categorical("nesterov", [True, False])


def test_check_space_runs_every_combination_of_categorical_answers():
    seen = set()

    def space(trial):
        values = [trial.suggest_categorical(f"_{name}", range(4)) for name in "abc"]
        seen.add(tuple(values))

    check(space)
    assert seen == set(itertools.product(range(4), repeat=3))


def test_check_space_finds_a_mistake_deep_in_a_branch():
    def space(trial):
        # Random draws come here with probability 20^-3 each.
        if all(trial.suggest_categorical(f"_{name}", range(20)) == 19 for name in "abc"):
            return {"no_such_thing": 1}

    with pytest.raises(UserError, match=r"'no_such_thing' in the dict returned"):
        check(space)


def test_check_space_runs_branches_behind_a_continuous_value():
    def space(trial):
        if trial.suggest_float("lr", 0, 1) > 0.95:
            return {"no_such_thing": 1}

    with pytest.raises(UserError, match=r"'no_such_thing' in the dict returned"):
        check(space)


def test_check_space_ends_where_there_are_too_many_branches_for_all():
    assert len(check(lambda t: [t.suggest_categorical(f"_{i}", range(9)) for i in range(20)] and None).drawn) < 5000


def test_check_space_same_seed_draws_the_same():
    assert check(two_methods).drawn == check(two_methods).drawn


DEFAULT = {"lr": TrialConfig().lr, "regularizer": "delta", "alpha": 1.0, "batch_size": 32}


def test_check_space_starting_points_are_the_space_s_own_in_their_order():
    start = ({"regularizer": "l2", "lr": 0.01}, {"regularizer": "delta", "alpha": 3})
    checked = check(two_methods, start=start)
    assert (checked.points, checked.notes) == (start, ())


def test_check_space_starts_with_the_library_default_where_there_is_no_start():
    checked = check(two_methods)
    assert (checked.points, checked.notes) == ((DEFAULT,), ())


def test_check_space_starts_with_the_library_default_where_fixed_values_contradict_every_point():
    start = ({"lr": 0.01, "regularizer": "l2"}, {"lr": 0.003})
    checked = check(two_methods, start=start, fixed={"lr": 0.005})
    assert checked.points == ({name: value for name, value in DEFAULT.items() if name != "lr"},)
    assert len(checked.notes) == 2


def test_check_space_tries_the_default_with_fixed_values():
    checked = check(two_methods, fixed={"regularizer": "l2"})
    assert checked.points == ({"lr": TrialConfig().lr, "nesterov": True},)


def test_check_space_tries_starting_points_that_a_fixed_value_makes_equal_once():
    start = ({"regularizer": "l2"}, {"regularizer": "l2", "lr": 0.01})
    assert check(two_methods, start=start, fixed={"lr": 0.01}).points == ({"regularizer": "l2"},)


def test_check_space_says_why_the_default_is_left_out():
    checked = check(lambda t: t.suggest_float("lr", 0.1, 1.0) and None)
    assert (checked.points, checked.notes) == (
        (),
        (f"The library default is left out: mine.py cannot express lr={TrialConfig().lr}.",),
    )


def test_check_space_leaves_the_default_out_where_a_helper_decides():
    checked = check(lambda t: {"lr": 10.0 ** -t.suggest_int("_digits", 1, 3)})
    assert checked.notes == ("The library default is left out: mine.py cannot express _digits.",)


def test_check_space_refuses_a_function_that_raises_at_the_default_alone():
    def space(trial):
        assert trial.suggest_float("lr", 1e-4, 1e-2) != TrialConfig().lr

    with pytest.raises(UserError, match=r"mine.py raised AssertionError"):
        check(space)


@pytest.mark.parametrize(
    ("point", "message"),
    [
        ({"lr": 0.1}, r"has lr=0.1, outside of FloatDistribution"),
        ({"lr": 0}, r"has lr=0, outside of"),
        ({"lr": float("nan")}, r"has lr=nan, outside of"),
        ({"lr": "0.001"}, r"has lr='0.001', outside of"),
        ({"regularizer": "l2_sp"}, r"has regularizer='l2_sp', outside of"),
        ({"regularizer": "l2", "nesterov": 1}, r"has nesterov=1, outside of"),
        ({"regularizer": "delta", "batch_size": 40}, r"has batch_size=40, outside of"),
        ({"regularizer": "delta", "batch_size": 16.5}, r"has batch_size=16.5, outside of"),
        ({"regularizer": "delta", "batch_size": float("inf")}, r"has batch_size=inf, outside of"),
        ({"learning_rate": 0.001}, r"fixes 'learning_rate', which mine.py never suggests; it suggests alpha, "),
        ({"alpa": 1}, r"never suggests \(did you mean alpha"),
        ({"beta": 0.1}, r"fixes 'beta', which mine.py never suggests"),
        ({"regularizer": "l2", "alpha": 1}, r"fixes alpha, in a branch that the point does not reach"),
    ],
)
def test_check_space_refuses_a_starting_point_that_it_cannot_reach(point, message):
    with pytest.raises(UserError, match=message):
        check(two_methods, start=(point,))


def test_check_space_takes_a_starting_point_that_leaves_the_branch_open():
    assert check(two_methods, start=({"alpha": 2.0},)).points == ({"alpha": 2.0},)


def test_check_space_leaves_out_a_starting_point_that_a_fixed_value_contradicts():
    start = ({"regularizer": "delta", "alpha": 2.0}, {"regularizer": "l2", "lr": 0.01})
    checked = check(two_methods, start=start, fixed={"regularizer": "l2"})
    assert checked.points == ({"lr": 0.01},)
    assert checked.notes == (f"The starting point {start[0]} is left out: regularizer is fixed to another value.",)


def test_check_space_keeps_a_starting_point_that_a_fixed_value_agrees_with():
    checked = check(two_methods, start=({"regularizer": "l2", "lr": 0.01},), fixed={"lr": 0.01})
    assert checked.points == ({"regularizer": "l2"},)


def test_check_space_refuses_a_fixed_helper_that_the_space_does_not_have():
    with pytest.raises(UserError, match=r"--set _recipe: the space mine.py has no such helper"):
        check(two_methods, fixed={"_recipe": 1})


def test_check_space_takes_a_fixed_helper_of_one_branch():
    def space(trial):
        if trial.suggest_categorical("regularizer", ["l2", "delta"]) == "delta":
            trial.suggest_float("_relative", 0, 1)

    assert check(space, fixed={"_relative": 0.5}).drawn


@pytest.mark.parametrize("name", ["lr", "nesterov", "momentum"])
def test_check_space_refuses_to_balance_what_is_no_categorical_of_every_branch(name):
    with pytest.raises(UserError, match=f"must name a categorical that is always suggested, not '{name}'"):
        check(two_methods, balance=name)


def test_check_space_choices_are_those_of_the_balanced_categorical():
    assert check(two_methods, balance="regularizer").choices == ("l2", "delta")


@pytest.mark.parametrize(
    ("distribution", "inside", "outside"),
    [
        (CategoricalDistribution([True, "a", None, 1.0]), [True, "a", None, 1.0], [1, False, "b", 0.0, "None"]),
        (CategoricalDistribution([16, 32]), [16, 32], [16.0, 24, "16", True]),
        (FloatDistribution(0.5, 2.0), [0.5, 2, 1.3], [0.49, 2.01, True, None, "1", float("nan")]),
        (FloatDistribution(0.1, 10, log=True), [0.1, 10], [0, -1, float("inf")]),
        (FloatDistribution(0.0, 0.9, step=0.3), [0, 0.3, 0.6, 0.9], [0.1, 0.45]),
        (IntDistribution(2, 10, step=4), [2, 6, 10.0], [4, 6.5, 14, False]),
        (IntDistribution(1, 100, log=True), [1, 7, 100], [0, 1.5, float("inf"), float("nan")]),
    ],
)
def test_contains_tells_what_a_sampler_could_have_given(distribution, inside, outside):
    assert all(contains(distribution, value) for value in inside)
    assert not any(contains(distribution, value) for value in outside)


@pytest.mark.parametrize(
    "distribution",
    [
        CategoricalDistribution(["a", None, 3]),
        FloatDistribution(-2.0, 3.0),
        FloatDistribution(1e-5, 1e2, log=True),
        FloatDistribution(0.1, 1.0, step=0.3),
        IntDistribution(3, 3),
        IntDistribution(1, 1000, log=True),
        IntDistribution(4, 64, step=12),
    ],
)
def test_random_answer_stays_inside_the_distribution(distribution):
    answer = random_answers(np.random.default_rng(0))
    assert all(contains(distribution, answer("x", distribution)) for _ in range(300))


def test_random_answer_of_a_logarithmic_range_is_uniform_in_the_logarithm():
    answer = random_answers(np.random.default_rng(0))
    draws = [answer("x", FloatDistribution(1e-4, 1.0, log=True)) for _ in range(2000)]
    assert np.mean(np.array(draws) < 1e-2) == pytest.approx(0.5, abs=0.04)


@pytest.mark.parametrize("file", SHIPPED, ids=lambda f: f.name)
def test_shipped_spaces_pass_their_checks(file):
    checked = check_space(load_space(file, TrialConfig(), {}), seed=0)
    assert checked.points == checked.space.start != ()


@pytest.mark.parametrize("file", SHIPPED, ids=lambda f: f.name)
def test_shipped_spaces_say_their_command(file):
    assert "\n    python launch.py" in load_space(file, TrialConfig(), {}).source


def test_shipped_methods_space_has_every_method_that_can_be_proposed():
    (file,) = (f for f in SHIPPED if f.name == "methods.py")
    checked = check_space(load_space(file, TrialConfig(), {}), seed=0)
    assert {p.config.regularizer for p in checked.drawn} == METHODS.keys() - {FIRST_MODEL}


def test_shipped_methods_space_starts_with_each_method():
    (file,) = (f for f in SHIPPED if f.name == "methods.py")
    space = load_space(file, TrialConfig(), {})
    assert sorted(point["regularizer"] for point in space.start) == sorted(check_space(space, seed=0).choices)


def sizes(trial):
    if trial.suggest_categorical("_small", [False, True]):
        return {"batch_size": 4}
    trial.suggest_int("batch_size", 8, 24)
    return {}


@pytest.mark.parametrize(
    ("point", "expected"), [({"_small": False, "batch_size": 9}, 9), ({"_small": True}, 4)], ids=["given", "constant"]
)
def test_usual_batch_size_is_that_of_the_first_starting_point(point, expected):
    assert check(sizes, start=(point, {"_small": False, "batch_size": 20})).usual_batch_size == expected


def test_usual_batch_size_is_the_median_where_the_first_starting_point_leaves_it_open():
    found = check(sizes, start=({"_small": False},), fixed={"_small": False})
    assert found.usual_batch_size == pytest.approx(16, abs=2)
