"""The end of a study: its model, scored once."""

from __future__ import annotations

import dataclasses
import json
import shutil
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
from helpers.studies import OfOneBackbone

from delta_tune.attention.layer_attention import LayerAttention, attention_table
from delta_tune.inference.model import load
from delta_tune.report.feature_map_images import read_feature_map_images
from delta_tune.report.predictions import split_logits
from delta_tune.results.layout import (
    ATTENTION_FILE,
    CONFIG_FILE,
    HEAT_MAPS_FILE,
    LOG_FILE,
    PICTURES_FILE,
    PREDICTIONS_FILE,
    STUDY_FILE,
)
from delta_tune.results.study_record import StudyRecord
from delta_tune.study import best_model, finish_phase
from delta_tune.study.finish_phase import conclude, keep_best, score_final_model, score_test
from delta_tune.training.workplace import ThisProcess


def test_score_test_equals_predicting_each_image(best, task):
    scores = score_test(task, best, split_logits(task, task.dataset.test, load(best).network))
    predictions = load(best).predict(task.dataset.test.names)
    truth = [task.dataset.classes[k] for k in task.dataset.test.labels]
    assert scores["test_accuracy"] == pytest.approx(
        np.mean([p.label == t for p, t in zip(predictions, truth, strict=True)])
    )
    low, high = scores["test_accuracy_interval"]
    assert low < scores["test_accuracy"] < high or scores["test_accuracy"] == high


def test_judge_shows_the_maps_of_attention_that_an_earlier_session_measured(best, task, tmp_path):
    shutil.copytree(best, tmp_path / "best")
    (tmp_path / ATTENTION_FILE).parent.mkdir()
    measured = LayerAttention(losses=np.linspace(-1, 1, 32, dtype=np.float32), reliability=0.9, images=9)
    pq.write_table(attention_table([("layer1", measured)]), tmp_path / ATTENTION_FILE)
    record = StudyRecord({"settings": {"metric": "val_accuracy"}, "winner": 0, "model": "trial 0", "test_scorings": []})
    score_final_model(task.on(task.dataset), tmp_path, record, ThisProcess(), seen_val=False)
    assert {picture.layer for picture in read_feature_map_images(tmp_path / PICTURES_FILE)} == {"layer1"}
    assert len(record.content["test_scorings"]) == 1


def test_judge_loads_the_model_once(best, task, tmp_path, monkeypatch):
    shutil.copytree(best, tmp_path / "best")
    loaded = []
    monkeypatch.setattr(finish_phase, "load", lambda *args: (loaded.append(args), load(*args))[1])
    record = StudyRecord({"settings": {"metric": "val_accuracy"}, "winner": 0, "model": "trial 0", "test_scorings": []})
    score_final_model(task.on(task.dataset), tmp_path, record, ThisProcess(), seen_val=False)
    assert len(loaded) == 1


class Kept(OfOneBackbone):
    """A study that cannot go on, and what `keep_best` did with it."""

    def __init__(self, folder, monkeypatch, **content):
        self.folder, self.saved, self.said, self.written = folder, 0, [], False
        (folder / STUDY_FILE).touch()
        self.record = StudyRecord({"winner": 0, "model": "trial 0", "test_scorings": [], **content})
        self.progress = SimpleNamespace(say=self.said.append)
        self.tables = SimpleNamespace(backbone=lambda number: None)
        monkeypatch.setattr(best_model, "save_searched", self._save)

    def _save(self, study):
        self.saved += 1
        (self.folder / "best").mkdir(exist_ok=True)

    def save_record(self):
        self.written = True


@pytest.mark.parametrize(
    ("there", "model", "saved"),
    [(False, "trial 0", 1), (True, "trial 0", 1), (True, "trial 0 retrained on 40 images", 0)],
)
def test_best_so_far_is_kept_unless_a_better_model_is_there(tmp_path, monkeypatch, there, model, saved):
    study = Kept(tmp_path, monkeypatch, model=model)
    if there:
        (tmp_path / "best").mkdir()
    keep_best(study)
    assert (study.saved, study.written, study.record.interrupted) == (saved, True, True)
    assert study.said == [f"Model: {tmp_path / 'best'} ({model})"]


def test_nothing_is_kept_of_a_study_that_did_not_begin(tmp_path, monkeypatch):
    study = Kept(tmp_path, monkeypatch)
    (tmp_path / STUDY_FILE).unlink()
    keep_best(study)
    assert (study.saved, study.said, list(tmp_path.iterdir())) == (0, [], [])


@pytest.mark.parametrize("interrupted", [True, False])
def test_retrained_model_is_kept_by_a_session_that_trains_none(tmp_path, monkeypatch, interrupted):
    study = Kept(tmp_path, monkeypatch, model="trial 3 retrained on 40 images", winner=3)
    (tmp_path / "best").mkdir()
    study.task, scored = None, []
    monkeypatch.setattr(finish_phase, "score_final_model", lambda *args, **kwargs: scored.append(kwargs["seen_val"]))
    assert conclude(study, SimpleNamespace(workplace=nullcontext), interrupted=interrupted) == 3
    assert (study.saved, study.record.model) == (0, "trial 3 retrained on 40 images")
    assert scored == ([] if interrupted else [True])


@pytest.fixture
def judged(best, task, tmp_path):
    """A function that scores a fresh study's model, again with each call: what was said, and the record on disk."""
    shutil.copytree(best, tmp_path / "best")
    (tmp_path / ATTENTION_FILE).parent.mkdir()
    measured = LayerAttention(losses=np.linspace(-1, 1, 32, dtype=np.float32), reliability=0.9, images=9)
    pq.write_table(attention_table([("layer1", measured)]), tmp_path / ATTENTION_FILE)
    StudyRecord({"settings": {}, "winner": 0, "model": "trial 0", "test_scorings": []}).write(tmp_path)

    def judge(of=task):
        said = []
        record = StudyRecord.read(tmp_path)
        score_final_model(of.on(of.dataset), tmp_path, record, ThisProcess(), seen_val=False, say=said.append)
        return said, StudyRecord.read(tmp_path)

    return judge


def broken(*args, **kwargs):
    raise RuntimeError("it broke\nin two lines")


@pytest.mark.parametrize(
    "step", ["save_predictions", "save_feature_map_images", "save_heat_map_images", "update_model_config"]
)
def test_step_that_fails_costs_neither_the_score_nor_the_other_steps(judged, tmp_path, monkeypatch, step):
    monkeypatch.setattr(finish_phase, step, broken)
    said, record = judged()
    assert len(said) == 1
    assert "cannot be written (RuntimeError: it broke); the model and its scores are kept." in said[0]
    assert record.scoring is not None
    assert (tmp_path / PREDICTIONS_FILE).exists() == (step != "save_predictions")
    assert (tmp_path / PICTURES_FILE).exists() == (step != "save_feature_map_images")
    assert (tmp_path / HEAT_MAPS_FILE).exists() == (step != "save_heat_map_images")
    assert "Traceback" in (tmp_path / LOG_FILE).read_text()
    assert str(tmp_path / LOG_FILE) in said[0]


def test_scoring_is_written_before_anything_else_can_end_the_session(judged, tmp_path, monkeypatch):
    def killed(*args, **kwargs):
        raise SystemExit

    for step in ("update_model_config", "save_predictions", "save_heat_map_images", "save_feature_map_images"):
        monkeypatch.setattr(finish_phase, step, killed)
    with pytest.raises(SystemExit):
        judged()
    assert len(StudyRecord.read(tmp_path).content["test_scorings"]) == 1
    monkeypatch.undo()
    said, record = judged()
    assert said == []
    assert len(record.content["test_scorings"]) == 1, "it is not scored again"
    assert (tmp_path / PREDICTIONS_FILE).exists()
    assert (tmp_path / PICTURES_FILE).exists()
    assert (tmp_path / HEAT_MAPS_FILE).exists()
    told = json.loads((tmp_path / "best" / CONFIG_FILE).read_text())["test"]
    assert told["test_accuracy"] == record.scoring.accuracy


def test_model_whose_files_are_all_there_is_not_loaded_again(judged, monkeypatch):
    judged()
    monkeypatch.setattr(finish_phase, "load", broken)
    judged()


def test_names_that_are_no_utf8_do_not_end_the_study(judged, task):
    dataset = task.dataset
    names = {split: tuple(f"caf\udce9/{n}" for n in range(len(getattr(dataset, split)))) for split in ("val", "test")}
    splits = {split: dataclasses.replace(getattr(dataset, split), names=named) for split, named in names.items()}
    named = dataclasses.replace(task, dataset=dataclasses.replace(dataset, classes=("a\udcff", "b", "c"), **splits))
    said, record = judged(named)
    assert said == []
    assert record.scoring is not None
