"""Which trial comes next while attention is missing: the searcher driven by hand, as Tune would drive it."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
from ray.tune.search import Searcher

from delta_tune.search.messages import TrialAssignment
from delta_tune.search.optuna_search import OptunaSearcher, Unfinished
from delta_tune.search.turns import Turns
from delta_tune.spaces.space import Space
from delta_tune.spaces.validation import check_space

EPOCHS = 4


class Attention:
    """Attention that comes when the test says so."""

    def __init__(self, *, is_under_way=True, most_held=4):
        self.is_under_way, self.most_held, self.come = is_under_way, most_held, False

    def has_come(self):
        return self.come

    def runs_as(self, number, config):
        return config


def methods(trial):
    trial.suggest_categorical("regularizer", ["l2", "delta"])
    trial.suggest_float("lr", 1e-4, 1e-1, log=True)


def delta_alone(trial):
    trial.suggest_float("lr", 1e-4, 1e-1, log=True)
    return {"regularizer": "delta"}


class Search:
    def __init__(self, function=methods, *, attention=None, num_trials=6, balance="regularizer", start=()):
        self.checked = check_space(Space(name="mine.py", function=function, balance=balance, start=start), seed=0)
        self.proposals, self.ids = {}, map(str, itertools.count())
        self.searcher = OptunaSearcher(
            self.checked,
            metric="val_accuracy",
            sampler="random",
            seed=0,
            max_epochs=EPOCHS,
            num_trials=num_trials,
            on_proposal=self.proposals.__setitem__,
            first=1,
        )
        self.searcher.attention = attention

    def ask(self):
        """Number and method of what comes next with its Tune id, or what the searcher says instead."""
        trial_id = next(self.ids)
        config = self.searcher.suggest(trial_id)
        if not isinstance(config, dict):
            return config
        assignment = TrialAssignment.from_config(config)
        return assignment.number, assignment.hyperparameters["regularizer"], trial_id

    def end(self, trial_id):
        self.searcher.on_trial_complete(trial_id, {"epoch": EPOCHS, "val_accuracy": 0.5})

    def run(self, count):
        """(number, method) of the next trials, one at a time."""
        told = []
        for _ in range(count):
            *trial, trial_id = self.ask()
            told.append(tuple(trial))
            self.end(trial_id)
        return told


IN_TURN = [(1, "l2"), (2, "delta"), (3, "l2"), (4, "delta"), (5, "l2"), (6, "delta")]


def test_trials_that_need_no_attention_go_first_and_the_others_follow_once_it_is_there():
    attention = Attention()
    search = Search(attention=attention)
    assert search.run(2) == [(1, "l2"), (3, "l2")]
    attention.come = True
    assert search.run(4) == [(2, "delta"), (4, "delta"), (5, "l2"), (6, "delta")]
    assert search.ask() == Searcher.FINISHED


def test_order_does_not_change_a_configuration():
    attention = Attention()
    late, at_once = Search(attention=attention), Search()
    late.run(3)
    attention.come = True
    late.run(3)
    assert at_once.run(6) == IN_TURN
    assert {n: p.config for n, p in late.proposals.items()} == {n: p.config for n, p in at_once.proposals.items()}


def test_tune_is_to_ask_again_while_a_trial_runs_and_to_end_its_run_when_none_does():
    search = Search(attention=Attention())
    *_, last = [search.ask() for _ in range(3)]
    assert search.ask() is None
    for trial_id in ("0", "1", "2"):
        search.end(trial_id)
    assert last[0] == 5
    assert search.searcher.waits
    assert search.ask() == Searcher.FINISHED


def test_one_slot_runs_one_trial_before_attention_is_measured():
    search = Search(attention=Attention(is_under_way=False))
    assert search.run(1) == [(1, "l2")]
    assert search.ask() == Searcher.FINISHED
    assert search.searcher.waits


def test_one_slot_begins_with_a_later_number_where_the_first_needs_attention():
    start = ({"regularizer": "delta", "lr": 0.01}, {"regularizer": "l2", "lr": 0.01})
    search = Search(attention=Attention(is_under_way=False), balance=None, start=start)
    assert search.run(1) == [(2, "l2")], "the first starting point is delta"
    assert search.ask() == Searcher.FINISHED


def test_proposals_wait_where_the_space_does_not_say_before_what_they_need():
    attention = Attention(most_held=3)
    search = Search(attention=attention, balance=None, num_trials=40)
    first = []
    while isinstance(told := search.ask(), tuple):
        first.append(told[:2])
        search.end(told[2])
    assert told == Searcher.FINISHED, "three wait"
    assert {method for _, method in first} == {"l2"}
    attention.come = True
    waiting = search.run(3)
    assert [method for _, method in waiting] == ["delta"] * 3
    assert sorted(number for number, _ in first + waiting) == list(range(1, len(first) + 4))


def test_space_of_delta_alone_proposes_nothing_before_attention_is_there():
    attention = Attention()
    search = Search(delta_alone, attention=attention, balance=None)
    assert search.ask() == Searcher.FINISHED
    attention.come = True
    assert search.run(6) == [(number, "delta") for number in range(1, 7)]


def test_unfinished_trial_waits_too():
    attention = Attention()
    search = Search(attention=attention, balance=None)
    delta, l2 = ({"regularizer": method, "lr": 0.01} for method in ("delta", "l2"))
    left = [Unfinished(number=1, params=delta, values={1: 0.5}), Unfinished(number=2, params=l2, values={})]
    search.searcher.restore_trials([], left)
    assert search.run(1) == [(2, "l2")]
    attention.come = True
    assert search.run(1) == [(1, "delta")]


def test_trial_runs_with_the_configuration_that_attention_leaves_it():
    attention = Attention()
    attention.come = True
    attention.runs_as = lambda number, config: dataclasses.replace(config, regularizer="delta_uniform")
    search = Search(attention=attention)
    assert search.run(2) == [(1, "delta_uniform"), (2, "delta_uniform")]
    assert search.proposals[2].config.regularizer == "delta_uniform"
    assert search.proposals[2].params["regularizer"] == "delta", "where it lies in the space"


@pytest.mark.parametrize("balance", ["regularizer", None])
def test_numbers_that_an_earlier_session_put_aside_come_first_with_their_starting_points(balance):
    start = [{"regularizer": method, "lr": lr} for lr in (0.01, 0.02) for method in ("delta", "l2")]
    turns = Turns(check_space(Space(name="mine.py", function=methods, balance=balance, start=tuple(start)), 0), 1, 9)
    aside, had = (2, {1: start[1], 3: start[3]}) if balance else (1, {2: start[1]})  # l2 has the first turn
    turns.restore(had, {})
    coming = turns.upcoming(attention=True)
    assert next(coming) == aside
    assert turns.point(aside) == {"lr": 0.01} | ({} if balance else {"regularizer": "delta"})
    assert next(coming) == (4 if balance else 3)
