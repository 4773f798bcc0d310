"""What a report shows of a model of several labels an image."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from helpers.studies import HELD_OUT, add_trial, study_json, tables_in
from sklearn import metrics

from delta_tune.config import UserError
from delta_tune.labels.several_labels import SEVERAL_LABELS, suspect_pairs
from delta_tune.report.held_out import read_suspects, write_held_out
from delta_tune.report.page import write_report
from delta_tune.report.predictions import read_predictions, save_predictions
from delta_tune.report.sentences import calibration_sentence, final_model_sentences
from delta_tune.results.study_record import StudyRecord

THRESHOLDS = [0.3, 0.5, 0.6]


@pytest.fixture(scope="module")
def logits(label_task):
    """Of val: mostly right."""
    labels = label_task.dataset.val.labels
    noise = np.random.default_rng(0).normal(scale=1.5, size=labels.shape)
    return torch.from_numpy((np.where(labels > 0, 2.0, -2.0) + noise).astype(np.float32))


@pytest.fixture
def file(label_task, logits, tmp_path):
    save_predictions(label_task, "val", logits, tmp_path / "report" / "p.parquet", thresholds=THRESHOLDS)
    return tmp_path / "report" / "p.parquet"


def test_scores_of_each_label_are_scikit_learn_s(label_task, logits, file):
    labels, shares = label_task.dataset.val.labels, logits.sigmoid().numpy()
    found = read_predictions(file)
    assert [each.label for each in found.scores] == list(label_task.dataset.classes)
    for k, each in enumerate(found.scores):
        said = shares[:, k] >= THRESHOLDS[k]
        precision, recall, f1, _ = metrics.precision_recall_fscore_support(labels[:, k], said, average="binary")
        assert [each.precision, each.recall, each.f1] == pytest.approx([precision, recall, f1])
        assert each.average_precision == pytest.approx(metrics.average_precision_score(labels[:, k], shares[:, k]))
        assert (each.images, each.threshold) == (labels[:, k].sum(), THRESHOLDS[k])


def test_worst_mistakes_are_the_labels_that_are_furthest_off(label_task, logits, file):
    gaps = np.abs(logits.sigmoid().numpy() - label_task.dataset.val.labels)
    first = read_predictions(file).worst[0]
    image = label_task.dataset.val.names.index(first.image)
    label = label_task.dataset.classes.index(first.predicted)
    assert gaps[image, label] == gaps.max()
    there = label_task.dataset.val.labels[image, label] > 0
    assert first.verb == ("predicted without" if there else "predicted also")


def test_labels_of_an_image_are_an_array_in_json(label_task, file):
    rows = pq.read_table(file).to_pylist()
    for row, labels in zip(rows, label_task.dataset.val.labels, strict=True):
        assert json.loads(row["true"]) == [
            name for name, y in zip(label_task.dataset.classes, labels, strict=True) if y
        ]


@pytest.mark.parametrize(
    ("column", "value"),
    [("true", '["purple"]'), ("true", "no JSON"), ("wrong", "purple"), ("probabilities", [0.5]), ("probability", 2.0)],
)
def test_damaged_file_is_refused(file, column, value):
    table = pq.read_table(file)
    rows = table.to_pylist()
    rows[0][column] = value
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), file)
    with pytest.raises(UserError, match="damaged"):
        read_predictions(file)


def test_suspect_labels_are_shown_with_what_is_missing_or_too_many(label_task, logits, tmp_path):
    dataset = label_task.dataset
    labels = dataset.val.labels.copy()
    labels[4, 0] = 1 - labels[4, 0]
    sure = torch.where(torch.from_numpy(dataset.val.labels) > 0, 4.0, -4.0)
    task = label_task.on(dataclasses.replace(dataset, val=dataclasses.replace(dataset.val, labels=labels)))
    suspects = SEVERAL_LABELS.suspects(sure.numpy(), labels)
    write_held_out(task, sure, suspects, tmp_path / "held_out.parquet", THRESHOLDS)
    (found,) = read_suspects(tmp_path / "held_out.parquet")
    assert (found.image, found.predicted) == (dataset.val.names[4], dataset.classes[0])
    assert found.verb == ("perhaps without" if labels[4, 0] else "perhaps also")
    assert suspect_pairs(sure.numpy(), labels).tolist() == [[4, 0]]


def test_page_has_a_table_of_labels_and_no_confusion_matrix(label_task, logits, tmp_path):
    study_json(tmp_path)
    tables = tables_in(tmp_path)
    add_trial(tables, 0, "completed")
    tables.write()
    classes = ("<i>a", "b", "c")
    task = label_task.on(dataclasses.replace(label_task.dataset, classes=classes))
    save_predictions(task, "val", logits, tmp_path / "report" / "predictions.parquet", thresholds=THRESHOLDS)
    text = write_report(tmp_path).read_text()
    assert "<button>average precision</button>" in text
    assert "plot-confusion" not in text
    assert "most often taken for" not in text
    assert "<td>&lt;i&gt;a</td>" in text


def test_sentences_tell_precision_and_exact_matches(tmp_path):
    known = HELD_OUT | {"mean_average_precision": 0.871, "macro_f1": 0.8, "thresholds": THRESHOLDS, "unsure": None}
    study_json(tmp_path, model="trial 0 retrained 3 times", winner=0, held_out=known)
    record = StudyRecord.read(tmp_path)
    assert "mean average precision 87.1 %, macro F1 80.0 %, exact matches" in final_model_sentences(record, tmp_path)[0]
    assert "from 30 to 60 %, chosen for a high F1 on these images" in calibration_sentence(record)
