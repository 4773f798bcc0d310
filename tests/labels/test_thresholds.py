"""The probability from which on a label is there, against all that are possible."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit, logit
from sklearn.metrics import f1_score

from delta_tune.labels.thresholds import best_threshold, f1_thresholds


@pytest.mark.parametrize("digits", [6, 1])  # with one digit many are alike
@pytest.mark.parametrize("rate", [0.1, 0.3, 0.7])
def test_no_other_threshold_has_a_higher_f1(digits, rate):
    rng = np.random.default_rng(0)
    there = rng.random(80) < rate
    probabilities = np.clip(0.3 * there + 0.7 * rng.random(80), 0, 1).round(digits)
    found = f1_score(there, probabilities >= best_threshold(probabilities, there))
    assert found == max(f1_score(there, probabilities >= each) for each in probabilities)


def test_threshold_lies_between_images_with_and_without_the_label():
    there = np.arange(12) < 6
    assert best_threshold(np.where(there, 0.4, 0.2), there) == pytest.approx(0.3)


@pytest.mark.parametrize("there", [np.zeros(5, dtype=bool), np.ones(5, dtype=bool)])
def test_threshold_of_one_answer_is_a_half(there):
    assert best_threshold(np.linspace(0.1, 0.3, 5), there) == 0.5


def columns(counts, size=200):
    """Probabilities that are right with thresholds of 0.2 + 0.2 k; so many images have the label k."""
    labels = np.stack([np.arange(size) < count for count in counts], axis=1).astype(np.float32)
    middle = 0.2 + 0.2 * np.arange(len(counts))
    return middle + np.where(labels > 0, 0.05, -0.05), labels, middle


def test_label_with_few_images_leans_on_the_threshold_of_all():
    probabilities, labels, middle = columns([90, 2, 0])
    shared = best_threshold(probabilities.ravel(), labels.ravel() > 0)
    weight = np.array([90 / 95, 2 / 7, 0])
    expected = expit(weight * logit(middle) + (1 - weight) * logit(shared))
    np.testing.assert_allclose(f1_thresholds(probabilities, labels), expected, rtol=1e-6)


def test_label_with_many_images_has_its_own_threshold():
    probabilities, labels, middle = columns([4000, 5000, 6000], size=10_000)
    np.testing.assert_allclose(f1_thresholds(probabilities, labels), middle, atol=2e-3)


def test_thresholds_of_rare_labels_find_more_on_other_images_than_each_label_s_best():
    rng, gains = np.random.default_rng(0), []

    def draw(count):
        labels = rng.random((count, 20)) < 0.08
        return expit(2.6 * labels - 1.3 + 1.3 * rng.normal(size=labels.shape) + logit(0.08)), labels

    unseen, truth = draw(2000)
    for _ in range(5):
        probabilities, labels = draw(60)
        own = [best_threshold(probabilities[:, k], labels[:, k]) for k in range(20)]
        ours = f1_thresholds(probabilities, labels)
        found, less = (f1_score(truth, unseen >= each, average="macro", zero_division=0) for each in (ours, own))
        gains.append(found - less)
    assert np.mean(gains) > 0.02
