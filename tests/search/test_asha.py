"""Which trials go on: ASHA, method by method, with a state that a resume rebuilds."""

from types import SimpleNamespace

import numpy as np
import optuna
import pytest
from ray.tune.schedulers import AsyncHyperBandScheduler, TrialScheduler

from delta_tune.config import TrialConfig
from delta_tune.search.asha import AshaScheduler, passes_rung, rung_epochs
from delta_tune.search.messages import TrialAssignment, TrialOutcome

DELTA = TrialConfig(regularizer="delta")
STOP, CONTINUE = TrialScheduler.STOP, TrialScheduler.CONTINUE


def by_method(config):
    return config.regularizer


def rungs(metric="val_accuracy", max_epochs=12, grace_period=1, reduction_factor=3, group_of=by_method):
    return AshaScheduler(
        metric=metric,
        max_epochs=max_epochs,
        grace_period=grace_period,
        reduction_factor=reduction_factor,
        group_of=group_of,
    )


def trial(number, regularizer="delta", session=1):
    assignment = TrialAssignment(number=number, hyperparameters={"regularizer": regularizer})
    return SimpleNamespace(trial_id=f"{session}-{number}", config=assignment.to_config())


def number_of(tune_trial):
    return TrialAssignment.from_config(tune_trial.config).number


def row(epoch, score, metric="val_accuracy"):
    return {"epoch": epoch, metric: score}


def bad_end(kind, last):
    return TrialOutcome(kind=kind, error="it broke").to_result(last)


def decisions(scheduler, trials, scores, metric="val_accuracy", first=1):
    """Trials in lockstep from epoch `first` on, each until it is stopped.

    Args:
        scores: (trials, epochs).

    Returns:
        (number, epoch) → decision.
    """
    found, alive = {}, list(trials)
    for epoch in range(first, scores.shape[1] + 1):
        for t in list(alive):
            number = number_of(t)
            found[number, epoch] = scheduler.on_trial_result(None, t, row(epoch, scores[number, epoch - 1], metric))
            if found[number, epoch] == STOP:
                alive.remove(t)
    return found


def random_scores(trials, epochs, seed=0):
    return np.random.default_rng(seed).uniform(size=(trials, epochs))


def tunes_decisions(scores, factor):
    """Whether each trial passes a rung at epoch 1, as Tune decides."""
    tune = AsyncHyperBandScheduler(time_attr="epoch", metric="m", mode="max", max_t=9, reduction_factor=factor)
    passed = []
    for number, score in enumerate(scores):
        tune_trial = SimpleNamespace(trial_id=str(number))
        tune.on_trial_add(None, tune_trial)
        passed.append(tune.on_trial_result(None, tune_trial, {"epoch": 1, "m": score}) == CONTINUE)
    return passed


def optunas_decisions(scores, factor):
    """The same, as Optuna decides."""
    pruner = optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=factor)
    study = optuna.create_study(direction="maximize", pruner=pruner)
    passed = []
    for score in scores:
        optunas_trial = study.ask()
        optunas_trial.report(score, 1)
        passed.append(not optunas_trial.should_prune())
    return passed


def our_decisions(scores, factor):
    return [passes_rung(score, scores[:number], factor) for number, score in enumerate(scores)]


SEQUENCES = [list(np.random.default_rng(seed).permutation(30) / 30) for seed in range(10)]


@pytest.fixture
def quiet_optuna():
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    yield
    optuna.logging.set_verbosity(before)


@pytest.mark.parametrize("scores", SEQUENCES)
@pytest.mark.parametrize("factor", [2, 2.5, 3, 4])
def test_rule_is_that_of_tune(scores, factor):
    ours = our_decisions(scores, factor)
    assert ours == tunes_decisions(scores, factor)
    assert {True, False} <= set(ours)


@pytest.mark.parametrize("scores", SEQUENCES)
@pytest.mark.parametrize("factor", [2, 3, 4])
def test_rule_lets_pass_all_that_optuna_promotes(scores, factor, quiet_optuna):
    # Optuna promotes the best ⌊n / factor⌋ of the n trials up to this one; Tune interpolates among those before it.
    pairs = list(zip(our_decisions(scores, factor), optunas_decisions(scores, factor), strict=True))
    assert (False, True) not in pairs


@pytest.mark.parametrize("scores", SEQUENCES)
def test_rule_agrees_with_optuna_where_half_of_an_even_number_pass(scores, quiet_optuna):
    ours, optunas = our_decisions(scores, 2), optunas_decisions(scores, 2)
    assert ours[1::2] == optunas[1::2]


@pytest.mark.parametrize("decide", [our_decisions, tunes_decisions, optunas_decisions])
@pytest.mark.parametrize("factor", [2, 3, 4])
def test_rules_all_promote_the_best_so_far_and_stop_the_worst(decide, factor, quiet_optuna):
    for scores in SEQUENCES:
        for number, passed in enumerate(decide(scores, factor)):
            if scores[number] == max(scores[: number + 1]):
                assert passed
            elif scores[number] == min(scores[: number + 1]):
                assert not passed


@pytest.mark.parametrize(("metric", "mode"), [("val_accuracy", "max"), ("val_loss", "min")])
@pytest.mark.parametrize(("grace_period", "factor", "epochs"), [(1, 3, 12), (2, 2, 16), (1, 4, 20), (1, 2.5, 10)])
def test_rungs_of_one_method_decide_as_tunes_own(metric, mode, grace_period, factor, epochs):
    scores = random_scores(20, epochs)
    plain = AsyncHyperBandScheduler(
        time_attr="epoch", metric=metric, mode=mode, max_t=epochs, grace_period=grace_period, reduction_factor=factor
    )
    trials = [trial(n) for n in range(20)]
    for t in trials:
        plain.on_trial_add(None, t)
    ours = rungs(metric, epochs, grace_period, factor)
    expected = decisions(plain, trials, scores, metric)
    assert decisions(ours, trials, scores, metric) == expected
    assert STOP in expected.values()


def test_rungs_stop_the_worse_of_a_loss():
    scheduler = rungs("val_loss")
    first = scheduler.on_trial_result(None, trial(0), row(1, 0.5, "val_loss"))
    assert (first, scheduler.on_trial_result(None, trial(1), row(1, 0.9, "val_loss"))) == (CONTINUE, STOP)


def test_rungs_let_pass_what_the_images_cannot_tell_from_the_cut():
    # A rung of 0.8 and, of 100 images: their standard error is 0.04.
    for score, decision in ((0.77, CONTINUE), (0.75, STOP)):
        scheduler = AshaScheduler(metric="val_accuracy", max_epochs=12, grace_period=1, reduction_factor=3, num_val=100)
        assert scheduler.on_trial_result(None, trial(0), row(1, 0.8)) == CONTINUE
        assert scheduler.on_trial_result(None, trial(1), row(1, score)) == decision


def test_rungs_of_a_loss_cut_as_tunes_own():
    scheduler = AshaScheduler(metric="val_loss", max_epochs=12, grace_period=1, reduction_factor=3, num_val=100)
    assert scheduler.on_trial_result(None, trial(0), row(1, 0.5, "val_loss")) == CONTINUE
    assert scheduler.on_trial_result(None, trial(1), row(1, 0.501, "val_loss")) == STOP


def test_rungs_are_shared_by_all_methods_unless_they_are_in_groups():
    scores = random_scores(8, 12)
    mixed = [trial(n, ("delta", "l2")[n % 2]) for n in range(8)]
    assert decisions(rungs(group_of=None), mixed, scores) == decisions(rungs(), [trial(n) for n in range(8)], scores)


def test_rungs_of_a_method_do_not_see_the_others():
    scores = random_scores(8, 12)
    alone = decisions(rungs(), [trial(n) for n in range(8)], scores)
    scheduler, good = rungs(), np.ones((8, 12))
    decisions(scheduler, [trial(n, "l2") for n in range(8)], good)
    assert decisions(scheduler, [trial(n) for n in range(8)], scores) == alone


def test_rungs_never_stop_frozen_features_before_their_last_epoch():
    found = decisions(rungs(), [trial(n, "l2_fe") for n in range(12)], random_scores(12, 12))
    assert {epoch for (_, epoch), decision in found.items() if decision == STOP} == {12}


def test_rungs_ask_between_their_epochs_nothing():
    found = decisions(rungs(), [trial(n) for n in range(12)], random_scores(12, 12))
    assert {epoch for (_, epoch), decision in found.items() if decision == STOP} <= {1, 3, 9, 12}


def test_rungs_note_whom_they_stopped():
    scheduler = rungs()
    found = decisions(scheduler, [trial(n) for n in range(12)], random_scores(12, 12))
    stopped = {number for (number, epoch), decision in found.items() if decision == STOP and epoch < 12}
    assert scheduler.pruned == {f"1-{number}" for number in stopped}
    assert stopped


def test_rungs_last_epoch_ends_a_trial_that_does_not_count_as_pruned():
    scheduler = rungs(max_epochs=4)
    assert scheduler.on_trial_result(None, trial(0), row(4, 0.5)) == STOP
    assert not scheduler.pruned


@pytest.mark.parametrize("regularizer", ["delta", "l2_fe"])
@pytest.mark.parametrize("outcome", ["diverged", "failed"])
def test_rungs_bad_end_stops_a_trial_that_does_not_count_as_pruned(regularizer, outcome):
    scheduler = rungs()
    result = bad_end(outcome, row(2, float("nan")))
    assert scheduler.on_trial_result(None, trial(0, regularizer), result) == STOP
    assert not scheduler.pruned


def test_rungs_do_not_take_the_score_of_a_bad_end():
    scores = random_scores(6, 12)
    alone = decisions(rungs(), [trial(n) for n in range(6)], scores)
    scheduler = rungs()
    scheduler.on_trial_result(None, trial(99), bad_end("diverged", row(1, 1.0)))
    assert decisions(scheduler, [trial(n) for n in range(6)], scores) == alone


@pytest.mark.parametrize("finished", [1, 5, 9])
def test_rungs_after_replay_decide_as_the_uninterrupted_run(finished):
    scores = random_scores(20, 12)
    whole, resumed, later = rungs(), rungs(), range(finished, 20)
    for number in range(finished):
        rows = decisions(whole, [trial(number)], scores)
        resumed.replay(DELTA, number, [row(epoch, scores[number, epoch - 1]) for _, epoch in rows])
    assert decisions(resumed, [trial(n, session=2) for n in later], scores) == decisions(
        whole, [trial(n) for n in later], scores
    )


@pytest.mark.parametrize("done", [1, 2, 4, 5])
def test_rungs_after_replay_carry_on_with_an_unfinished_trial(done):
    # Tune gives it another id; a rung that it has passed must not ask it, nor count it, a second time.
    rising = np.linspace(0.3, 0.9, 12)[None] + np.linspace(0, 0.05, 4)[:, None]
    whole, resumed = rungs(), rungs()
    decisions(whole, [trial(n) for n in range(4)], rising[:, :done])
    for number in range(4):
        resumed.replay(DELTA, number, [row(epoch, rising[number, epoch - 1]) for epoch in range(1, done + 1)])
    noisy = random_scores(4, 12, seed=1)
    expected = decisions(whole, [trial(n) for n in range(4)], noisy, first=done + 1)
    assert decisions(resumed, [trial(n, session=2) for n in range(4)], noisy, first=done + 1) == expected


def test_rungs_replay_tells_whom_the_last_epoch_stopped():
    scheduler = rungs()
    assert not scheduler.replay(DELTA, 0, [row(1, 0.9)])
    assert scheduler.replay(DELTA, 1, [row(1, 0.1)])
    assert not scheduler.replay(DELTA, 2, [row(1, 0.95), row(2, 0.1)]), "epoch 2 is no rung"


def test_rungs_replay_of_frozen_features_changes_nothing():
    scheduler = rungs()
    scheduler.replay(TrialConfig(regularizer="l2_fe"), 0, [row(1, 1.0)])
    assert scheduler.on_trial_result(None, trial(1), row(1, 0.1)) == CONTINUE


def test_rungs_repeated_epoch_is_counted_once():
    scheduler = rungs(reduction_factor=2)
    for _ in range(9):
        scheduler.on_trial_result(None, trial(0), row(1, 0.1))
    scheduler.on_trial_result(None, trial(1), row(1, 0.9))
    assert scheduler.on_trial_result(None, trial(2), row(1, 0.4)) == STOP  # below the median of 0.1 and 0.9


@pytest.mark.parametrize(
    ("max_epochs", "grace_period", "factor", "expected"),
    [
        (12, 1, 3, [1, 3, 9]),
        (9, 1, 3, [1, 3]),
        (10, 1, 3, [1, 3, 9]),
        (16, 2, 2, [2, 4, 8]),
        (20, 1, 4, [1, 4, 16]),
        (10, 1, 2.5, [1, 3, 7]),
        (7, 1, 2.5, [1, 3]),
        (4, 1, 1.2, [1, 2, 3]),
        (5, 5, 3, []),
        (1, 1, 3, []),
    ],
)
def test_rung_epochs_are_those_below_the_last(max_epochs, grace_period, factor, expected):
    assert rung_epochs(max_epochs, grace_period, factor) == expected


@pytest.mark.parametrize(("grace_period", "factor", "epochs"), [(1, 3, 12), (2, 2, 16), (1, 2.5, 10), (3, 3, 30)])
def test_rung_epochs_are_where_tunes_own_asks(grace_period, factor, epochs):
    plain = AsyncHyperBandScheduler(
        time_attr="epoch", metric="m", mode="max", max_t=epochs, grace_period=grace_period, reduction_factor=factor
    )
    leader = SimpleNamespace(trial_id="leader")
    plain.on_trial_add(None, leader)
    for epoch in range(1, epochs):
        plain.on_trial_result(None, leader, {"epoch": epoch, "m": 1.0})
    stopped = set()
    for worse_at in range(1, epochs):
        follower = SimpleNamespace(trial_id=f"worse at {worse_at}")
        plain.on_trial_add(None, follower)
        for epoch in range(1, worse_at + 1):
            result = {"epoch": epoch, "m": 0.0 if epoch == worse_at else 1.0}
            if plain.on_trial_result(None, follower, result) == STOP:
                stopped.add(epoch)
    assert sorted(stopped) == rung_epochs(epochs, grace_period, factor)


@pytest.mark.parametrize(("score", "decision"), [(0.5, STOP), (0.9, CONTINUE)])
def test_rungs_decide_on_several_epochs_in_a_report_as_on_each_alone(score, decision):
    rows = [row(1, 0.9), row(2, 0.1), row(3, score)]
    for reports in (rows, [rows[-1] | {"epochs": rows}]):
        scheduler = rungs()
        decisions(scheduler, [trial(0)], np.full((1, 3), 0.8))
        assert [scheduler.on_trial_result(None, trial(1), each) for each in reports][-1] == decision


def test_rungs_are_not_told_twice_of_a_trial_that_begins_again():
    scheduler = rungs()
    decisions(scheduler, [trial(0), trial(1)], np.array([[0.9, 0.9, 0.9], [0.95, 0.95, 0.95]]))
    again = [row(epoch, 0.1) for epoch in (1, 2, 3)]
    assert scheduler.on_trial_result(None, trial(1), again[-1] | {"epochs": again}) == CONTINUE
    assert scheduler.on_trial_result(None, trial(2), row(1, 0.92)) == STOP, "compared with 0.95, not with 0.1"


def test_rungs_of_a_report_that_ends_a_trial_count_for_others():
    scheduler = rungs(max_epochs=4)
    rows = [row(epoch, 0.8) for epoch in range(1, 5)]
    assert scheduler.on_trial_result(None, trial(0), rows[-1] | {"epochs": rows}) == STOP
    assert not scheduler.pruned
    assert scheduler.on_trial_result(None, trial(1), row(1, 0.1)) == STOP
