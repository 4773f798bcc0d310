"""What a user is told of a study's end."""

from __future__ import annotations

import pytest
from helpers.studies import epoch_row, study_json

from delta_tune.config import TrialConfig
from delta_tune.report.sentences import study_remarks, study_summary, study_verdict
from delta_tune.results.study_record import StudyRecord
from delta_tune.results.tables import StudyTables

STOPPED = "trial 1, stopped after epoch 3 of 8"


@pytest.fixture
def tables(tmp_path):
    return StudyTables(tmp_path, "val_accuracy")


def add(tables, number, method, scores, state):
    params = {} if method == "linear_probe" else {"lr": 0.01}
    tables.add(number, TrialConfig(regularizer=method, **params), params, {})
    for epoch, score in enumerate(scores, 1):
        tables.report(number, epoch_row(epoch, score))
    tables.finish(number, state)


def told(tables, **model):
    """The last lines of a study, and the first ones of its report."""
    folder = tables.folder
    study_json(folder, test=False, **model)
    record = StudyRecord.read(folder)
    *lines, last = study_summary(tables, folder, record, (), out="out")
    assert last == f"Tables: {folder / 'trials.parquet'} and epochs.parquet"
    return [line.replace(str(folder), "s") for line in lines], study_verdict(tables, record)


def test_last_lines_describe_the_model_that_is_saved_where_it_is_a_stopped_trial(tables):
    add(tables, 0, "linear_probe", [0.66], "completed")
    add(tables, 1, "l2", [0.5, 0.71, 0.6, 0.9], "stopped")  # the last epoch was not saved
    assert told(tables, winner=1, model=STOPPED, model_epoch=2) == (
        [
            f"Best: l2 with lr=0.01: val_accuracy 71.0 % after epoch 2 ({STOPPED}).",
            "That is the plain L2 recipe; the best of the other methods is linear_probe with 66.0 % (trial 0).",
            f"Model: s/best ({STOPPED})",
        ],
        f"l2: val_accuracy 71.0 % on 50 images ({STOPPED}): better than every completed trial, not confirmed.",
    )


def test_model_and_test_score_are_told_where_no_trial_was_completed(tables):
    add(tables, 1, "l2", [0.5, 0.71, 0.6, 0.9], "stopped")
    lines, verdict = told(tables, winner=1, model=STOPPED, model_epoch=2)
    assert lines == [
        "No trial was completed: 1 stopped.",
        f"Best: l2 with lr=0.01: val_accuracy 71.0 % after epoch 2 ({STOPPED}).",
        f"Model: s/best ({STOPPED})",
    ]
    assert verdict == f"l2: val_accuracy 71.0 % on 50 images ({STOPPED}): no trial was completed, not confirmed."
    assert "accuracy of 71.0 %" in study_remarks(tables, StudyRecord.read(tables.folder))[0]


def test_study_without_a_model_names_none(tables):
    add(tables, 1, "l2", [], "failed")
    assert told(tables, winner=None, model=None)[0] == ["No trial was completed: 1 failed."]


def test_best_of_the_search_is_told_beside_a_retrained_model(tables):
    for number, score in enumerate((0.5, 0.7)):
        add(tables, number, "l2_sp", [score], "completed")
    assert told(tables, winner=0, model="trial 0 retrained on 150 images", model_epoch=None)[0] == [
        "Best: l2_sp with lr=0.01: val_accuracy 70.0 % after epoch 1 (trial 1).",
        "Model: s/best (trial 0 retrained on 150 images)",
    ]
