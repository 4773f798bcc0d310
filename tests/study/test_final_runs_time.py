"""What the final runs may take of a study's time, and what ends one of them."""

from __future__ import annotations

import math
import time
from types import SimpleNamespace

import pytest
from helpers.studies import OfOneBackbone
from ray.exceptions import RayTaskError, WorkerCrashedError

from delta_tune.cluster.failures import TooLittleMemoryError
from delta_tune.config import TrialConfig
from delta_tune.study import final_runs
from delta_tune.study.study import Study
from delta_tune.study.time_budget import TimeBudget

TRAIN, VAL = 80, 20
OF_A_WORKER = RayTaskError("_train", "a traceback", TooLittleMemoryError("the GPU's memory is too small"))


class Searched(OfOneBackbone):
    """A study whose search is over, on 80 and 20 images.

    Args:
        seconds: of training and scoring, of each trial with 10 epochs.
        left: of the time budget.
    """

    measuring_seconds = Study.measuring_seconds

    def __init__(self, *seconds, left=math.inf, runs=5, config=None):
        rows = {
            number: {"train_seconds": train, "eval_seconds": score, "epochs": 10, "config.regularizer": "l2"}
            for number, (train, score) in enumerate(seconds)
        }
        epochs = {number: [{"eval_seconds": score / 10}] * 10 for number, (_, score) in enumerate(seconds)}
        own = config or TrialConfig(regularizer="l2", max_epochs=10, head_start="random")
        self.tables = SimpleNamespace(
            trials=rows, searched=rows, epochs=epochs, config=lambda number: own, backbone=lambda number: None
        )
        self.task = SimpleNamespace(dataset=SimpleNamespace(train=range(TRAIN), val=range(VAL)))
        self.config = SimpleNamespace(final_runs=runs)
        self.budget = TimeBudget(None if left == math.inf else left, spent=0, began=time.time())


def fit(study, *racers, slots=1):
    session = SimpleNamespace(resources=SimpleNamespace(slots=slots))
    return final_runs.runs_that_fit(study, session, racers)


def test_run_is_expected_to_take_its_trial_s_time_for_nine_tenths_of_all_images():
    assert final_runs.run_seconds(Searched((70, 10)), 0) == pytest.approx(80 * 90 / 80)


def test_run_that_begins_with_a_fitted_head_is_expected_to_read_all_images_before():
    config = TrialConfig(regularizer="l2", max_epochs=10, head_start="probe")
    # 1 s for 20 images in each epoch, so 5 s for all 100
    assert final_runs.run_seconds(Searched((70, 10), config=config), 0) == pytest.approx(80 * 90 / 80 + 5)


@pytest.mark.parametrize(("left", "slots", "count"), [(500, 1, 5), (300, 1, 3), (184, 1, 2), (175, 2, 4), (100, 1, 0)])
def test_as_many_runs_as_fit(left, slots, count):
    # A run takes 90 s, of which 1/20 may be missing
    assert fit(Searched((70, 10), left=left), 0, slots=slots) == (count, [0])


def test_rivals_race_only_if_all_runs_of_the_leader_fit_beside_them():
    assert fit(Searched((70, 10), (70, 10), left=590), 0, 1) == (5, [0])
    assert fit(Searched((70, 10), (70, 10), left=700), 0, 1) == (5, [0, 1])


def test_slots_that_wait_for_the_end_of_the_race_are_counted():
    # Four runs of the race side by side, then three: two rounds, though seven runs would fit into one
    assert fit(Searched((70, 10), (70, 10), left=100), 0, 1, slots=8) == (5, [0])
    assert fit(Searched((70, 10), (70, 10), left=190), 0, 1, slots=8) == (5, [0, 1])


def test_rivals_with_more_than_a_quarter_of_all_epochs_do_not_race():
    # 30 epochs of the search, 5 runs of 11.25 for the model, and 22.5 for each rival
    assert fit(Searched(*[(70, 10)] * 3), 0, 1, 2) == (5, [0, 1])
    assert fit(Searched(*[(70, 10)] * 12), 0, 1, 2) == (5, [0, 1, 2])


def test_the_race_of_a_study_without_a_time_budget_does_not_depend_on_the_clock():
    assert fit(Searched((7, 1), (700, 100)), 0, 1) == fit(Searched((700, 100), (7, 1)), 0, 1)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (WorkerCrashedError(), "failed: The worker died"),
        (OF_A_WORKER.as_instanceof_cause(), "failed: the GPU's memory is too small"),
    ],
)
def test_worker_that_dies_ends_its_run_and_no_more(monkeypatch, error, told):
    def get(reference):
        raise error

    monkeypatch.setattr(final_runs.ray, "get", get)
    assert final_runs.outcome("reference").startswith(told)


def test_error_of_the_code_ends_the_study(monkeypatch):
    def get(reference):
        raise ZeroDivisionError

    monkeypatch.setattr(final_runs.ray, "get", get)
    with pytest.raises(ZeroDivisionError):
        final_runs.outcome("reference")
