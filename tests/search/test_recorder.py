"""What is kept on disk of trials that are over, and how a run ends."""

from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest

from delta_tune.config import TrialConfig
from delta_tune.console.progress import Progress
from delta_tune.results.layout import BEST_FILE, CHECKPOINTS, ERROR_FILE, TRIALS_FILE, trial_name
from delta_tune.results.tables import EPOCH_COLUMNS, StudyTables
from delta_tune.search.asha import Rungs
from delta_tune.search.messages import GPUS, NUMBER, OUTCOME
from delta_tune.search.recorder import Recorder


@pytest.fixture
def recorder(tmp_path):
    rungs = Rungs(metric="val_accuracy", max_epochs=1, grace_period=1, reduction_factor=2)
    return Recorder(StudyTables(tmp_path, "val_accuracy"), rungs, Progress(verbose=0), 9)


def begin(recorder, number, score):
    """A trial with one epoch and a checkpoint; Tune's trial."""
    tables = recorder._tables
    tables.add(number, TrialConfig(), {}, {})
    tables.report(number, dict.fromkeys(EPOCH_COLUMNS, 0.5) | {"epoch": 1, "val_accuracy": score})
    folder = tables.folder / CHECKPOINTS / trial_name(number)
    folder.mkdir(parents=True)
    for name in (BEST_FILE, ERROR_FILE, "resume.json"):
        (folder / name).touch()
    return SimpleNamespace(trial_id=str(number), config={NUMBER: number}, last_result={"epoch": 1})


def kept(recorder):
    folder = recorder._tables.folder / CHECKPOINTS
    return {int(each.name): sorted(file.name for file in each.iterdir()) for each in folder.iterdir()}


def end(recorder, trial, **result):
    trial.last_result = {**trial.last_result, **result}
    recorder.on_trial_complete(0, [], trial)


def test_recorder_keeps_the_best_weights_of_the_leader_alone(recorder):
    seen = []
    for number, score in enumerate((0.5, 0.4, 0.7, 0.6)):
        end(recorder, begin(recorder, number, score))
        seen.append(kept(recorder))
    assert seen == [{0: [BEST_FILE]}, {0: [BEST_FILE]}, {2: [BEST_FILE]}, {2: [BEST_FILE]}]


def test_recorder_keeps_the_traceback_of_a_failed_trial(recorder):
    end(recorder, begin(recorder, 0, 0.9), **{OUTCOME: "failed", "error": "it broke"})
    assert kept(recorder) == {0: [ERROR_FILE]}


def test_recorder_leaves_running_trials_alone(recorder):
    begin(recorder, 0, 0.9)
    end(recorder, begin(recorder, 1, 0.5))
    assert kept(recorder)[0] == [BEST_FILE, ERROR_FILE, "resume.json"]


def test_recorder_clears_what_a_killed_session_left_once(recorder, monkeypatch):
    for number in range(3):
        begin(recorder, number, 0.1)
        recorder._tables.finish(number, "pruned")
    looked, clear = [], recorder._clear
    monkeypatch.setattr(recorder, "_clear", lambda number: (looked.append(number), clear(number)))
    end(recorder, begin(recorder, 3, 0.5))
    assert kept(recorder) == {3: [BEST_FILE]}
    assert looked == [0, 1, 2, 3]
    end(recorder, begin(recorder, 4, 0.6))
    assert sorted(looked[4:]) == [3, 4], "it does not look through all trials again"


def test_recorder_writes_the_tables_at_the_end(recorder, tmp_path):
    end(recorder, begin(recorder, 0, 0.5))
    begin(recorder, 1, 0.5)
    assert recorder.stop_the_rest()
    assert pq.read_table(tmp_path / TRIALS_FILE)["state"].to_pylist() == ["completed", "stopped"]
    assert not recorder.stop_the_rest()


def test_recorder_tells_the_node_that_a_trial_goes_on_on(recorder):
    tables = recorder._tables
    tables.add(0, TrialConfig(), {}, {})
    trial = SimpleNamespace(trial_id="0", config={NUMBER: 0, GPUS: 0.0})
    seen = []
    for epoch, node in enumerate(("lost", "lost", "other"), 1):
        row = dict.fromkeys(EPOCH_COLUMNS, 0.5) | {"epoch": epoch, "node": node, "began": 5.0, "ended": 5.0 + epoch}
        recorder.on_trial_result(0, [], trial, row)
        seen.append(tables.trials[0]["node"])
    assert seen == ["lost", "lost", "other"]
    assert (tables.trials[0]["state"], tables.trials[0]["began"], tables.trials[0]["epochs"]) == ("running", 5.0, 3)
