"""The first model: when it is fitted to a sample of the images, and what it leaves."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest
from helpers.studies import OfOneBackbone

from delta_tune.config import StudyConfig, TrialConfig
from delta_tune.data.resampling import sample_images
from delta_tune.results.layout import CHECKPOINTS, CONFIG_FILE
from delta_tune.results.study_record import StudyRecord
from delta_tune.results.tables import StudyTables
from delta_tune.study import first_model
from delta_tune.study.best_model import save_searched
from delta_tune.study.first_model import first_searched, fit_first_model, longest_pass, seconds_of_pass, spend_rest
from delta_tune.study.time_budget import TimeBudget
from delta_tune.training import measurements
from delta_tune.training.measurements import Measurements
from delta_tune.training.trial import run_trial
from delta_tune.training.workplace import ThisProcess


class Begun(OfOneBackbone):
    """A study whose data is read, on a Ray that is not needed here."""

    def __init__(self, task, folder, total=None):
        self.task, self.folder, self.mirror = task.on(task.dataset), folder, None
        self.config, self.configs = StudyConfig(), [TrialConfig(regularizer="delta_uniform")]
        self.record, self.tables = StudyRecord({}), StudyTables(folder, "val_accuracy")
        self.schedule = None
        self.budget, self.said = TimeBudget(total, spent=0.0, began=0.0), []
        self.progress = SimpleNamespace(say=self.said.append)

    def save_record(self):
        pass

    @property
    def sampled(self):
        return self.record.sample is not None

    @property
    def model(self):
        return json.loads((self.folder / "best" / CONFIG_FILE).read_text())


def on_all(task):
    """The model in words."""
    return f"trial 0, fitted to all {len(task.dataset.train) + len(task.dataset.val)} images"


@pytest.fixture(autouse=True)
def without_ray(monkeypatch):
    context = SimpleNamespace(get_node_id=lambda: "node")
    monkeypatch.setattr(first_model.ray, "get_runtime_context", lambda: context)


@pytest.fixture
def session():
    place = ThisProcess()
    return SimpleNamespace(
        measuring=SimpleNamespace(workplace=lambda: contextlib.nullcontext(place)),
        mirror=None,
        checkpoints=lambda folder: str(folder / CHECKPOINTS),
    )


@pytest.fixture
def slow(monkeypatch):
    """The pass over all images takes so many seconds."""

    def take(seconds):
        monkeypatch.setattr(first_model, "seconds_of_pass", lambda study, workplace: seconds)
        monkeypatch.setattr(first_model, "PER_CLASS", 2)

    return take


def test_first_model_is_trial_0_completed_and_in_best(task, tmp_path, session):
    study = Begun(task, tmp_path)
    fit_first_model(study, session)
    row = study.tables.trials[0]
    assert (row["config.regularizer"], row["state"], row["epochs"]) == ("linear_probe", "completed", 1)
    assert (study.record.winner, study.record.model, study.tables.leader) == (0, on_all(task), 0)
    alone = run_trial(task.on(task.dataset), TrialConfig(regularizer="linear_probe"))
    assert study.model["metrics"]["val_loss"] == alone.epochs[0]["val_loss"]
    assert set(study.first_task.measurements.mean_squares), "measured in the same pass"


def test_second_session_fits_no_second_model(task, tmp_path, session, monkeypatch):
    study = Begun(task, tmp_path)
    fit_first_model(study, session)
    monkeypatch.setattr(first_model, "run_trial", None)
    fit_first_model(study, session)
    assert len(study.tables.trials) == 1


def test_study_of_an_earlier_version_keeps_its_numbers(task, tmp_path, session):
    study = Begun(task, tmp_path)
    study.tables.add(0, TrialConfig(regularizer="l2"), {}, {})
    fit_first_model(study, session)
    assert first_searched(study.tables) == 0
    assert study.tables.trials[0]["config.regularizer"] == "l2"
    assert first_searched(StudyTables(tmp_path / "new", "val_accuracy")) == 1


def test_long_pass_begins_with_a_sample_and_ends_with_all_images(task, tmp_path, session, slow):
    slow(60.0)
    study, models = Begun(task, tmp_path), []
    study.record.set_model = lambda trial, model, epoch=None: models.append(model)
    fit_first_model(study, session)
    assert models[0].startswith("trial 0, fitted to ")
    assert models[1:] == ["trial 0", on_all(task)]
    assert not study.sampled
    alone = run_trial(task.on(task.dataset), TrialConfig(regularizer="linear_probe"))
    assert study.model["metrics"]["val_loss"] == alone.epochs[0]["val_loss"], "nothing of the sample stays"
    assert len(study.tables.epochs[0]) == 1


def test_pass_that_does_not_fit_into_the_budget_is_left_out(task, tmp_path, session, slow):
    slow(60.0)
    study = Begun(task, tmp_path, total=100.0)
    fit_first_model(study, session)
    assert study.sampled
    assert "train" not in study.first_task.measurements.features
    assert set(study.first_task.measurements.mean_squares), "of the sample"
    assert study.record.model == "trial 0, fitted to 6 of the training images"
    assert study.tables.trials[0]["state"] == "completed"
    assert any("images of train" in sentence for sentence in study.said)


@pytest.mark.parametrize(("seconds", "num_trials", "all_images"), [(20.0, 0, True), (60.0, 0, False), (20.0, 2, False)])
def test_time_that_no_trial_can_use_goes_into_all_images(
    task, tmp_path, session, slow, seconds, num_trials, all_images
):
    slow(seconds)
    study = Begun(task, tmp_path, total=100.0)
    fit_first_model(study, session)
    assert study.sampled
    of_sample = study.record.model
    study.schedule = SimpleNamespace(num_trials=num_trials)
    spend_rest(study, session)
    assert study.record.model == (on_all(task) if all_images else of_sample)
    assert study.sampled != all_images
    if all_images:
        alone = run_trial(task.on(task.dataset), TrialConfig(regularizer="linear_probe"))
        assert study.model["metrics"]["val_loss"] == alone.epochs[0]["val_loss"], "nothing of the sample stays"


def test_trials_begin_without_a_pass_that_does_not_fit_into_the_budget(task, tmp_path, session, slow, monkeypatch):
    slow(60.0)
    study = Begun(task, tmp_path, total=100.0)
    study.configs = [TrialConfig(regularizer=each, max_epochs=1) for each in ("l2", "l2_sp", "delta_uniform")]
    fit_first_model(study, session)
    monkeypatch.setattr(measurements, "measure_features", lambda *args: pytest.fail("a pass"))
    study.first_task.measurements.measure_source(study.configs, print, ThisProcess())
    assert run_trial(study.first_task, study.configs[0]).state == "completed"


def test_trials_on_frozen_features_read_all_images_of_a_sampled_study(task, tmp_path, session, slow):
    slow(60.0)
    study = Begun(task, tmp_path, total=100.0)
    fit_first_model(study, session)
    run_trial(study.first_task, TrialConfig(regularizer="l2_fe", max_epochs=1))
    assert len(study.first_task.measurements.features["train"]) == len(task.dataset.train)


def test_model_of_a_sample_is_scored_on_all_of_val_where_there_is_time(task, tmp_path, session, slow, monkeypatch):
    slow(60.0)
    study = Begun(task, tmp_path, total=100.0)
    fit_first_model(study, session)
    assert not study.tables.is_sampled(0)
    assert len(study.tables.epochs[0]) == 1
    short = Begun(task, tmp_path / "short", total=100.0)
    short.folder.mkdir()
    monkeypatch.setattr(first_model, "SHARE", 1e-9)
    fit_first_model(short, session)
    assert short.tables.is_sampled(0)
    assert short.tables.trials[0]["scored_on"] == 6


def test_interrupt_in_the_pass_over_all_images_leaves_the_model_of_the_sample(
    task, tmp_path, session, slow, monkeypatch
):
    slow(60.0)
    study = Begun(task, tmp_path)
    whole, measure = study.first_task.measurements, Measurements.measure_source

    def interrupted(self, *args):
        if self is whole:
            raise KeyboardInterrupt
        measure(self, *args)

    monkeypatch.setattr(Measurements, "measure_source", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fit_first_model(study, session)
    assert save_searched(study) == 0
    assert study.record.model == "trial 0, fitted to 9 of the training images"
    monkeypatch.setattr(Measurements, "measure_source", measure)
    study.tables.write()
    study.tables = StudyTables.read(tmp_path, "val_accuracy")
    slow(None)
    fit_first_model(study, session)
    assert (study.record.model, study.tables.leader) == (on_all(task), 0)


def test_resumed_study_that_is_short_of_time_still_is(task, tmp_path, session, slow, monkeypatch):
    slow(60.0)
    study, again = Begun(task, tmp_path, total=100.0), Begun(task, tmp_path, total=100.0)
    fit_first_model(study, session)
    again.record, again.tables = study.record, study.tables
    slow(None)
    monkeypatch.setattr(first_model, "run_trial", None)
    fit_first_model(again, session)
    first, second = study.first_task.measurements, again.first_task.measurements
    assert second.mean_squares == first.mean_squares
    assert np.array_equal(second.head.state["weight"], first.head.state["weight"])
    assert "train" not in second.features


def test_network_whose_head_cannot_be_cut_out_has_no_first_model(task, tmp_path, session):
    whole = dataclasses.replace(task.backbone, head_fault="It cannot be cut out.")
    study = Begun(dataclasses.replace(task, backbone=whole), tmp_path)
    fit_first_model(study, session)
    assert study.said == ["There is no first model: It cannot be cut out."]
    assert not study.tables.trials


@pytest.mark.parametrize(("budget", "seconds"), [(None, 30.0), (100.0, 10.0), (3600.0, 30.0)])
def test_first_model_comes_within_half_a_minute_or_a_tenth_of_the_budget(budget, seconds):
    assert longest_pass(budget) == seconds


def test_pass_over_few_images_is_not_timed(task, tmp_path):
    assert seconds_of_pass(Begun(task, tmp_path), None) == 0.0


def test_time_of_the_pass_is_that_of_more_images_without_what_a_single_one_takes(task, tmp_path, monkeypatch):
    monkeypatch.setattr(first_model, "TIMED_IMAGES", 6)
    seconds = iter([0.0, 5.0, 10.0, 10.2, 20.0, 20.8])
    monkeypatch.setattr(first_model, "time", SimpleNamespace(monotonic=lambda: next(seconds)))
    ran = []
    place = SimpleNamespace(slots=2, run=lambda function, backbone, split, layers: ran.append(len(split)))
    images = len(task.dataset.train) + len(task.dataset.val)
    assert seconds_of_pass(Begun(task, tmp_path), place) == pytest.approx((0.8 - 0.2) * images / 5 / 2)
    assert ran == [1, 1, 6]


def test_sample_has_a_part_of_each_class_and_the_images_themselves(task):
    dataset = task.dataset
    sample = sample_images(dataset, fraction=0.1, per_class=4, seed=0)
    assert np.bincount(sample.train.labels).tolist() == [4, 4, 4]
    assert np.bincount(sample.val.labels).tolist() == [4, 4, 4]
    assert np.bincount(sample_images(dataset, fraction=0.5, per_class=1, seed=0).train.labels).tolist() == [6, 6, 6]
    for split, whole in ((sample.train, dataset.train), (sample.val, dataset.val)):
        for position, name in enumerate(split.names):
            original = whole.names.index(name)
            assert split.labels[position] == whole.labels[original]
            assert np.array_equal(split.images.batch(np.array([position])), whole.images.batch(np.array([original])))


@pytest.mark.parametrize("total", [None, 100.0], ids=["all images", "a sample"])
def test_first_model_does_not_wait_for_the_relationship_of_co_tuning(task, tmp_path, session, slow, total, monkeypatch):
    slow(60.0 if total else 0.0)
    study, order = Begun(task, tmp_path, total), []
    study.configs = [TrialConfig(regularizer="co_tuning")]
    learn, fit = measurements.learn_relationship, first_model.fit_and_save
    monkeypatch.setattr(measurements, "learn_relationship", lambda *args: order.append("relationship") or learn(*args))
    monkeypatch.setattr(first_model, "fit_and_save", lambda *args: fit(*args) or order.append("model"))
    fit_first_model(study, session)
    assert order[0] == "model"
    assert study.sampled == (total is not None)
    study.first_task.measurements.measure_source(study.configs, print, ThisProcess())
    assert order.count("relationship") == 1
    assert ("train" in study.first_task.measurements.features) == (not study.sampled)
