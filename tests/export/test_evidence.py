from __future__ import annotations

import math

import numpy as np
import pytest

from delta_tune.export.evidence import (
    Evidence,
    ScoredImages,
    SplitEvidence,
    card_section,
    compare_probabilities,
    divergence,
    sentences,
)
from delta_tune.inference.model import Model


def of_classes(count, **told):
    """A model of so many classes, whose network nobody asks."""
    crop = {"image_size": 8, "stored_size": 8, "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bilinear"}
    return Model(None, {"classes": [f"c{n}" for n in range(count)], "preprocessing": crop, **told})


def images(labels, split="val"):
    return ScoredImages(split, np.zeros((len(labels), 8, 8, 3), np.uint8), labels)


def sure_of(answers, count):
    """Probabilities of a model that is sure."""
    return np.where(np.eye(count)[answers] > 0, 0.9, 0.1 / (count - 1)).astype(np.float32)


def test_pairs_are_counted_one_by_one():
    labels = np.array([0, 0, 1, 1, 2, 2])
    before, after = sure_of([0, 0, 1, 2, 2, 1], 3), sure_of([0, 1, 1, 1, 2, 0], 3)
    told = compare_probabilities(of_classes(3), before, after, images(labels), "val_accuracy")
    assert (told.before, told.after) == ({"accuracy": 4 / 6}, {"accuracy": 4 / 6})
    assert (told.only_before, told.only_after) == (1, 1)
    assert told.agreement == 3 / 6


def test_score_in_which_all_classes_count_alike_is_watched_too():
    """All of the rare class is lost, which accuracy hardly shows."""
    labels = np.array([0] * 199 + [1])
    told = compare_probabilities(
        of_classes(2), sure_of(labels, 2), sure_of(0 * labels, 2), images(labels), "val_balanced_accuracy"
    )
    assert told.before["accuracy"] - told.after["accuracy"] == pytest.approx(0.005)
    assert told.loss == pytest.approx(0.5)


def test_without_labels_the_loss_is_the_share_of_other_answers():
    unknown = ScoredImages("calibration", np.zeros((4, 8, 8, 3), np.uint8), None)
    told = compare_probabilities(
        of_classes(2), sure_of([0, 0, 1, 1], 2), sure_of([0, 0, 1, 0], 2), unknown, "val_accuracy"
    )
    assert told.loss == 0.25
    assert told.difference is None


def test_several_labels_are_compared_by_their_thresholds():
    model = of_classes(2, task="multilabel", thresholds=[0.3, 0.8])
    labels = np.float32([[1, 0], [1, 1], [0, 1], [0, 0]])
    before = np.float32([[0.35, 0.7], [0.4, 0.9], [0.2, 0.85], [0.1, 0.1]])
    after = np.float32([[0.35, 0.7], [0.25, 0.9], [0.2, 0.85], [0.1, 0.1]])
    told = compare_probabilities(model, before, after, images(labels), "val_accuracy")
    assert list(told.before) == ["mean_average_precision"]
    assert told.agreement == 0.75
    assert (told.only_before, told.only_after) == (1, 0)


def test_interval_is_agresti_and_mins():
    """25 images lost, 9 gained of 200, by their formula: half an image added to each of the four cells."""
    labels = np.zeros(200, np.int64)
    before, after = np.zeros(200, np.int64), np.zeros(200, np.int64)
    after[:25], before[25:34] = 1, 1
    told = compare_probabilities(of_classes(2), sure_of(before, 2), sure_of(after, 2), images(labels), "val_accuracy")
    lost, gained, n = 25.5, 9.5, 202
    mean = (gained - lost) / n
    half = 1.96 * math.sqrt(lost + gained - (gained - lost) ** 2 / n) / n
    assert told.difference == pytest.approx((mean - half, mean + half), abs=1e-9)


def test_divergence_is_kullback_and_leiblers():
    p, q = np.float32([[0.7, 0.2, 0.1]]), np.float32([[0.5, 0.3, 0.2]])
    by_hand = 0.7 * math.log(0.7 / 0.5) + 0.2 * math.log(0.2 / 0.3) + 0.1 * math.log(0.1 / 0.2)
    assert divergence(p, q, False) == pytest.approx(by_hand, rel=1e-5)
    both = sum(
        a * math.log(a / b) + (1 - a) * math.log((1 - a) / (1 - b))
        for a, b in zip(*p.tolist(), *q.tolist(), strict=True)
    )
    assert divergence(p, q, True) == pytest.approx(both, rel=1e-5)
    assert divergence(p, np.full((1, 3), np.nan), False) == math.inf


def evidence(**more):
    told = {"split": "test", "images": 200, "trained_on": False, "agreement": 0.97, "divergence": 0.01}
    told |= {"before": {"accuracy": 0.9}, "after": {"accuracy": 0.895}, "only_before": 3, "only_after": 2}
    split = SplitEvidence(**(told | {"difference": (-0.03, 0.02)} | more))
    return Evidence("int8", "8-bit activations", (split,), (2.0, 1.0), (8_000_000, 2_000_000))


def test_sentences_say_whether_the_difference_is_within_noise():
    assert "is within noise (95 % interval -3.0 to +2.0 points)" in sentences(evidence())[1]
    assert "is more than noise" in sentences(evidence(difference=(-0.03, -0.01)))[1]
    assert "It was trained on these images" in sentences(evidence(trained_on=True))[1]
    assert "have no labels: 3.0 % of the answers change" in sentences(evidence(difference=None, before={}, after={}))[1]


def test_card_has_the_figures():
    title, text = card_section(evidence())
    assert title == "ONNX in int8"
    assert "| accuracy (test, 200 images) | 90.0 % | 89.5 % |" in text
    assert "| ms an image, on one thread | 2.00 | 1.00 |" in text
    assert "| size | 7.63 MiB | 1.91 MiB |" in text
