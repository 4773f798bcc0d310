"""Whole studies of images with several labels each."""

from __future__ import annotations

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from helpers.several_labels import coloured_squares, photos_side_by_side, source_of
from sklearn.metrics import average_precision_score

import delta_tune
from delta_tune.config import MULTILABEL_METRIC
from delta_tune.inference.model import load
from delta_tune.results.layout import HELD_OUT_FILE, PREDICTIONS_FILE

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_cluster")]

QUICK = """
def space(trial):
    trial.suggest_categorical("regularizer", ["l2", "delta"])
    trial.suggest_categorical("lr", [0.005, 0.01])
    return {"batch_size": 8, "layers": "last"}
"""


def record(folder):
    return json.loads((folder / "study.json").read_text())


@pytest.fixture(scope="module")
def settings(tmp_path_factory, tiny_weights):
    place = tmp_path_factory.mktemp("studies")
    (place / "quick.py").write_text(QUICK)
    return {
        **{"data": "squares", "model": "timm:test_resnet", "weights": str(tiny_weights), "image_size": 64},
        **{"space": str(place / "quick.py"), "num_trials": 3, "max_epochs": 2, "final_runs": 2, "verbose": 0},
        **{"gpus_per_trial": 0, "max_concurrent_trials": 1, "out": place, "name": "squares"},
    }


@pytest.fixture(scope="module")
def study(settings):
    with source_of(coloured_squares({"train": 80, "test": 20})):
        return delta_tune.tune(**settings)


def test_study_optimises_mean_average_precision(study):
    told = record(study.path)
    assert (told["settings"]["metric"], told["settings"]["task"]) == (MULTILABEL_METRIC, "multilabel")
    assert study.best_metrics["test_mean_average_precision"] > 0.9


def test_held_out_images_give_the_scores_and_thresholds_of_the_model(study):
    known, rows = record(study.path)["held_out"], pq.read_table(study.path / HELD_OUT_FILE).to_pylist()
    classes = load(study.path).classes
    labels = np.array([[name in json.loads(row["true"]) for name in classes] for row in rows])
    probabilities = np.array([row["probabilities"] for row in rows])
    assert len(rows) == known["images"]
    assert known["mean_average_precision"] == pytest.approx(average_precision_score(labels, probabilities), abs=1e-6)
    said = np.array([[name in json.loads(row["predicted"]) for name in classes] for row in rows])
    assert (said == (probabilities >= known["thresholds"])).all()
    assert load(study.path).thresholds == known["thresholds"]


def test_predictions_of_test_are_the_model_s(study):
    rows = pq.read_table(study.path / PREDICTIONS_FILE).to_pylist()
    source = coloured_squares({"train": 80, "test": 20}).splits["test"]
    found = load(study.path).predict(source.read(n) for n in range(20))
    for row, prediction in zip(rows, found, strict=True):
        assert sorted(json.loads(row["predicted"])) == sorted(prediction.labels)


def test_report_and_card_tell_of_labels(study):
    page, card = ((study.path / name).read_text() for name in ("report.html", "best/README.md"))
    assert "<button>average precision</button>" in page
    assert "to find 3 labels in an image" in card


def test_resume_continues_with_the_task_and_the_metric_it_began_with(study, settings):
    with source_of(coloured_squares({"train": 80, "test": 20})):
        again = delta_tune.tune(
            out=settings["out"], name="squares", resume=True, data="squares", num_trials=4, verbose=0
        )
    assert record(again.path)["settings"]["metric"] == MULTILABEL_METRIC
    assert again.trials.num_rows == 5


def test_confirmation_takes_fresh_splits(settings):
    small = {"num_trials": 1, "max_epochs": 1, "final_runs": 0, "set": {"regularizer": "l2"}}
    with source_of(coloured_squares({"train": 80})):
        found = delta_tune.tune(**settings | small | {"name": "confirmed", "confirm": 2})
    told = record(found.path)
    assert told["confirmation"]["metric"] == MULTILABEL_METRIC
    assert load(found.path).thresholds == [0.5] * 3


def test_real_photos_side_by_side_are_told_apart(real_data, settings):
    photos = photos_side_by_side(real_data / "data", {"train": 160, "test": 80})
    network = {"model": "timm:tf_efficientnet_lite0", "weights": "demo", "image_size": 96}
    space = {"set": {"regularizer": "delta"}, "num_trials": 1, "max_epochs": 3, "final_runs": 0}
    with source_of(photos):
        found = delta_tune.tune(**settings | network | space | {"data": "photos", "name": "photos"})
    assert found.best_metrics["test_mean_average_precision"] > 0.6
    (most,) = {len(json.loads(row["true"])) for row in pq.read_table(found.path / PREDICTIONS_FILE).to_pylist()} - {
        0,
        1,
    }
    assert most == 2
