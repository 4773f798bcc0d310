from __future__ import annotations

from collections import Counter

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from scipy import stats
from scipy.sparse import csr_array
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from delta_tune.config import UserError
from delta_tune.data.augmentation import center_crop
from delta_tune.inference.ensemble import combine
from delta_tune.models.backbones import build_target
from delta_tune.report import predictions
from delta_tune.training.workplace import ThisProcess


@pytest.fixture
def logits(task):
    """Of the test split, of a model that is right about half of the images."""
    return torch.from_numpy(np.random.default_rng(0).normal(0, 2, (len(task.dataset.test), 3)).astype(np.float32))


@pytest.fixture
def kept(task, logits, tmp_path):
    file = tmp_path / "report" / "predictions.parquet"
    predictions.save_predictions(task, "test", logits, file)
    return file


def test_confusion_counts_each_image(kept, task, logits):
    expected = np.zeros((3, 3), dtype=int)
    for label, row in zip(task.dataset.test.labels, logits, strict=True):
        expected[label, int(row.argmax())] += 1
    np.testing.assert_array_equal(predictions.read_predictions(kept).confusion.toarray(), expected)


def test_rows_hold_the_probabilities_of_the_predicted_and_of_the_true_class(kept, task, logits):
    rows = pq.read_table(kept).to_pylist()
    for row, name, label, each in zip(rows, task.dataset.test.names, task.dataset.test.labels, logits, strict=True):
        shares = each.double().exp() / each.double().exp().sum()
        assert row["image"] == name
        assert row["probability"] == pytest.approx(float(shares.max()), abs=1e-6)
        assert row["probability_of_true"] == pytest.approx(float(shares[label]), abs=1e-6)


def test_worst_are_the_surest_mistakes_alone(kept, task, logits):
    shares = logits.softmax(1).numpy()
    wrong = [
        (float(row.max()), name)
        for row, label, name in zip(shares, task.dataset.test.labels, task.dataset.test.names, strict=True)
        if row.argmax() != label
    ]
    found = predictions.read_predictions(kept).worst
    assert [each.image for each in found] == [name for _, name in sorted(wrong, reverse=True)][: predictions.WORST]


@pytest.mark.parametrize("flip", [False, True])
def test_workers_compute_the_logits_of_several_networks(task, flip, monkeypatch):
    monkeypatch.setattr("delta_tune.training.workplace.PART_BATCHES", 1)
    monkeypatch.setattr("delta_tune.data.batches.EVAL_BATCH_SIZE", 4)
    networks = [build_target(task.backbone, 3, torch.Generator().manual_seed(seed)).eval() for seed in range(3)]
    for network in networks:
        network.get_submodule(task.backbone.head).weight.data *= 30
    split = task.dataset.test
    pixels = torch.from_numpy(split.images.batch(np.arange(len(split))))
    with torch.inference_mode():
        images = center_crop(pixels, task.backbone.preprocessing)
        views = [images, images.flip(3)] if flip else [images]
        expected = torch.stack([network(view).softmax(1) for network in networks for view in views]).mean(0)
    for workplace in (None, ThisProcess()):
        found = predictions.split_logits(task, split, combine(networks, flip=flip), workplace)
        np.testing.assert_allclose(found.softmax(1).numpy(), expected.numpy(), rtol=1e-3, atol=1e-5)


def test_class_scores_are_scikit_learn_s_and_name_the_class_taken_instead():
    rng = np.random.default_rng(0)
    true, claimed = rng.integers(0, 4, 60), rng.integers(0, 5, 60)  # of class 4 there is no image
    counts = csr_array(confusion_matrix(true, claimed, labels=range(5)))
    found = predictions.Predictions(split="test", classes=tuple("abcde"), confusion=counts, worst=()).class_scores()
    _, recalls, f1, images = precision_recall_fscore_support(true, claimed, labels=range(4))
    assert [each.name for each in found] == list("abcd")
    assert [each.images for each in found] == images.tolist()
    assert [each.recall for each in found] == pytest.approx(recalls.tolist())
    assert [each.f1 for each in found] == pytest.approx(f1.tolist())
    for label, each in enumerate(found):
        wrong = Counter(claimed[(true == label) & (claimed != label)].tolist())
        assert wrong["abcde".index(each.taken_for)] == max(wrong.values())
        interval = stats.binomtest(round(each.recall * each.images), each.images).proportion_ci(0.95, "wilson")
        assert (each.low, each.high) == pytest.approx((interval.low, interval.high))


def test_class_without_a_mistake_is_taken_for_none():
    counts = csr_array(np.array([[3, 1, 0], [0, 2, 0], [0, 0, 0]]))
    found = predictions.Predictions(split="test", classes=("a", "b", "c"), confusion=counts, worst=())
    assert [(each.name, each.images, each.recall, each.taken_for) for each in found.class_scores()] == [
        ("a", 4, 0.75, "b"),
        ("b", 2, 1.0, ""),
    ]


def test_nothing_is_read_where_nothing_was_kept(tmp_path):
    assert predictions.read_predictions(tmp_path / "none.parquet") is None


def test_model_without_a_mistake_has_no_thumbnails(task, tmp_path):
    sure = torch.nn.functional.one_hot(torch.from_numpy(np.array(task.dataset.val.labels)), 3).float() * 9
    predictions.save_predictions(task, "val", sure, tmp_path / "report" / "p.parquet")
    found = predictions.read_predictions(tmp_path / "report" / "p.parquet")
    assert found.worst == ()
    assert found.confusion.trace() == len(task.dataset.val)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda table: table.replace_schema_metadata(None), "Expecting value"),
        (lambda table: table.replace_schema_metadata({"split": "test", "classes": '["blue", "blue"]'}), "stands twice"),
        (lambda table: table.replace_schema_metadata({"split": "test", "classes": '["blue"]'}), "not among"),
        (lambda table: table.drop_columns("true"), "column true"),
        (lambda table: replaced(table, "probability", [1e308]), "column probability"),
        (lambda table: replaced(table, "thumbnail", [b"<svg onload=alert(1)>"]), "neither a JPEG nor a PNG"),
    ],
)
def test_predictions_of_a_stranger_are_refused(kept, change, said):
    pq.write_table(change(pq.read_table(kept)), kept)
    with pytest.raises(UserError, match=f"predictions.parquet is damaged .*{said}.*; remove it"):
        predictions.read_predictions(kept)


def replaced(table, name, value):
    return table.set_column(table.column_names.index(name), name, [value * table.num_rows])
