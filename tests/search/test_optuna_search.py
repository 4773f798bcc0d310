"""Which configuration comes next, and what Optuna is told: the searcher driven by hand, as Tune would drive it."""

import itertools
import json
import logging
import math
import pickle

import optuna
import pytest
from optuna.samplers._tpe.sampler import _split_trials
from optuna.trial import TrialState
from ray.tune.search import Searcher

from delta_tune.config import TrialConfig
from delta_tune.search.messages import TrialAssignment, TrialOutcome
from delta_tune.search.optuna_search import LOST, NUMBER, OptunaSearcher, Unfinished
from delta_tune.search.optuna_storage import open_storage
from delta_tune.search.samplers import make_sampler
from delta_tune.spaces.space import Space
from delta_tune.spaces.validation import check_space

EPOCHS = 4


def methods(trial):
    """Two methods, one with a hyperparameter of its own."""
    trial.suggest_float("lr", 1e-4, 1e-1, log=True)
    if trial.suggest_categorical("regularizer", ["l2", "delta"]) == "delta":
        trial.suggest_float("alpha", 0.01, 100, log=True)
    else:
        trial.suggest_categorical("_recipe", ["short", "long"])


class Study:
    """A study in which one trial runs at a time: half of them are pruned, some end badly."""

    def __init__(
        self,
        function=methods,
        *,
        num_trials=99,
        seed=0,
        sampler="tpe",
        metric="val_accuracy",
        name="study",
        storage=None,
        **attributes,
    ):
        self.metric, self.sign = metric, -1 if metric == "val_loss" else 1
        self.finished = []
        self.configs, self.proposals = {}, {}
        self.search = OptunaSearcher(
            check_space(Space(name="mine.py", function=function, **attributes), seed=0),
            metric=metric,
            sampler=sampler,
            seed=seed,
            max_epochs=EPOCHS,
            num_trials=num_trials,
            on_proposal=self.proposals.__setitem__,
            name=name,
            storage=storage,
        )
        self.ids = map(str, itertools.count())

    def ask(self):
        """Tune's id and the number of the next trial."""
        trial_id = next(self.ids)
        assignment = TrialAssignment.from_config(self.search.suggest(trial_id))
        assert assignment.task == 0
        self.gpus = assignment.gpus
        self.configs[assignment.number] = assignment.hyperparameters
        return trial_id, assignment.number

    def result(self, epoch, score):
        return {"epoch": epoch, self.metric: self.sign * score, "training_iteration": 77}

    def go(self, trial_id, scores, then="complete"):
        """Report scores, the last of which ends the trial; or end it otherwise after them."""
        ends = then == "complete"
        for epoch, score in enumerate(scores[:-1] if ends else scores, 1):
            self.search.on_trial_result(trial_id, self.result(epoch, score))
        last = self.result(len(scores), scores[-1]) if scores else {"epoch": 0, self.metric: math.nan}
        if then == "error":
            self.search.on_trial_complete(trial_id, error=True)
        else:
            result = last if ends else TrialOutcome(kind=then, error="it broke").to_result(last)
            self.search.on_trial_complete(trial_id, result)

    def run(self, count):
        """`count` trials whose scores and ends follow from their configuration alone."""
        for _ in range(count):
            trial_id, number = self.ask()
            config = self.configs[number]
            off = abs(math.log10(config["lr"]) + 2) + (0.2 if config["alpha"] is None else 0)
            scores = [1 - off / (2 + epoch) for epoch in range(EPOCHS)]
            state = "completed"
            if config["lr"] > 0.05:
                state, scores = "diverged", scores[:1]
                self.go(trial_id, scores, then="diverged")
            else:
                if off > 0.7:
                    state, scores = "pruned", scores[: 1 + number % 3]
                self.go(trial_id, scores)
            values = {epoch: self.sign * score for epoch, score in enumerate(scores, 1)}
            params = json.loads(json.dumps(self.proposals[number].params))  # as the tables keep them
            self.finished.append((number, params, state, values))
        return self

    def study(self, choice=None):
        return self.search.studies[choice]


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_search_same_seed_gives_the_same_proposals(sampler):
    assert Study(sampler=sampler).run(15).configs == Study(sampler=sampler).run(15).configs


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_search_another_seed_gives_other_proposals(sampler):
    first, second = Study(sampler=sampler).run(3).configs, Study(sampler=sampler, seed=1).run(3).configs
    assert first[0] == second[0]  # the library default
    assert first[1] != second[1]


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_search_of_one_seed_proposes_each_configuration_once(sampler):
    rates = [c["lr"] for c in Study(sampler=sampler).run(15).configs.values()]
    assert len(set(rates)) == len(rates)


def test_search_proposals_learn_from_history():
    late = {n: c for n, c in Study().run(20).configs.items() if n > 10}
    random = Study(sampler="random").run(20)
    assert {state for *_, state, _ in Study().run(20).finished} == {"completed", "pruned", "diverged"}
    near = [abs(math.log10(c["lr"]) + 2) for c in late.values()]
    far = [abs(math.log10(c["lr"]) + 2) for n, c in random.configs.items() if n > 10]
    assert sum(near) / len(near) < 0.7 * sum(far) / len(far)


@pytest.mark.parametrize("sampler", ["tpe", "random"])
@pytest.mark.parametrize("finished", [1, 9, 12, 17])
def test_search_after_restore_proposes_as_the_uninterrupted_study(sampler, finished):
    whole = Study(sampler=sampler).run(20)
    resumed = Study(sampler=sampler)
    resumed.search.restore_trials(whole.finished[:finished], [])
    resumed.run(20 - finished)
    assert resumed.configs == {n: c for n, c in whole.configs.items() if n >= finished}


def test_search_after_restore_of_a_loss_proposes_as_the_uninterrupted_study():
    whole, resumed = Study(metric="val_loss").run(16), Study(metric="val_loss")
    resumed.search.restore_trials(whole.finished[:13], [])
    assert resumed.run(3).configs == {n: whole.configs[n] for n in (13, 14, 15)}


def test_search_after_restore_of_a_balanced_space_proposes_as_the_uninterrupted_study():
    whole, resumed = Study(balance="regularizer").run(28), Study(balance="regularizer")
    resumed.search.restore_trials(whole.finished[:25], [])
    assert resumed.run(3).configs == {n: whole.configs[n] for n in (25, 26, 27)}


def test_search_after_restore_without_history_would_propose_something_else():
    whole, blank = Study().run(14), Study()
    lost = [(number, params, LOST, {}) for number, params, *_ in whole.finished[1:13]]  # nothing is learnt from them
    blank.search.restore_trials([whole.finished[0], *lost], [])
    assert blank.run(1).configs[13] != whole.configs[13]


def test_search_begins_with_the_starting_points_in_their_order():
    start = ({"regularizer": "l2", "lr": 0.01, "_recipe": "long"}, {"regularizer": "delta", "lr": 0.02, "alpha": 3.0})
    study = Study(start=start).run(3)
    first, second, third = (p.params for p in study.proposals.values())
    assert (first, second) == start
    assert third["lr"] not in (0.01, 0.02)


def test_search_without_starting_points_begins_with_the_library_default():
    first, second = (p.params for p in Study().run(2).proposals.values())
    assert first == {"regularizer": "delta", "lr": TrialConfig().lr, "alpha": 1.0}
    assert second != first


def test_search_samples_what_a_starting_point_leaves_open():
    point = {"regularizer": "delta", "alpha": 3.0}
    first, again = (Study(start=(point,), seed=seed).run(1).proposals[0].params for seed in (0, 1))
    assert {name: first[name] for name in point} == {name: again[name] for name in point} == point
    assert first["lr"] != again["lr"]


def test_search_after_restore_does_not_repeat_starting_points():
    start = ({"regularizer": "l2", "lr": 0.01, "_recipe": "long"}, {"regularizer": "delta", "lr": 0.02, "alpha": 3.0})
    resumed = Study(start=start)
    resumed.search.restore_trials(Study(start=start).run(1).finished, [])
    assert resumed.run(1).proposals[1].params == start[1]


def test_search_ends_after_num_trials():
    assert Study(num_trials=2).run(2).search.suggest("late") == Searcher.FINISHED


def test_search_balanced_choices_take_turns():
    study = Study(balance="regularizer").run(10)
    assert [study.configs[n]["regularizer"] for n in range(10)] == ["l2", "delta"] * 5


def test_search_balanced_choices_learn_from_their_own_trials_alone():
    study = Study(balance="regularizer").run(10)
    assert [len(study.study(choice).trials) for choice in ("l2", "delta")] == [5, 5]
    assert all("alpha" not in t.params for t in study.study("l2").trials)


def test_search_balanced_starting_points_go_to_their_choice():
    start = ({"regularizer": "delta", "lr": 0.02, "alpha": 3.0}, {"regularizer": "l2", "lr": 0.01, "_recipe": "long"})
    study = Study(start=start, balance="regularizer").run(2)
    assert [study.proposals[n].params for n in (0, 1)] == [
        {"lr": 0.01, "_recipe": "long"},
        {"lr": 0.02, "alpha": 3.0},
    ]


def test_search_pending_trials_get_configurations_of_their_own():
    study = Study()
    for _ in range(12):
        study.ask()
    assert len({c["lr"] for c in study.configs.values()}) == 12


def test_search_configuration_for_tune_is_the_record():
    study = Study().run(2)
    assert all(study.configs[n] == p.config.record() for n, p in study.proposals.items())


def test_search_tells_helpers_apart():
    study = Study(fixed={"regularizer": "l2"}).run(1)
    assert set(study.proposals[0].helpers) == {"_recipe"}


def test_optuna_is_told_a_stopped_trial_as_pruned_with_all_its_values():
    study = Study()
    study.go(study.ask()[0], [0.5, 0.7, 0.6])
    (told,) = study.study().trials
    assert (told.state, told.intermediate_values) == (TrialState.PRUNED, {1: 0.5, 2: 0.7, 3: 0.6})


@pytest.mark.parametrize(("metric", "best"), [("val_accuracy", 0.8), ("val_loss", -0.8)])
def test_optuna_is_told_a_completed_trial_with_its_best_epoch(metric, best):
    study = Study(metric=metric)
    study.go(study.ask()[0], [0.5, 0.8, 0.7, 0.6])
    (told,) = study.study().trials
    assert (told.state, told.value, len(told.intermediate_values)) == (TrialState.COMPLETE, best, EPOCHS)


def test_optuna_is_told_a_repeated_epoch_once():
    study = Study()
    trial_id, _ = study.ask()
    for _ in range(2):
        study.search.on_trial_result(trial_id, study.result(1, 0.5))
    study.go(trial_id, [0.5, 0.8])
    assert study.study().trials[0].intermediate_values == {1: 0.5, 2: 0.8}


@pytest.mark.parametrize("scores", [[], [0.9, 0.95]])
@pytest.mark.parametrize("outcome", ["diverged", "failed"])
def test_optuna_is_told_a_bad_configuration_as_infeasible(outcome, scores):
    study = Study()
    study.go(study.ask()[0], scores, then=outcome)
    (told,) = study.study().trials
    assert told.state == TrialState.PRUNED
    assert told.intermediate_values == dict(enumerate(scores, 1))
    assert [value > 0 for value in told.constraints.values()] == [True]


@pytest.mark.parametrize("restored", [False, True])
def test_optuna_counts_no_bad_configuration_among_the_good_while_there_are_others(restored):
    study = Study()
    ends = [([0.99, 0.99], "diverged"), ([], "failed"), ([0.1] * EPOCHS, "complete"), ([0.2], "complete")]
    for scores, then in ends * 3:
        study.go(study.ask()[0], scores, then=then)
    if restored:
        states = {("complete", EPOCHS): "completed", ("complete", 1): "pruned"}
        history = [
            (n, study.proposals[n].params, states.get((then, len(scores)), then), dict(enumerate(scores, 1)))
            for n, (scores, then) in enumerate(ends * 3)
        ]
        study = Study()
        study.search.restore_trials(history, [])
    bad = {n for n, (_, then) in enumerate(ends * 3) if then != "complete"}
    below, above = _split_trials(study.study(), study.study().trials, 6)
    assert {t.number for t in above} == bad
    assert [t.state for t in below].count(TrialState.COMPLETE) == 3


def test_optuna_is_told_a_cause_outside_the_configuration_as_failed():
    study = Study()
    study.go(study.ask()[0], [0.5], then="error")
    (told,) = study.study().trials
    assert (told.state, told.constraints) == (TrialState.FAIL, {})


def test_optuna_is_told_a_trial_without_any_result_as_failed():
    study = Study()
    study.search.on_trial_complete(study.ask()[0])
    assert study.study().trials[0].state == TrialState.FAIL


def test_optuna_is_left_no_running_trial():
    study = Study().run(15)
    for scores, then in (([0.5], "error"), ([], "failed"), ([math.inf], "diverged"), ([0.1], "complete")):
        study.go(study.ask()[0], scores, then=then)
    assert all(t.state.is_finished() for t in study.study().trials)


def test_restore_tells_optuna_what_it_was_told_before():
    whole, resumed = Study().run(12), Study()
    resumed.search.restore_trials(whole.finished, [])
    before, after = whole.study().trials, resumed.study().trials
    for name in ("number", "state", "params", "distributions", "intermediate_values", "constraints"):
        assert [getattr(t, name) for t in after] == [getattr(t, name) for t in before]
    assert [t.value for t in after if t.state == TrialState.COMPLETE] == [
        t.value for t in before if t.state == TrialState.COMPLETE
    ]


def test_restore_runs_unfinished_trials_first_under_their_numbers():
    whole, resumed = Study().run(6), Study()
    unfinished = [Unfinished(number=n, params=whole.finished[n][1], values={}) for n in (2, 4)]
    resumed.search.restore_trials([whole.finished[n] for n in (0, 1, 3, 5)], unfinished)
    assert [resumed.ask()[1] for _ in range(3)] == [2, 4, 6]
    assert [resumed.configs[n] for n in (2, 4)] == [whole.configs[n] for n in (2, 4)]


def test_restore_of_unfinished_trials_keeps_the_values_they_had():
    whole, resumed = Study().run(1), Study()
    unfinished = Unfinished(number=0, params=whole.finished[0][1], values={1: 0.9, 2: 0.3})
    resumed.search.restore_trials([], [unfinished])
    trial_id, _ = resumed.ask()
    for epoch in (2, 3):  # a worker repeats the epoch after its last checkpoint
        resumed.search.on_trial_result(trial_id, resumed.result(epoch, 0.3))
    resumed.search.on_trial_complete(trial_id, resumed.result(4, 0.4))
    (told,) = resumed.study().trials
    assert (told.value, told.intermediate_values) == (0.9, {1: 0.9, 2: 0.3, 3: 0.3, 4: 0.4})


def test_restore_of_unfinished_balanced_trials_goes_to_their_choice():
    whole, resumed = Study(balance="regularizer").run(4), Study(balance="regularizer")
    unfinished = [Unfinished(number=3, params=whole.finished[3][1], values={})]
    resumed.search.restore_trials(whole.finished[:3], unfinished)
    assert resumed.ask()[1] == 3
    assert resumed.configs[3] == whole.configs[3]


def test_restore_leaves_only_the_trials_that_are_left():
    resumed = Study(num_trials=5)
    resumed.search.restore_trials(Study().run(4).finished, [])
    resumed.run(1)
    assert resumed.search.suggest("late") == Searcher.FINISHED


def test_sampler_of_a_number_does_not_depend_on_those_before():
    def draw(sampler):
        study = optuna.create_study(sampler=sampler)
        return study.ask().suggest_float("x", 0, 1)

    assert draw(make_sampler("tpe", 3, 7)) == draw(make_sampler("tpe", 3, 7))
    assert draw(make_sampler("tpe", 3, 7)) != draw(make_sampler("tpe", 3, 8))


def test_search_leaves_optunas_logging_as_it_was_and_says_nothing():
    records = []
    handler = logging.Handler()
    handler.emit = records.append
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.INFO)
    logging.getLogger("optuna").addHandler(handler)
    try:
        Study(balance="regularizer").run(12)
        assert (optuna.logging.get_verbosity(), records) == (optuna.logging.INFO, [])
    finally:
        logging.getLogger("optuna").removeHandler(handler)
        optuna.logging.set_verbosity(before)


def test_search_gives_tunes_pickle_nothing():
    assert pickle.loads(pickle.dumps(Study().run(1).search)).__dict__ == {}


def test_trial_config_of_a_proposal_has_the_study_s_epochs_and_seed():
    study = Study(base=TrialConfig(max_epochs=EPOCHS, seed=5)).run(2)
    assert {(c["max_epochs"], c["seed"]) for c in study.configs.values()} == {(EPOCHS, 5)}


def test_trial_whose_gpu_was_lost_comes_again_as_it_was():
    study = Study(num_trials=1)
    study.search.gpus_per_trial = 1.0
    first, number = study.ask()
    config = study.configs[number]
    study.go(first, [0.3], then="GPU lost")
    again, same = study.ask()
    assert (same, study.gpus, study.configs[number]) == (number, 1.0, config)
    study.go(again, [0.3, 0.4, 0.5, 0.6])
    assert study.search.suggest("more") == Searcher.FINISHED


def test_trial_whose_part_of_a_gpu_was_too_small_comes_again_with_twice_as_much():
    study = Study(num_trials=2)
    study.search.gpus_per_trial = 0.25
    first, number = study.ask()
    config = study.configs[number]
    study.go(first, [0.3], then="out of memory")
    again, same = study.ask()
    assert (same, study.gpus, study.configs[number]) == (number, 0.5, config)
    study.go(again, [0.3, 0.4], then="out of memory")
    again, same = study.ask()
    assert (same, study.gpus) == (number, 1.0)
    other, _ = study.ask()
    assert study.gpus == 0.25
    assert study.search.suggest("more") is None, "the second trial may still come back"
    study.go(other, [0.1] * EPOCHS)
    assert study.search.suggest("more") is None, "it may lose its GPU"
    study.go(again, [0.3, 0.4, 0.5, 0.6])
    assert study.search.suggest("more") == Searcher.FINISHED


def test_optuna_is_not_told_that_a_small_part_of_a_gpu_is_a_bad_configuration():
    study = Study(num_trials=1)
    study.search.gpus_per_trial = 0.5
    first, _ = study.ask()
    study.go(first, [], then="out of memory")
    again, _ = study.ask()
    study.go(again, [0.3, 0.4, 0.5, 0.6])
    trials = study.study().trials
    assert [trial.state for trial in trials] == [TrialState.FAIL, TrialState.COMPLETE]
    assert trials[0].params == trials[1].params


def test_grid_runs_the_starting_points_alone_and_in_their_order():
    start = ({"regularizer": "delta", "lr": 0.01, "alpha": 1.0}, {"regularizer": "l2", "lr": 0.02, "_recipe": "long"})
    study = Study(sampler="grid", start=start, balance="regularizer", num_trials=2)
    asked = [study.ask() for _ in range(2)]
    assert [number for _, number in asked] == [0, 1]
    assert [study.configs[n]["lr"] for n in range(2)] == [0.01, 0.02]


def test_optuna_is_not_told_after_a_resume_that_a_lost_trial_is_a_bad_configuration():
    whole, resumed = Study().run(1), Study()
    number, params, _, values = whole.finished[0]
    resumed.search.restore_trials([(number, params, LOST, values)], [])
    (trial,) = resumed.study().trials
    assert trial.state == TrialState.FAIL
    assert trial.user_attrs == {NUMBER: number}


def test_storage_holds_what_optuna_was_told(tmp_path):
    storage = open_storage(str(tmp_path / "studies.journal"))
    study = Study(balance="regularizer", name="mine", storage=storage).run(6)
    there = {name: optuna.load_study(study_name=name, storage=storage) for name in ("mine-l2", "mine-delta")}
    numbers = sorted(trial.user_attrs[NUMBER] for each in there.values() for trial in each.trials)
    assert numbers == list(range(len(study.finished)))


@pytest.mark.parametrize("then", ["complete", "diverged"])
def test_search_learns_every_epoch_of_a_report_of_several(then):
    told = []
    for bundled in (False, True):
        study = Study(sampler="random")
        trial_id, _ = study.ask()
        rows = [study.result(epoch, score) for epoch, score in enumerate((0.2, 0.6, 0.4, 0.5), 1)]
        for reports in [rows[:2], rows[2:]] if bundled else [[each] for each in rows]:
            result = reports[-1] | {"epochs": reports}
            if reports[-1] is not rows[-1]:
                study.search.on_trial_result(trial_id, result)
            elif then == "diverged":
                result = TrialOutcome(kind=then, error="it broke").to_result(result)
                study.search.on_trial_complete(trial_id, result)
            else:
                study.search.on_trial_complete(trial_id, result)
        (trial,) = study.study().trials
        told.append((trial.intermediate_values, trial.state, trial.constraints))
        assert len(trial.intermediate_values) == 4
    assert told[0] == told[1]


def test_search_takes_the_value_of_an_epoch_that_was_trained_again():
    """On a GPU it may be another; the tables have the later one, and so has a resume."""
    study = Study(sampler="random")
    trial_id, _ = study.ask()
    study.search.on_trial_result(trial_id, study.result(1, 0.9))
    for epoch in range(1, EPOCHS):
        study.search.on_trial_result(trial_id, study.result(epoch, 0.5))
    study.search.on_trial_complete(trial_id, study.result(EPOCHS, 0.5))
    assert study.study().trials[0].value == study.sign * 0.5
