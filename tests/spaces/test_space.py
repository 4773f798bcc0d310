"""From a space's function, file and fixed values to a trial's configuration."""

import functools

import pytest
from optuna.distributions import CategoricalDistribution

from delta_tune.config import TrialConfig, UserError
from delta_tune.spaces.space import Space, describe, find_space, load_space


def low(name, distribution):
    """The first choice, or the lower end."""
    return distribution.choices[0] if isinstance(distribution, CategoricalDistribution) else distribution.low


def answers(**values):
    return lambda name, distribution: values[name]


def proposed(function, answer=low, **attributes):
    return Space(name="mine.py", function=function, **attributes).propose(answer)


def write(folder, text):
    file = folder / "mine.py"
    file.write_text(text)
    return file


ONE_LR = "def space(trial):\n    trial.suggest_float('lr', 0.1, 1.0)\n"


def test_propose_lays_suggested_over_base():
    config = proposed(lambda t: t.suggest_float("lr", 0.1, 1.0) and None, base=TrialConfig(lr=5.0, alpha=7.0)).config
    assert (config.lr, config.alpha) == (0.1, 7.0)


def test_propose_lays_returned_over_suggested():
    def space(trial):
        trial.suggest_float("lr", 0.1, 1.0)
        return {"lr": 0.7}

    assert proposed(space).config.lr == 0.7


def test_propose_lays_fixed_over_returned():
    assert proposed(lambda _: {"lr": 0.7}, fixed={"lr": 0.2}).config.lr == 0.2


def test_propose_lays_fixed_over_base_where_the_space_does_not_name_it():
    assert proposed(lambda _: None, fixed={"batch_size": 8}).config.batch_size == 8


def test_suggest_answers_fixed_values_so_that_conditions_follow():
    def space(trial):
        if trial.suggest_categorical("regularizer", ["delta", "l2"]) == "l2":
            trial.suggest_float("weight_decay", 0.25, 1.0)

    proposal = proposed(space, fixed={"regularizer": "l2"})
    assert (proposal.config.regularizer, proposal.config.weight_decay) == ("l2", 0.25)


def test_suggest_of_a_fixed_value_leaves_the_sampler_nothing_to_do():
    proposal = proposed(lambda t: t.suggest_float("lr", 0.1, 1.0) and None, fixed={"lr": 0.2})
    assert (proposal.params, proposal.distributions) == ({}, {})


def test_suggest_answers_a_fixed_helper():
    def space(trial):
        return {"warmup_epochs": 1.0 if trial.suggest_categorical("_recipe", ["short", "long"]) == "long" else 0.0}

    assert proposed(space, fixed={"_recipe": "long"}).config.warmup_epochs == 1.0


def test_suggest_takes_fixed_layer_names():
    proposal = proposed(lambda t: t.suggest_categorical("layers", ["all"]) and None, fixed={"layers": ("a", "b")})
    assert proposal.config.layers == ("a", "b")


def test_suggest_twice_gives_the_same_value():
    numbers = iter([0.3, 0.6])
    seen = []

    def space(trial):
        seen.extend(trial.suggest_float("lr", 0.1, 1.0) for _ in range(2))

    proposed(space, lambda name, distribution: next(numbers))
    assert seen == [0.3, 0.3]


def test_suggest_int_and_float_give_their_types():
    seen = []

    def space(trial):
        seen.extend([trial.suggest_int("batch_size", 8, 64), trial.suggest_float("lr", 1, 2)])

    proposed(space, answers(batch_size=16.0, lr=1))
    assert [type(v) for v in seen] == [int, float]


def test_propose_helpers_are_kept_apart_from_the_configuration():
    def space(trial):
        return {"alpha": 10 * trial.suggest_float("_relative", 0.5, 1.0)}

    proposal = proposed(space)
    assert (proposal.helpers, proposal.config.alpha) == ({"_relative": 0.5}, 5.0)


def test_propose_params_are_everything_sampled():
    def space(trial):
        trial.suggest_float("_relative", 0.5, 1.0)
        trial.suggest_float("lr", 0.1, 1.0)

    assert proposed(space).params == {"_relative": 0.5, "lr": 0.1}


def test_propose_refuses_an_unknown_suggested_name_and_names_the_nearest():
    with pytest.raises(UserError, match=r"mine.py suggests 'learn_rate'.*names of helpers start with an underscore"):
        proposed(lambda t: t.suggest_float("learn_rate", 0.1, 1.0) and None)


def test_propose_refuses_an_unknown_returned_name_and_names_the_nearest():
    with pytest.raises(UserError, match=r"'alfa' in the dict returned by the space mine.py.*did you mean alpha"):
        proposed(lambda _: {"alfa": 1.0})


def test_propose_refuses_a_returned_helper():
    with pytest.raises(UserError, match=r"'_alpha' in the dict returned"):
        proposed(lambda _: {"_alpha": 1.0})


@pytest.mark.parametrize("name", ["max_epochs", "seed"])
@pytest.mark.parametrize("way", ["suggested", "returned"])
def test_propose_refuses_what_is_the_same_for_all_trials(name, way):
    def space(trial):
        return {name: 3} if way == "returned" else trial.suggest_int(name, 1, 9) and None

    with pytest.raises(UserError, match=rf"gives {name}, .* set it with --{name.replace('_', '-')}"):
        proposed(space)


def test_propose_names_what_was_suggested_before_the_function_raised():
    def space(trial):
        trial.suggest_float("lr", 0.1, 1.0)
        raise KeyError("oops")

    with pytest.raises(UserError, match=r"mine.py raised KeyError: 'oops', after \{'lr': 0.1\} was suggested"):
        proposed(space)


def test_propose_refuses_a_range_that_is_none():
    with pytest.raises(UserError, match=r"mine.py raised ValueError"):
        proposed(lambda t: t.suggest_float("lr", 1.0, 0.1))


def test_propose_refuses_a_value_that_the_field_does_not_allow():
    with pytest.raises(UserError, match=r"mine.py gives .*momentum must be ≥ 0 and < 1, but got 1.5"):
        proposed(lambda _: {"momentum": 1.5})


def test_load_space_reads_a_file(tmp_path):
    file = write(tmp_path, f"{ONE_LR}START = [{{'lr': 0.5}}]\n")
    space = load_space(file, TrialConfig(), {"beta": 1.0})
    assert (space.name, space.start, space.balance, space.source) == (
        "mine.py",
        ({"lr": 0.5},),
        None,
        file.read_text(),
    )
    assert (space.propose(low).config.lr, space.propose(low).config.beta) == (0.1, 1.0)


def test_load_space_takes_a_function():
    def mine(trial):
        return {"lr": 0.4}

    space = load_space(mine, TrialConfig(), {})
    assert (space.name, space.start, space.propose(low).config.lr) == ("mine", (), 0.4)
    assert "return" in space.source


def test_load_space_takes_a_callable_without_source():
    space = load_space(functools.partial(lambda lr, trial: {"lr": lr}, 0.4), TrialConfig(), {})
    assert (space.propose(low).config.lr, space.source) == (0.4, "")


def test_load_space_keeps_balance(tmp_path):
    text = "BALANCE = 'regularizer'\ndef space(trial):\n    trial.suggest_categorical('regularizer', ['l2', 'delta'])\n"
    assert load_space(write(tmp_path, text), TrialConfig(), {}).balance == "regularizer"


def test_load_space_fixing_what_is_balanced_keeps_its_starting_points_alone(tmp_path):
    text = (
        "BALANCE = 'regularizer'\nSTART = [{'regularizer': 'l2', 'lr': 0.1}, {'regularizer': 'delta'}, {'lr': 0.3}]\n"
        "def space(trial):\n    trial.suggest_categorical('regularizer', ['l2', 'delta'])\n"
    )
    space = load_space(write(tmp_path, text), TrialConfig(), {"regularizer": "l2"})
    assert (space.balance, space.start, space.propose(low).params) == (None, ({"lr": 0.1}, {"lr": 0.3}), {})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def space(trial:\n", r"mine.py does not run: SyntaxError"),
        ("import nowhere_to_be_found\n", r"mine.py does not run: ModuleNotFoundError"),
        ("def spaces(trial):\n    pass\n", r"has no function `space`"),
        ("space = 3\n", r"has no function `space`"),
        (f"{ONE_LR}START = {{'lr': 0.1}}\n", r"START in .*mine.py must be a list of dicts, but got \{'lr': 0.1\}"),
        (f"{ONE_LR}START = [0.1]\n", r"START in .*mine.py must be a list of dicts, but got \[0.1\]"),
    ],
)
def test_load_space_refuses_a_file_that_is_no_space(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        load_space(write(tmp_path, text), TrialConfig(), {})


def test_find_space_names_the_shipped_ones_where_there_is_no_such_file():
    with pytest.raises(UserError, match=r"no search space mine.py; .*search_spaces/delta.py.*search_spaces/methods.py"):
        find_space("mine.py")


def test_find_space_does_not_offer_the_package_file():
    with pytest.raises(UserError) as error:
        find_space("mine.py")
    assert "__init__" not in str(error.value)


@pytest.mark.parametrize("given", ["delta.py", "search_spaces/delta.py"])
def test_find_space_finds_the_shipped_ones_from_anywhere(tmp_path, monkeypatch, given):
    monkeypatch.chdir(tmp_path)
    assert find_space(given).parts[-2:] == ("search_spaces", "delta.py")


def test_find_space_prefers_the_user_s_own_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "delta.py").touch()
    assert find_space("delta.py") == tmp_path / "delta.py"


def test_find_space_takes_no_shipped_one_for_a_file_missing_elsewhere(tmp_path):
    with pytest.raises(UserError, match=r"There is no search space"):
        find_space(tmp_path / "delta.py")


def test_describe_is_the_first_line_of_the_docstring(tmp_path):
    space = load_space(write(tmp_path, f'"""Which rate?\n\nMore.\n"""\n{ONE_LR}'), TrialConfig(), {})
    assert describe(space) == "Which rate?"


def test_describe_of_an_indented_function_is_empty():
    def mine(trial):
        """Which rate?"""

    assert describe(load_space(mine, TrialConfig(), {})) == ""
