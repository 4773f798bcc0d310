"""What a user is told of a study's end."""

from __future__ import annotations

import pytest
from helpers.studies import FINAL_MODEL, HELD_OUT, epoch_row, study_json

from delta_tune.config import TrialConfig
from delta_tune.report.sentences import study_remarks, study_summary, study_verdict
from delta_tune.results.study_record import StudyRecord
from delta_tune.results.tables import StudyTables

STOPPED = "trial 1, stopped after epoch 3 of 8"


@pytest.fixture
def tables(tmp_path):
    return StudyTables(tmp_path, "val_accuracy")


def add(tables, number, method, scores, state, **terms):
    params = {} if method == "linear_probe" else {"lr": 0.01}
    tables.add(number, TrialConfig(regularizer=method, **params, **terms), params, {})
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


ITS_RUNS = (
    "The 3 final runs of trial 0: accuracy 90.0 % on 120 images, each predicted by a run that was not trained on it "
    "(95 % interval 83.3 to 94.2 %). The model is made of these runs and usually better than one of them."
)
CALIBRATED = (
    "Probabilities are calibrated with a temperature of 1.50, fitted to the held-out images: their expected "
    "calibration error there is 2.0 points instead of 8.0."
)
UNSURE = (
    " With --min-confidence auto, predict is unsure below 60 %: of 20 % of the images; of the others the runs are "
    "right for 96.0 %."
)


@pytest.fixture
def final(tables):
    """A function from changes of what is known of final runs to the last lines and the report's remarks."""
    add(tables, 0, "l2", [0.5, 0.7], "completed")

    def lines(race=(), model=FINAL_MODEL, **known):
        end, _ = told(tables, winner=0, model=model, held_out=HELD_OUT | known, race=list(race))
        return end, study_remarks(tables, StudyRecord.read(tables.folder))

    return lines


def test_last_lines_tell_what_final_runs_predict_of_images_they_were_not_trained_on(final):
    race = "Race: l2 (trial 0) against delta (trial 3) on 60 images."
    end, remarks = final([race])
    suspects = "2 of these images have labels that are probably wrong: see the column suspect of"
    assert end == [
        "Best: l2 with lr=0.01: val_accuracy 70.0 % after epoch 2 (trial 0).",
        ITS_RUNS,
        race,
        f"{suspects} s/held_out.parquet.",
        f"Model: s/best ({FINAL_MODEL})",
    ]
    assert remarks[:4] == [ITS_RUNS, race, f"{suspects} held_out.parquet.", CALIBRATED + UNSURE]


@pytest.mark.parametrize(
    ("suspects", "sentence"),
    [
        (1, ["1 of these images has a label that is probably wrong: see the column suspect of s/held_out.parquet."]),
        (0, []),
    ],
)
def test_suspect_labels_are_counted_in_words(final, suspects, sentence):
    end, _ = final(suspects=suspects)
    assert [line for line in end if "probably wrong" in line] == sentence


@pytest.mark.parametrize(
    ("race", "why"),
    [
        ([], "Validation cannot tell its last epoch from the best one, and its loss is lower"),
        (["Race: …"], "The race of the final runs decided for it"),
    ],
)
def test_lines_say_why_the_final_runs_are_not_of_the_best_trial(final, tables, race, why):
    add(tables, 1, "delta", [0.8], "completed")
    end, _ = final(race)
    assert end[:2] == [
        "Chosen: l2 with lr=0.01: val_accuracy 70.0 % after epoch 2 (trial 0).",
        f"{why}; trial 1 has 80.0 % after epoch 1.",
    ]


@pytest.fixture
def by_macro_f1(tmp_path):
    """A study by macro F1 of one trial, and what `study.json` says of its settings."""
    tables = StudyTables(tmp_path, "val_macro_f1")
    add(tables, 0, "l2", [0.5, 0.7], "completed")
    return tables


def test_metric_that_counts_all_classes_alike_is_told_beside_the_accuracy(by_macro_f1):
    known = HELD_OUT | {"score": 0.8123}
    end, verdict = told(by_macro_f1, winner=0, model=FINAL_MODEL, held_out=known, metric="val_macro_f1")
    assert end[1] == ITS_RUNS.replace(": accuracy", ": macro F1 81.2 %, accuracy")
    assert "in 3 final runs: macro F1 81.2 %, accuracy 90.0 % [83.3, 94.2] on" in verdict


def test_shift_of_logits_is_told_with_what_it_gains(by_macro_f1):
    known = HELD_OUT | {"score": 0.71, "shift": {"strength": 0.75, "before": 0.68, "after": 0.71}}
    end, _ = told(by_macro_f1, winner=0, model=FINAL_MODEL, held_out=known, metric="val_macro_f1")
    assert end[2] == (
        "The model names rare classes more readily than its runs: 0.75 times the log of a class's share is taken off "
        "its logit. On these images, by which that was chosen, macro F1 is 71.0 % instead of 68.0 %."
    )


def test_verdict_of_a_final_model_is_its_held_out_accuracy(final, tables):
    final()
    assert study_verdict(tables, StudyRecord.read(tables.folder)) == (
        "l2 (trial 0) in 3 final runs: accuracy 90.0 % [83.3, 94.2] on 120 images that they were not trained on."
    )


def test_remarks_of_a_final_model_leave_out_the_score_it_was_chosen_by(final):
    assert not any("--confirm 5" in line for line in final()[1])


def test_model_that_never_has_to_be_unsure_says_nothing_of_it(final):
    assert CALIBRATED in final(unsure=None)[1]


def test_model_of_a_single_run_is_not_said_to_be_better_than_one(final):
    end, _ = final(model="trial 0 retrained once on 135 of 150 images")
    assert end[1] == ITS_RUNS.partition(" The model")[0] + " The model is one of these runs."


def test_l2_with_terms_of_other_methods_is_not_called_plain(tables):
    add(tables, 1, "l2", [0.6], "completed")
    add(tables, 2, "l2", [0.7], "completed", contrast=0.3)
    lines, verdict = told(tables)
    assert lines[1] == (
        "Plain L2: 60.0 % at its best (trial 1), so l2 with terms of other methods is +10.0 points on the validation "
        "split it was chosen on."
    )
    assert verdict.startswith("l2: val_accuracy 70.0 % on 50 images, plain l2 60.0 %:")


def test_l2_with_terms_alone_is_compared_with_no_plain_l2(tables):
    add(tables, 1, "l2", [0.7], "completed", co_tuning=0.3)
    lines, _ = told(tables)
    assert not any("lain L2" in line for line in lines)


def test_last_lines_of_a_study_of_two_networks_name_that_of_each_trial(tables):
    add(tables, 0, "l2", [0.5, 0.7], "completed", backbone="one")
    add(tables, 1, "delta", [0.5, 0.8], "completed", backbone="other")
    lines, verdict = told(tables)
    assert lines[0] == "Best: delta on other with lr=0.01: val_accuracy 80.0 % after epoch 2 (trial 1)."
    assert lines[1].startswith("Plain L2: 70.0 % at its best (trial 0, on one), so delta on other is +10.0 points ")
    assert lines[2] == "The best with one is l2 with 70.0 % (trial 0)."
    assert verdict.startswith("delta on other: val_accuracy 80.0 % on 50 images, plain l2 70.0 %")


def test_network_without_a_completed_trial_is_told(tables):
    add(tables, 0, "l2", [0.5], "pruned", backbone="one")
    add(tables, 1, "l2", [0.5, 0.8], "completed", backbone="other")
    study_json(tables.folder, test=False)
    assert study_remarks(tables, StudyRecord.read(tables.folder))[0] == "No trial with one was completed."
