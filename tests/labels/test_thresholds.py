"""The probability from which on a label is there, against all that are possible."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import f1_score

from delta_tune.labels.thresholds import f1_thresholds


@pytest.mark.parametrize("digits", [6, 1])  # with one digit many are alike
def test_no_other_threshold_has_a_higher_f1(digits):
    rng = np.random.default_rng(0)
    labels = rng.random((80, 3)) < [0.1, 0.3, 0.7]
    probabilities = np.clip(0.3 * labels + 0.7 * rng.random(labels.shape), 0, 1).round(digits)
    for k, threshold in enumerate(f1_thresholds(probabilities, labels)):
        found = f1_score(labels[:, k], probabilities[:, k] >= threshold)
        best = max(f1_score(labels[:, k], probabilities[:, k] >= each) for each in np.linspace(0, 1, 2001))
        assert found == pytest.approx(best)


def test_threshold_lies_between_images_with_and_without_the_label():
    labels = np.repeat([[1], [0]], 6, axis=0)
    assert f1_thresholds(np.where(labels, 0.4, 0.2), labels).tolist() == pytest.approx([0.3])


@pytest.mark.parametrize("with_it", [4, 16])
def test_label_of_too_few_images_has_a_half(with_it):
    labels = np.arange(20)[:, None] < with_it
    assert f1_thresholds(np.where(labels, 0.3, 0.1), labels).tolist() == [0.5]
