from __future__ import annotations

import json

import pytest
from helpers.studies import FINAL_MODEL, HELD_OUT, add_trial, study_json, tables_in

from delta_tune.config import UserError
from delta_tune.results.comparison import comparability_notes, compare_studies
from delta_tune.results.statistics import wilson_interval


def study(folder, method="delta", **settings):
    folder.mkdir()
    study_json(folder, **settings)
    tables = tables_in(folder)
    add_trial(tables, 0, "completed", method=method)
    add_trial(tables, 1, "pruned", method=method)
    tables.write()
    return folder


def test_row_tells_method_score_and_trials(tmp_path):
    (row,) = compare_studies([study(tmp_path / "a")])
    best = tables_in(tmp_path / "a").read(tmp_path / "a", "val_accuracy").best_row(0)["val_accuracy"]
    assert (row["study"], row["method"], row["best"]) == ("a", "delta", best)
    assert row["trials"] == {"completed": 1, "pruned": 1}
    assert (row["accuracy_of"], row["accuracy"]) == ("test", 0.9)
    assert row["interval"] == wilson_interval(0.9, 60)


def test_row_without_a_test_split_has_the_validation_accuracy(tmp_path):
    (row,) = compare_studies([study(tmp_path / "a", test=False)])
    assert row["accuracy_of"] == "val"
    assert row["interval"] == wilson_interval(row["best"], 50)


def test_row_of_final_runs_without_a_test_split_has_their_accuracy_on_held_out_images(tmp_path):
    final = {"model": FINAL_MODEL, "winner": 0, "held_out": HELD_OUT}
    (row,) = compare_studies([study(tmp_path / "a", test=False, **final)])
    assert (row["accuracy_of"], row["accuracy"], row["interval"]) == ("held-out images", 0.9, wilson_interval(0.9, 120))
    assert row["images"] == {"train": 100, "val": 50}


def test_row_of_final_runs_with_a_test_split_has_its_accuracy(tmp_path):
    (row,) = compare_studies([study(tmp_path / "a", held_out=HELD_OUT)])
    assert row["accuracy_of"] == "test"


def test_differences_say_that_images_are_not_the_same(tmp_path):
    rows = compare_studies(
        [study(tmp_path / "a"), study(tmp_path / "b", fingerprints={"data": "other", "weights": "w"})]
    )
    assert comparability_notes(rows) == [
        "The images, their splits or their preprocessing differ: that alone may explain a higher score."
    ]


def test_differences_say_that_validation_is_no_test(tmp_path):
    (said,) = comparability_notes(compare_studies([study(tmp_path / "a"), study(tmp_path / "b", test=False)]))
    assert "which is optimistic" in said


def test_row_of_an_early_study_leaves_out_what_it_did_not_write_down(tmp_path):
    folder = study(tmp_path / "a")
    record = json.loads((folder / "study.json").read_text())
    del record["backbone"], record["images"]
    (folder / "study.json").write_text(json.dumps(record))
    (row,) = compare_studies([folder])
    assert (row["model"], row["images"], row["accuracy"], row["interval"]) == ("resnet50", {}, 0.9, None)


def test_differences_say_that_intervals_overlap(tmp_path):
    assert "overlap" in comparability_notes(compare_studies([study(tmp_path / "a"), study(tmp_path / "b")]))[0]


def test_differences_say_nothing_where_scores_lie_apart():
    rows = [
        {
            "data_fingerprint": "d",
            "metric": "val_accuracy",
            "accuracy_of": "test",
            "accuracy": 0.5,
            "interval": interval,
        }
        for interval in ((0.1, 0.2), (0.5, 0.6))
    ]
    assert comparability_notes(rows) == []


def test_folder_without_a_study_is_refused(tmp_path):
    with pytest.raises(UserError, match="no study"):
        compare_studies([tmp_path])
