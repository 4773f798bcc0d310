"""What the plan says of unequal classes."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from delta_tune.config import MULTILABEL_METRIC, TrialConfig
from delta_tune.labels.one_label import ONE_LABEL
from delta_tune.labels.several_labels import SEVERAL_LABELS
from delta_tune.study.class_counts import class_lines

PLAIN = (TrialConfig(regularizer="l2"),)


def lines(counts, metric="val_accuracy", configs=PLAIN):
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts))
    classes = tuple(f"k{number}" for number in range(len(counts)))
    dataset = SimpleNamespace(
        train=SimpleNamespace(labels=labels), classes=classes, kind=ONE_LABEL, is_multilabel=False
    )
    return class_lines(dataset, metric, configs)


def test_smallest_and_largest_class_are_counted():
    assert lines([30, 1200, 290]) == [
        "30 ('k0') to 1,200 ('k1') training images of a class",
        "The classes are unequal: val_accuracy goes by the frequent ones, --metric val_macro_f1 counts all alike; "
        "--set logit_adjustment=0.5, sampling=balanced or class_weights=balanced trains for the rare ones too.",
    ]


@pytest.mark.parametrize(("largest", "said"), [(50, 1), (51, 2)])
def test_classes_are_unequal_beyond_five_times(largest, said):
    assert len(lines([10, 20, largest])) == said


def test_equal_classes_are_counted_once():
    assert lines([12, 12]) == ["12 training images of each class"]


def test_what_was_done_is_not_proposed_again():
    _, metric_only = lines([1, 9], "val_accuracy", [*PLAIN, TrialConfig(logit_adjustment=0.5)])
    assert metric_only.endswith("val_accuracy goes by the frequent ones, --metric val_macro_f1 counts all alike.")
    _, treatment_only = lines([1, 9], "val_balanced_accuracy")
    assert treatment_only.startswith("The classes are unequal: --set logit_adjustment=0.5,")
    for done in ({"class_weights": "balanced"}, {"sampling": "balanced"}):
        assert len(lines([1, 9], "val_macro_f1", [TrialConfig(**done)])) == 1


def test_images_with_several_labels_count_for_each_and_only_what_they_can_have_is_proposed():
    labels = np.zeros((20, 2), dtype=np.float32)
    labels[:18, 0] = labels[17:, 1] = 1
    dataset = SimpleNamespace(
        train=SimpleNamespace(labels=labels), classes=("a", "b"), kind=SEVERAL_LABELS, is_multilabel=True
    )
    assert class_lines(dataset, MULTILABEL_METRIC, PLAIN) == [
        "3 ('b') to 18 ('a') training images of a label",
        "The labels are unequal: --set class_weights=balanced trains for the rare ones too.",
    ]
