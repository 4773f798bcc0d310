"""The folder `best/` while a study runs."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
from types import SimpleNamespace

import pytest
from helpers.studies import OfOneBackbone

from delta_tune.config import LOSS_PARTS, StudyConfig, TrialConfig
from delta_tune.inference.model import load
from delta_tune.results.columns import SCORES
from delta_tune.results.layout import CONFIG_FILE, RESUME_FILE
from delta_tune.results.study_record import StudyRecord
from delta_tune.results.tables import StudyTables
from delta_tune.search.messages import TrialAssignment
from delta_tune.search.recorder import Recorder
from delta_tune.study.best_model import follow_leader, save_searched
from delta_tune.training.checkpoint import Checkpoint
from delta_tune.training.trial import run_trial

CONFIG = TrialConfig(regularizer="l2", head_start="random", lr=0.05, batch_norm="train", batch_size=8, max_epochs=4)


class Running(OfOneBackbone):
    """A study in its search, without Ray.

    Attributes:
        finish: called with a completed trial's number and state.
    """

    def __init__(self, task, folder):
        self.task, self.folder, self.mirror = task, folder, None
        self.record, self.tables = StudyRecord({}), StudyTables(folder, "val_accuracy")
        self.config = StudyConfig(metric="val_accuracy")
        self.finish, self.said = self.tables.finish, []
        self.progress = SimpleNamespace(say=self.said.append, trial=lambda *args: None)

    def save_record(self):
        pass

    def train(self, number, config, stop_after=None, scores=None):
        """A trial that is completed, or stopped after an epoch as a search's end stops it."""
        tables, place = self.tables, self.folder / "checkpoints" / f"{number:05d}"
        tables.add(number, config, {}, {})

        def report(row):
            tables.report(number, row | ({"val_accuracy": scores[row["epoch"] - 1]} if scores else {}))
            if row["epoch"] == stop_after:
                raise KeyboardInterrupt

        try:
            run_trial(self.task, config, report, checkpoint=place)
        except KeyboardInterrupt:
            tables.finish(number, "stopped")
        else:
            self.finish(number, "completed")

    @property
    def model(self):
        return json.loads((self.folder / "best" / CONFIG_FILE).read_text())


@pytest.fixture
def study(task, tmp_path):
    return Running(task, tmp_path)


@pytest.fixture
def saved_each_epoch(monkeypatch):
    monkeypatch.setattr(Checkpoint, "due", property(lambda self: True))


def accuracy(folder, split):
    predicted = load(folder).predict(split.names)
    return sum(p.label == ("blue", "green", "red")[k] for p, k in zip(predicted, split.labels, strict=True)) / len(
        split
    )


def test_best_trial_becomes_the_model(study, task):
    study.train(1, CONFIG)
    follow_leader(study)
    assert (study.record.winner, study.record.model) == (1, "trial 1")
    assert accuracy(study.folder, task.dataset.val) == study.tables.best_row(1)["val_accuracy"]


def test_worse_trial_does_not_replace_the_model(study):
    study.train(1, CONFIG)
    follow_leader(study)
    study.tables.leader = None
    shutil.rmtree(study.folder / "checkpoints")
    study.tables.trials[1]["state"] = "pruned"
    study.train(2, dataclasses.replace(CONFIG, lr=1e-9, max_epochs=1))
    assert save_searched(study) == 1
    assert (study.record.model, study.model["trial"]) == ("trial 1", "00001")


def test_retrained_model_stays_while_the_search_goes_on(study):
    study.train(1, CONFIG)
    study.record.set_model(0, "trial 0 retrained on 54 images")
    follow_leader(study)
    assert study.record.model == "trial 0 retrained on 54 images"
    assert not (study.folder / "best").exists()


def test_copy_that_failed_is_made_at_the_end_of_the_next_trial(study):
    def lost(folder):
        study.mirror = None
        raise OSError("Connection reset by peer")

    recorder = Recorder(study.tables, SimpleNamespace(pruned=set()), study.progress, 3)
    recorder.on_new_leader = lambda: follow_leader(study)
    study.finish = lambda number, state: recorder._finish(number, state, None)
    study.train(0, dataclasses.replace(CONFIG, lr=1e-9, max_epochs=1), scores=[0.1])
    study.mirror = SimpleNamespace(fetch_folder=lost)
    study.train(1, CONFIG)
    assert (study.record.model, study.model["trial"], len(study.said)) == ("trial 0", "00000", 1)
    study.train(2, dataclasses.replace(CONFIG, lr=1e-9, max_epochs=1), scores=[0.1])
    assert (study.record.model, study.model["trial"], len(study.said)) == ("trial 1", "00001", 1)


@pytest.mark.usefixtures("saved_each_epoch")
def test_stopped_trial_whose_saved_state_is_damaged_is_said_and_left_out(study):
    study.train(1, TrialConfig(regularizer="linear_probe", max_epochs=1))
    study.tables.epochs[1][0]["val_accuracy"] = 0.1
    study.train(2, CONFIG, stop_after=3)
    (study.folder / "checkpoints" / "00002" / RESUME_FILE).write_text("{")
    assert save_searched(study) == 1
    assert study.said[0].startswith("Trial 2 cannot be the model: ")


@pytest.mark.usefixtures("saved_each_epoch")
def test_stopped_trial_that_is_better_becomes_the_model(study):
    study.train(1, TrialConfig(regularizer="linear_probe", max_epochs=1))
    study.tables.epochs[1][0]["val_accuracy"] = 0.1
    study.train(2, CONFIG, stop_after=3)
    assert save_searched(study) == 2
    kept = study.model
    assert study.record.model == "trial 2, stopped after epoch 2 of 4"
    assert kept["metrics"]["val_accuracy"] == study.tables.epochs[2][kept["epoch"] - 1]["val_accuracy"]


@pytest.mark.usefixtures("saved_each_epoch")
def test_stopped_trial_is_the_model_where_none_was_completed(study, task):
    study.train(1, CONFIG, stop_after=3)
    assert save_searched(study) == 1
    assert accuracy(study.folder, task.dataset.val) == study.model["metrics"]["val_accuracy"]


@pytest.mark.usefixtures("saved_each_epoch")
def test_trial_that_runs_is_the_model_once_it_is_better(study, task):
    study.train(1, TrialConfig(regularizer="linear_probe", max_epochs=1))
    study.tables.epochs[1][0]["val_accuracy"] = 0.1
    follow_leader(study)
    study.train(2, CONFIG, stop_after=3)
    study.tables.trials[2]["state"] = "running"
    follow_leader(study)
    kept = study.model
    assert study.record.model == f"trial 2, after epoch {kept['epoch']} of 4"
    assert accuracy(study.folder, task.dataset.val) == study.tables.epochs[2][kept["epoch"] - 1]["val_accuracy"]


@pytest.mark.usefixtures("saved_each_epoch")
def test_model_of_a_trial_that_was_pruned_later_is_not_replaced_by_a_worse_one(study):
    study.train(1, CONFIG, stop_after=3)
    study.tables.trials[1]["state"] = "running"
    follow_leader(study)
    kept = study.record.model
    study.tables.trials[1]["state"] = "pruned"
    study.train(2, dataclasses.replace(CONFIG, lr=1e-9, max_epochs=1), scores=[0.0])
    follow_leader(study)
    assert (study.record.winner, study.record.model) == (1, kept)


@pytest.mark.usefixtures("saved_each_epoch")
def test_weights_that_a_running_trial_replaces_meanwhile_are_left_for_the_next_time(study):
    study.train(1, CONFIG, stop_after=3)
    study.tables.trials[1]["state"] = "running"
    for weights in (study.folder / "checkpoints" / "00001").glob("best*.safetensors"):
        weights.unlink()
    follow_leader(study)
    assert study.record.winner is None


def test_report_that_is_better_than_the_leader_is_followed_and_others_are_not(study):
    recorder = Recorder(study.tables, SimpleNamespace(pruned=set()), study.progress, 3)
    told = []
    recorder.on_new_leader = lambda: told.append(study.tables.best_row(2)["val_accuracy"])
    recorder._following = SimpleNamespace(free=True, taken=contextlib.nullcontext)
    study.progress.epoch = lambda *args: None
    study.train(1, dataclasses.replace(CONFIG, lr=1e-9, max_epochs=1), scores=[0.5])
    study.tables.add(2, CONFIG, {}, {})
    trial = SimpleNamespace(config=TrialAssignment(number=2, task=0, hyperparameters=CONFIG.record()).to_config())
    for epoch, score in enumerate((0.4, 0.5, 0.7), start=1):
        row = study.tables.epochs[1][0] | {"epoch": epoch, "val_accuracy": score, "val_loss": 9.0, "ended": 0.0}
        recorder.on_trial_result(0, [], trial, {"node": "n", "began": 0.0, "epochs": [row]})
    assert told == [0.7]


def test_stopped_trial_without_a_saved_epoch_is_no_model(study):
    study.train(1, CONFIG, stop_after=1)
    assert save_searched(study) is None


def test_model_of_a_sample_is_replaced_by_any_completed_trial(study):
    study.train(1, CONFIG, scores=[0.9] * 4)
    study.tables.note_images(1, 9, 6)
    follow_leader(study)
    assert study.record.model == "trial 1, fitted to 9 of the training images"
    study.train(2, CONFIG, scores=[0.8] * 4)
    follow_leader(study)
    assert (study.record.model, study.model["trial"]) == ("trial 2", "00002")


def test_damaged_model_is_replaced(study):
    study.train(1, CONFIG)
    follow_leader(study)
    (study.folder / "best" / CONFIG_FILE).write_text("{")
    study.record.set_model(1, "trial 1, stopped after epoch 2 of 4")
    assert save_searched(study) == 1
    assert (study.record.model, study.model["trial"]) == ("trial 1", "00001")


def test_model_is_there_before_its_checkpoint_is_cleared(tmp_path):
    tables = StudyTables(tmp_path, "val_accuracy")
    silent = SimpleNamespace(trial=lambda *args: None, say=lambda text: None)
    recorder = Recorder(tables, SimpleNamespace(pruned=set()), silent, 2)
    told = []
    recorder.on_new_leader = lambda: told.append((tables.leader, sorted(p.name for p in places if p.exists())))
    places = [tmp_path / "checkpoints" / f"{number:05d}" for number in (0, 1)]
    row = dict.fromkeys(("train_loss", "val_loss", "lr", "seconds", "eval_seconds"), 0.5)
    for number, score in enumerate((0.5, 0.7)):
        places[number].mkdir(parents=True)
        (places[number] / "best.safetensors").touch()
        tables.add(number, CONFIG, {}, {})
        rest = dict.fromkeys((*LOSS_PARTS, *SCORES), 0.5)
        tables.report(number, {**row, **rest, "epoch": 1, "val_accuracy": score})
        assignment = TrialAssignment(number=number, task=0, hyperparameters=CONFIG.record())
        recorder.on_trial_complete(
            0, [], SimpleNamespace(config=assignment.to_config(), last_result={"epoch": 1}, trial_id=str(number))
        )
    assert told == [(0, ["00000"]), (1, ["00000", "00001"])]
    assert not (places[0] / "best.safetensors").exists()
