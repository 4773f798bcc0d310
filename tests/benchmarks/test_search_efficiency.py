"""The replay of recorded curves: its mapping, its count of epochs, its measures."""

import math
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))  # programs, not a package
from old_space import EPOCHS
from replay import Curve, Nearest, Ours, RandomSearch, proposal_at, replay
from search_efficiency import METHODS, SPACE, Setting, by_seed, measures, spearman_by_epoch

from delta_tune.spaces.validation import random_answers


def drawn(count, seed=0):
    rng = np.random.default_rng(seed)
    return [SPACE.propose(random_answers(rng)).params for _ in range(count)]


def made_up(count=24, seed=0):
    """Curves that rise to a final score; every seventh diverges after two epochs, one before its first ends."""
    rng = np.random.default_rng(seed)
    curves = []
    for i, params in enumerate(drawn(count, seed)):
        final, lasts = rng.uniform(0.3, 0.9), EPOCHS
        if diverged := i % 7 == 3:
            final, lasts = 0.0, 0 if i == 3 else 2
        scores = final * (1 - 0.5 ** np.arange(1, lasts + 1)) + rng.normal(0, 0.02, lasts)
        rows = tuple({"epoch": k, "val_accuracy": s, "val_loss": 1 - s} for k, s in enumerate(scores.tolist(), 1))
        curves.append(Curve(params=params, rows=rows, final=final, diverged=diverged))
    return curves


def level(params, score, final):
    """A curve that does not rise."""
    rows = tuple({"epoch": k, "val_accuracy": score, "val_loss": 1 - score} for k in range(1, EPOCHS + 1))
    return Curve(params=params, rows=rows, final=final, diverged=False)


def never(epochs, finishes):
    return False


def naive_distance(one, other):
    """In Python's own words, from the ranges as `curves_space` has them."""
    ranges = {
        "lr": (1e-4, 1e-2), "beta": (1e-4, 1e-1), "weight_decay": (1e-5, 1e-2), "attention_temperature": (0.5, 20)
    }  # fmt: skip
    total = 0.0
    for name in one.keys() | other.keys():
        if name not in one or name not in other:
            total += 1
        elif name == "alpha":
            units = []
            for each in (one, other):
                low, high = (1e-3, 1.0) if each["regularizer"] == "l2_sp" else (1e-2, 30)
                units.append(math.log(each["alpha"] / low) / math.log(high / low))
            total += abs(units[0] - units[1])
        elif name in ranges:
            low, high = ranges[name]
            total += abs(math.log(one[name] / other[name])) / math.log(high / low)
        else:
            total += one[name] != other[name]
    return total


def test_nearest_takes_what_a_naive_loop_takes():
    recorded, free = drawn(30), set(range(30))
    nearest = Nearest(SPACE, recorded)
    for wanted in drawn(30, seed=1):
        expected = min(free, key=lambda i: naive_distance(wanted, recorded[i]))
        assert nearest.take(wanted) == expected
        free.remove(expected)


def test_nearest_of_a_recorded_configuration_is_itself():
    recorded = drawn(30)
    nearest = Nearest(SPACE, recorded)
    assert [nearest.take(params) for params in recorded] == list(range(30))


def test_nearest_copy_has_all_free():
    nearest = Nearest(SPACE, drawn(5))
    nearest.take(drawn(1)[0])
    assert nearest.copy().free.all()
    assert nearest.free.sum() == 4


class Counting:
    """A method that counts the rows it is handed and passes all else on."""

    def __init__(self, method):
        self.method, self.rows, self.running, self.most = method, 0, set(), 0

    def ask(self, trial_id):
        return self.method.ask(trial_id)

    def run(self, trial_id, params):
        self.running.add(trial_id)
        self.most = max(self.most, len(self.running))
        self.method.run(trial_id, params)

    def goes_on(self, trial_id, row):
        self.rows += 1
        goes_on = self.method.goes_on(trial_id, row)
        if not goes_on or row["epoch"] == EPOCHS:
            self.running.remove(trial_id)
        return goes_on

    def diverged(self, trial_id, row):
        self.running.discard(trial_id)
        self.method.diverged(trial_id, row)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("slots", [1, 4])
def test_replay_spends_the_rows_it_hands_out_in_its_slots(name, slots):
    curves = made_up()
    method = Counting(METHODS[name](0))
    found = replay(method, curves, Nearest(SPACE, [c.params for c in curves]), slots, 0, never)
    assert found.epochs == method.rows
    assert found.most_at_once == method.most == slots
    assert sorted(found.started) == list(range(len(curves)))


@pytest.mark.parametrize("name", METHODS)
def test_replay_repeats_with_its_seed(name):
    curves = made_up()
    nearest = Nearest(SPACE, [c.params for c in curves])
    runs = [replay(METHODS[name](seed), curves, nearest.copy(), 3, seed, never) for seed in (4, 4, 5)]
    assert runs[0] == runs[1]
    assert runs[0].started != runs[2].started


def test_replay_at_full_length_takes_every_epoch():
    curves = made_up()
    found = replay(RandomSearch(SPACE, 0, None), curves, Nearest(SPACE, [c.params for c in curves]), 2, 0, never)
    assert found.epochs == sum(len(curve.rows) for curve in curves)
    assert len(found.finishes) == sum(not curve.diverged for curve in curves)


def test_replay_random_search_reaches_the_target_with_the_trial_that_has_it():
    curves = [curve for curve in made_up(60) if not curve.diverged]
    order = replay(
        RandomSearch(SPACE, 0, None), curves, Nearest(SPACE, [c.params for c in curves]), 1, 0, never
    ).started
    best = max(range(len(curves)), key=lambda i: curves[i].final)
    told = by_seed("random, full length", curves, Setting(slots=1), [0])[0]
    near = {i for i, curve in enumerate(curves) if curve.final >= curves[best].final - 0.01}
    place = next(k for k, index in enumerate(order) if index in near)
    assert told["reached"] == told["makespan"] == EPOCHS * (place + 1)


def test_measures_of_the_incumbent_follow_the_validation_score():
    params = drawn(3)
    curves = [level(p, score, final) for p, score, final in zip(params, (0.5, 0.9, 0.7), (0.8, 0.6, 0.9), strict=True)]

    class InOrder(RandomSearch):
        def ask(self, trial_id):
            return params[int(trial_id)]

    found = replay(InOrder(SPACE, 0, None), curves, Nearest(SPACE, params), 1, 0, never)
    told = measures(found, curves, target=0.79)
    assert (told["reached"], told["chosen"]) == (EPOCHS, EPOCHS)
    assert told["at 60"] == 0.6  # the validation photos prefer the second
    assert measures(found, curves, target=0.89)["chosen"] == np.inf
    assert measures(found, curves, target=0.89)["reached"] == 3 * EPOCHS


def test_spearman_puts_diverged_configurations_last():
    rising = [level({}, 0.1 * i, 0.1 * i) for i in range(1, 6)]
    rising.append(Curve(params={}, rows=level({}, 0.9, 0).rows[:1], final=0.0, diverged=True))
    for metric in ("val_accuracy", "val_loss"):
        assert [row["rho"] for row in spearman_by_epoch(rising, metric, resamples=10)][1:] == pytest.approx(
            [1.0] * (EPOCHS - 1)
        )


def test_params_of_a_recorded_configuration_lie_in_the_space():
    params = drawn(1)[0]
    assert proposal_at(SPACE, params).params == params
    assert Ours().grace_period >= 1
