"""Which trials go on: Tune's ASHA, method by method, with a state that a resume rebuilds."""

from types import SimpleNamespace

import numpy as np
import pytest
from ray.tune.schedulers import AsyncHyperBandScheduler, TrialScheduler

from delta_tune.search.asha import Rungs, rung_epochs
from delta_tune.search.optuna_search import NUMBER, OUTCOME

STOP, CONTINUE = TrialScheduler.STOP, TrialScheduler.CONTINUE


def rungs(metric="val_accuracy", max_epochs=12, grace_period=1, reduction_factor=3, group_of=lambda method: method):
    return Rungs(
        metric=metric,
        max_epochs=max_epochs,
        grace_period=grace_period,
        reduction_factor=reduction_factor,
        group_of=group_of,
    )


def trial(number, regularizer="delta", session=1):
    return SimpleNamespace(trial_id=f"{session}-{number}", config={NUMBER: number, "regularizer": regularizer})


def row(epoch, score, metric="val_accuracy", **more):
    return {"epoch": epoch, metric: score, **more}


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
            number = t.config[NUMBER]
            found[number, epoch] = scheduler.on_trial_result(None, t, row(epoch, scores[number, epoch - 1], metric))
            if found[number, epoch] == STOP:
                alive.remove(t)
    return found


def random_scores(trials, epochs, seed=0):
    return np.random.default_rng(seed).uniform(size=(trials, epochs))


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
        scheduler = Rungs(metric="val_accuracy", max_epochs=12, grace_period=1, reduction_factor=3, num_val=100)
        assert scheduler.on_trial_result(None, trial(0), row(1, 0.8)) == CONTINUE
        assert scheduler.on_trial_result(None, trial(1), row(1, score)) == decision


def test_rungs_of_a_loss_cut_as_tunes_own():
    scheduler = Rungs(metric="val_loss", max_epochs=12, grace_period=1, reduction_factor=3, num_val=100)
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
    result = row(2, float("nan"), **{OUTCOME: outcome})
    assert scheduler.on_trial_result(None, trial(0, regularizer), result) == STOP
    assert not scheduler.pruned


def test_rungs_do_not_take_the_score_of_a_bad_end():
    scores = random_scores(6, 12)
    alone = decisions(rungs(), [trial(n) for n in range(6)], scores)
    scheduler = rungs()
    scheduler.on_trial_result(None, trial(99), row(1, 1.0, **{OUTCOME: "diverged"}))
    assert decisions(scheduler, [trial(n) for n in range(6)], scores) == alone


@pytest.mark.parametrize("finished", [1, 5, 9])
def test_rungs_after_replay_decide_as_the_uninterrupted_run(finished):
    scores = random_scores(20, 12)
    whole, resumed, later = rungs(), rungs(), range(finished, 20)
    for number in range(finished):
        rows = decisions(whole, [trial(number)], scores)
        resumed.replay("delta", number, [row(epoch, scores[number, epoch - 1]) for _, epoch in rows])
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
        resumed.replay("delta", number, [row(epoch, rising[number, epoch - 1]) for epoch in range(1, done + 1)])
    noisy = random_scores(4, 12, seed=1)
    expected = decisions(whole, [trial(n) for n in range(4)], noisy, first=done + 1)
    assert decisions(resumed, [trial(n, session=2) for n in range(4)], noisy, first=done + 1) == expected


def test_rungs_replay_tells_whom_the_last_epoch_stopped():
    scheduler = rungs()
    assert not scheduler.replay("delta", 0, [row(1, 0.9)])
    assert scheduler.replay("delta", 1, [row(1, 0.1)])
    assert not scheduler.replay("delta", 2, [row(1, 0.95), row(2, 0.1)]), "epoch 2 is no rung"


def test_rungs_replay_of_frozen_features_changes_nothing():
    scheduler = rungs()
    scheduler.replay("l2_fe", 0, [row(1, 1.0)])
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
