"""What is kept on disk of trials that are over, and how a run ends."""

from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
from ray.tune import TuneError

from delta_tune.config import TrialConfig, UserError
from delta_tune.console.progress import Progress
from delta_tune.results.columns import EPOCH_COLUMNS
from delta_tune.results.layout import BEST_FILE, CHECKPOINTS, ERROR_FILE, TRIALS_FILE, trial_name
from delta_tune.results.tables import StudyTables
from delta_tune.search.asha import AshaScheduler
from delta_tune.search.messages import EachEpoch, TrialAssignment, TrialOutcome, broken_twice, is_worker_death
from delta_tune.search.recorder import Recorder


class Mirror:
    """A mirror of a study that notes which folders are cleared there."""

    def __init__(self):
        self.cleared = []

    def discard(self, folder, kept):
        self.cleared.append(int(folder.name))


@pytest.fixture
def tables(tmp_path):
    return StudyTables(tmp_path, "val_accuracy")


@pytest.fixture
def mirror():
    return Mirror()


@pytest.fixture
def recorder(tables, mirror):
    scheduler = AshaScheduler(metric="val_accuracy", max_epochs=1, grace_period=1, reduction_factor=2)
    return Recorder(tables, scheduler, Progress(verbose=0), 9, mirror)


def tune_trial(number):
    config = TrialAssignment(number=number, hyperparameters={}).to_config()
    return SimpleNamespace(trial_id=str(number), config=config, last_result={"epoch": 1})


def begin(tables, number, score):
    """A trial with one epoch and a checkpoint; Tune's trial."""
    tables.add(number, TrialConfig(), {}, {})
    tables.report(number, dict.fromkeys(EPOCH_COLUMNS, 0.5) | {"epoch": 1, "val_accuracy": score})
    folder = tables.folder / CHECKPOINTS / trial_name(number)
    folder.mkdir(parents=True)
    for name in (BEST_FILE, ERROR_FILE, "resume.json"):
        (folder / name).touch()
    return tune_trial(number)


def kept(tables):
    folder = tables.folder / CHECKPOINTS
    return {int(each.name): sorted(file.name for file in each.iterdir()) for each in folder.iterdir()}


def end(recorder, trial, outcome=None):
    if outcome is not None:
        trial.last_result = outcome.to_result(trial.last_result)
    recorder.on_trial_complete(0, [], trial)


def test_recorder_keeps_the_best_weights_of_the_leader_alone(recorder, tables):
    seen = []
    for number, score in enumerate((0.5, 0.4, 0.7, 0.6)):
        end(recorder, begin(tables, number, score))
        seen.append(kept(tables))
    assert seen == [{0: [BEST_FILE]}, {0: [BEST_FILE]}, {2: [BEST_FILE]}, {2: [BEST_FILE]}]


def failing(recorder, *errors):
    """A recorder whose new leader cannot be saved for these reasons, one after another; what it said and was called."""
    said, calls, left = [], [], list(errors)
    recorder._progress.say = said.append

    def follow():
        calls.append(recorder._tables.leader)
        if left:
            raise left.pop(0)

    recorder.on_new_leader = follow
    return said, calls


@pytest.mark.parametrize("error", [OSError("Connection reset by peer"), UserError("resume.json is damaged")])
def test_leader_that_cannot_be_saved_neither_fails_its_trial_nor_is_forgotten(recorder, tables, error):
    said, calls = failing(recorder, error, error)
    for number, score in enumerate((0.5, 0.4, 0.3, 0.2)):
        end(recorder, begin(tables, number, score))
    assert {row["state"] for row in tables.trials.values()} == {"completed"}
    assert calls == [0, 0, 0], "again at the next trial's end, until it is saved"
    assert kept(tables) == {0: [BEST_FILE]}
    (sentence,) = said
    assert str(error) in sentence


def test_other_error_at_a_new_leader_ends_the_run_and_not_the_trial(recorder, tables):
    failing(recorder, error := RuntimeError("os error 28"))
    recorder.on_fault = (ends := []).append
    end(recorder, begin(tables, 0, 0.5))
    assert (ends, tables.trials[0]["state"]) == ([error], "completed")


def test_recorder_keeps_the_traceback_of_a_failed_trial(recorder, tables):
    end(recorder, begin(tables, 0, 0.9), TrialOutcome(kind="failed", error="it broke"))
    assert kept(tables) == {0: [ERROR_FILE]}


def test_recorder_leaves_running_trials_alone(recorder, tables):
    begin(tables, 0, 0.9)
    end(recorder, begin(tables, 1, 0.5))
    assert kept(tables)[0] == [BEST_FILE, ERROR_FILE, "resume.json"]


def test_recorder_clears_what_a_killed_session_left_once(recorder, tables, mirror):
    for number in range(3):
        begin(tables, number, 0.1)
        tables.finish(number, "pruned")
    end(recorder, begin(tables, 3, 0.5))
    assert kept(tables) == {3: [BEST_FILE]}
    assert mirror.cleared == [0, 1, 2, 3]
    end(recorder, begin(tables, 4, 0.6))
    assert sorted(mirror.cleared[4:]) == [3, 4], "it does not look through all trials again"


def test_recorder_writes_the_tables_at_the_end(recorder, tables, tmp_path):
    end(recorder, begin(tables, 0, 0.5))
    begin(tables, 1, 0.5)
    assert recorder.stop_the_rest()
    assert pq.read_table(tmp_path / TRIALS_FILE)["state"].to_pylist() == ["completed", "stopped"]
    assert not recorder.stop_the_rest()


@pytest.mark.parametrize("interrupted", [True, False])
def test_interrupt_is_one_although_the_time_is_over_too(recorder, tables, interrupted):
    begin(tables, 0, 0.5)
    recorder.interrupted = interrupted
    assert recorder.stop_the_rest(time_is_over=True) == interrupted


def test_recorder_tells_the_node_that_a_trial_goes_on_on(recorder, tables):
    tables.add(0, TrialConfig(), {}, {})
    trial = tune_trial(0)
    seen = []
    for epoch, node in enumerate(("lost", "lost", "other"), 1):
        row = dict.fromkeys(EPOCH_COLUMNS, 0.5) | {"epoch": epoch, "node": node, "began": 5.0, "ended": 5.0 + epoch}
        recorder.on_trial_result(0, [], trial, row)
        seen.append(tables.trials[0]["node"])
    assert seen == ["lost", "lost", "other"]
    assert (tables.trials[0]["state"], tables.trials[0]["began"], tables.trials[0]["epochs"]) == ("running", 5.0, 3)


def test_recorder_writes_a_row_for_each_epoch_of_a_report(recorder, tables):
    tables.add(0, TrialConfig(), {}, {})
    rows = [dict.fromkeys(EPOCH_COLUMNS, 0.25 * epoch) | {"epoch": epoch, "ended": 5.0 + epoch} for epoch in (1, 2, 3)]
    told = {"node": "n", "began": 5.0}
    recorder.on_trial_result(0, [], tune_trial(0), rows[1] | told | {"epochs": rows[:2]})
    assert recorder.standing.bought == 2
    recorder.on_trial_result(0, [], tune_trial(0), rows[2] | told | {"epochs": rows})
    assert [row["val_accuracy"] for row in tables.epochs[0]] == [0.25, 0.5, 0.75]
    assert (recorder.standing.bought, tables.trials[0]["ended"]) == (3, 8.0)


def test_recorder_writes_the_epochs_that_come_with_a_bad_end(recorder, tables):
    tables.add(0, TrialConfig(), {}, {})
    row = dict.fromkeys(EPOCH_COLUMNS, 0.5) | {"epoch": 1, "ended": 6.0}
    last = row | {"node": "n", "began": 5.0, "epochs": [row]}
    recorder.on_trial_result(0, [], tune_trial(0), TrialOutcome(kind="diverged", error="nan").to_result(last))
    assert len(tables.epochs[0]) == 1


def test_logger_is_told_of_each_epoch_of_a_report():
    heard = []

    class Logger:
        def on_trial_result(self, iteration, trials, trial, result):
            heard.append((result["training_iteration"], result["val_loss"], result["node"]))

    class Each(EachEpoch, Logger):
        pass

    rows = [{"epoch": epoch, "val_loss": 1 / epoch} for epoch in (4, 5)]
    Each().on_trial_result(0, [], None, rows[-1] | {"node": "n", "training_iteration": 2, "epochs": rows})
    assert heard == [(4, 0.25, "n"), (5, 0.2, "n")]


def lost(recorder):
    """The nodes whose GPU the recorder gave up, and why."""
    told = []
    recorder.on_lost_gpu = lambda node, why: told.append((node, why))
    return told


def on_gpu(trial, gpu="0"):
    trial.last_result |= {"node": "a", "gpu": gpu, "began": 0.0, "ended": 1.0}
    return trial


def test_recorder_gives_up_a_gpu_that_computes_nothing_and_the_trial_waits(recorder, tables):
    told = lost(recorder)
    end(recorder, on_gpu(begin(tables, 0, 0.5)), TrialOutcome(kind="GPU lost", error="GPU 0 of node a"))
    assert tables.trials[0]["state"] == "waiting"
    assert told == [("a", "GPU 0 of node a")]


def test_recorder_gives_up_a_gpu_under_which_trial_after_trial_breaks(recorder, tables):
    told = lost(recorder)
    for number in range(6):
        trial = on_gpu(begin(tables, number, 0.5), gpu="0" if number % 2 else "1")
        end(recorder, trial, TrialOutcome(kind="failed", error=broken_twice("an error")))
        assert len(told) == max(0, number - 3)
    assert "an error" in told[0][1]


def test_recorder_keeps_a_gpu_on_which_an_epoch_came_to_its_end_between(recorder, tables):
    told = lost(recorder)
    for number in range(5):
        trial = on_gpu(begin(tables, number, 0.5))
        if number == 2:
            row = dict.fromkeys(EPOCH_COLUMNS, 0.5) | trial.last_result | {"epoch": 2}
            recorder.on_trial_result(0, [], trial, row)
        end(recorder, trial, TrialOutcome(kind="failed", error=broken_twice("an error")))
        assert bool(told) == (number == 4)


def test_trial_that_ray_killed_for_its_node_s_memory_says_what_helps(recorder, tables):
    trial = begin(tables, 0, 0.5)
    killed = TuneError("Failure # 4\nTask was killed due to the node running low on memory.\nMemory on it was 15 GB")
    trial.get_error = lambda: killed
    recorder.on_trial_error(0, [], trial)
    error = tables.trials[0]["error"]
    assert is_worker_death(error)
    assert "the node's memory is too small" in error
    assert "--max-concurrent-trials" in error
