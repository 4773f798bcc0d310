"""The first model fitted to train and validation."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.studies import OfOneBackbone

from delta_tune.config import StudyConfig, TrialConfig
from delta_tune.data.resampling import merge_val_into_train
from delta_tune.inference.model import load
from delta_tune.results.layout import CONFIG_FILE
from delta_tune.results.study_record import StudyRecord
from delta_tune.results.tables import StudyTables
from delta_tune.study.all_images import fit_to_all_images, scores_to_beat
from delta_tune.study.best_model import save_searched
from delta_tune.training.trial import run_trial
from delta_tune.training.workplace import ThisProcess

PROBE = TrialConfig(regularizer="linear_probe", max_epochs=1)


class Fitted(OfOneBackbone):
    """A study whose first model has been scored."""

    def __init__(self, task, folder, **settings):
        self.task, self.folder, self.mirror = task.on(task.dataset), folder, None
        self.config, self.record = StudyConfig(**settings), StudyRecord({})
        self.tables, self.progress = StudyTables(folder, "val_accuracy"), SimpleNamespace(say=lambda text: None)
        self.tables.add(0, PROBE, {}, {})
        run_trial(self.task, PROBE, lambda row: self.tables.report(0, row), checkpoint=folder / "checkpoints" / "00000")
        self.tables.finish(0, "completed")

    def save_record(self):
        pass

    @property
    def model(self):
        return json.loads((self.folder / "best" / CONFIG_FILE).read_text())


def test_model_is_the_classifier_of_all_images(task, tmp_path):
    study = Fitted(task, tmp_path)
    fit_to_all_images(study, 0, ThisProcess())
    alone = run_trial(task.on(merge_val_into_train(task.dataset)), PROBE).model_state
    found = load(tmp_path / "best").network.state_dict()
    assert all(torch.allclose(found[name], value, atol=1e-4) for name, value in alone.items())
    assert study.record.has_seen_val


def test_its_score_is_that_of_the_classifier_of_train(task, tmp_path):
    study = Fitted(task, tmp_path)
    fit_to_all_images(study, 0, ThisProcess())
    row = study.tables.best_row(0)
    scores = {name: value for name, value in row.items() if name.startswith("val_") and value is not None}
    assert study.model["metrics"] == scores
    assert study.model["fitted_to"] == len(task.dataset.train) + len(task.dataset.val)


def test_train_that_is_small_on_purpose_stays_alone(task, tmp_path):
    fit_to_all_images(Fitted(task, tmp_path, train_per_class=5), 0, ThisProcess())
    assert not (tmp_path / "best").exists()


def test_classifier_of_a_sample_is_not_fitted_again(task, tmp_path):
    study = Fitted(task, tmp_path)
    study.tables.note_images(0, 10, None)
    fit_to_all_images(study, 0, ThisProcess())
    assert not (tmp_path / "best").exists()


@pytest.mark.parametrize("metric", ["val_accuracy", "val_loss"])
def test_more_images_are_worth_a_part_of_the_errors_and_a_standard_error(metric):
    found = scores_to_beat({"val_accuracy": 0.6, "val_loss": 1.0}, metric, 2.0, 100)
    expected = 1 - 0.4 * 2**-0.2
    assert found["val_loss"] == pytest.approx(np.exp(-0.2 * np.log(2)))
    to_beat = expected + np.sqrt(expected * (1 - expected)) / 10
    assert found.get("val_accuracy", 0.6) == pytest.approx(to_beat if metric == "val_accuracy" else 0.6)


def test_score_of_as_many_images_is_to_be_beaten_as_it_is():
    scores = {"val_accuracy": 0.6, "val_loss": 1.0}
    assert scores_to_beat(scores, "val_accuracy", 1.0, 100) == pytest.approx(scores)


@pytest.mark.parametrize(("gain", "model"), [(0.0, "trial 0, fitted"), (0.2, "trial 1")])
def test_trial_must_be_better_by_what_the_images_are_worth(task, tmp_path, gain, model):
    study = Fitted(task, tmp_path)
    study.tables.epochs[0][0]["val_accuracy"] = 0.6
    fit_to_all_images(study, 0, ThisProcess())
    config = TrialConfig(regularizer="l2", head_start="random", batch_size=8, max_epochs=1)
    study.tables.add(1, config, {}, {})
    report = lambda row: study.tables.report(1, row | {"val_accuracy": 0.61 + gain})  # noqa: E731
    run_trial(study.first_task, config, report, checkpoint=tmp_path / "checkpoints" / "00001")
    study.tables.finish(1, "completed")
    save_searched(study)
    assert study.record.model.startswith(model)
