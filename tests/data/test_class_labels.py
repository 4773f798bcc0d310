"""From names to numbers: one class an image, or several labels."""

from __future__ import annotations

import numpy as np
import pytest

from delta_tune.config import UserError
from delta_tune.data.class_labels import number_labels


def numbered(task="auto", **names):
    return number_labels(names, {split: [f"{n}.png" for n in range(len(each))] for split, each in names.items()}, task)


def test_tuples_are_several_labels():
    classes, labels, notes = numbered(train=[("b", "a"), (), ("b",)], val=[("a", "a")])
    assert classes == ("a", "b")
    assert labels["train"].tolist() == [[1, 1], [0, 0], [0, 1]]
    assert labels["val"].tolist() == [[1, 0]]
    assert labels["train"].dtype == np.float32
    assert notes == []


def test_names_are_one_label():
    classes, labels, _ = numbered(train=["b", "a"])
    assert (classes, labels["train"].tolist(), labels["train"].dtype) == (("a", "b"), [1, 0], np.int64)


def test_task_multilabel_takes_names_as_labels_alone():
    assert numbered("multilabel", train=["b", "a"])[1]["train"].tolist() == [[0, 1], [1, 0]]


def test_task_classification_takes_tuples_of_one_name():
    classes, labels, _ = numbered("classification", train=[("b",), ("a",), ("b", "b")])
    assert (classes, labels["train"].tolist()) == (("a", "b"), [1, 0, 1])


def test_task_classification_refuses_several_labels_and_none():
    with pytest.raises(
        UserError, match=r"2 of val have none or several: 0\.png \(2\), 2\.png \(0\); give --task multi"
    ):
        numbered("classification", train=[("b",), ("a",)], val=[("a", "b"), ("a",), ()])


def test_labels_are_compared_in_one_unicode_form():
    classes, labels, notes = numbered(train=[("\u00e9", "x"), ("e\u0301",)])
    assert classes == ("x", "é")
    assert labels["train"].tolist() == [[1, 1], [0, 1]]
    assert len(notes) == 1


def test_label_that_only_val_has_is_refused():
    with pytest.raises(UserError, match="val has the class c, which train does not have"):
        numbered(train=[("a", "b")], val=[("c",)])


def test_images_without_any_label_are_refused():
    with pytest.raises(UserError, match="No training image has a label"):
        numbered(train=[(), ()])
