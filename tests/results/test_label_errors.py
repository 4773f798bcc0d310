from __future__ import annotations

import numpy as np
import pytest

from delta_tune.results.label_errors import fit_label_noise, suspect_labels


def test_suspects_lie_off_the_diagonal_of_the_confident_joint():
    probabilities = np.array(
        [
            [0.9, 0.1, 0.0],
            [0.7, 0.2, 0.1],
            [0.2, 0.8, 0.0],  # called 0, and as sure of 1 as images called 1 are
            [0.4, 0.5, 0.1],  # called 0, more probably 1, but less than images called 1 are
            [0.1, 0.9, 0.0],
            [0.3, 0.6, 0.1],
            [0.6, 0.1, 0.3],  # called 1, as sure of 0 as images called 0 are
        ]
    )
    labels = np.array([0, 0, 0, 0, 1, 1, 1])
    # Mean probability of the label: (0.9 + 0.7 + 0.2 + 0.4) / 4 = 0.55 and (0.9 + 0.6 + 0.1) / 3 = 0.533
    assert suspect_labels(probabilities, labels).tolist() == [2, 6]  # margins 0.2 - 0.8 and 0.1 - 0.6


def test_suspects_are_those_of_cleanlab_in_its_order():
    rng = np.random.default_rng(5)
    true = rng.integers(0, 5, 400)
    logits = rng.normal(0, 1, (400, 5))
    logits[np.arange(400), true] += 2.5
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    labels, wrong = true.copy(), rng.random(400) < 0.08
    labels[wrong] = rng.integers(0, 5, wrong.sum())
    # cleanlab 2.9.0: find_label_issues(labels, probabilities, filter_by="confident_learning",
    #                                   return_indices_ranked_by="normalized_margin")
    expected = [356, 299, 98, 181, 68, 351, 185, 256, 254, 336, 180, 305, 395, 125, 29, 329]
    assert suspect_labels(probabilities, labels).tolist() == expected


def test_class_without_images_has_no_suspects():
    probabilities = np.array([[0.1, 0.0, 0.9], [0.8, 0.1, 0.1], [0.2, 0.7, 0.1]])
    assert suspect_labels(probabilities, np.array([0, 0, 1])).tolist() == []


def test_images_that_are_all_alike_are_not_suspect():
    probabilities = np.tile(np.array([[0.6, 0.4]], dtype=np.float32), (30, 1))
    assert suspect_labels(probabilities, np.zeros(30, dtype=int)).tolist() == []


def noisy(share, seed=0, images=3000, classes=5, scale=1.0):
    """Logits of a calibrated model times `scale`; labels, a share of which was drawn from all classes; and which."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 3, (images, classes))
    odds = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    labels = (odds.cumsum(1) > rng.random((images, 1))).argmax(1)
    drawn = rng.random(images) < share
    return logits * scale, np.where(drawn, rng.integers(0, classes, images), labels), drawn


@pytest.mark.parametrize("share", [0.0, 0.05, 0.2])
def test_share_of_noise_is_estimated(share):
    logits, labels, _ = noisy(share)
    assert fit_label_noise(logits, labels).share == pytest.approx(share, abs=0.03)


@pytest.mark.parametrize("scale", [0.4, 1.0, 2.5])
def test_label_noise_does_not_depend_on_how_sure_the_model_seems(scale):
    logits, labels, _ = noisy(0.1, scale=scale)
    found = fit_label_noise(logits, labels)
    assert found.temperature == pytest.approx(scale, rel=0.2)
    assert found.share == pytest.approx(0.1, abs=0.03)


def test_probability_that_chance_wrote_a_label_follows_bayes_rule():
    logits, labels, _ = noisy(0.1)
    found = fit_label_noise(logits, labels)
    scaled = np.exp(logits / found.temperature)
    given = scaled[np.arange(len(labels)), labels] / scaled.sum(1)
    expected = found.share / 5 / ((1 - found.share) * given + found.share / 5)
    assert found.wrong == pytest.approx(expected)
    assert found.wrong.mean() == pytest.approx(found.share, abs=1e-3)


def test_labels_that_chance_wrote_are_among_the_most_suspect():
    logits, labels, drawn = noisy(0.1)
    changed = drawn & (logits.argmax(1) != labels)
    wrong = fit_label_noise(logits, labels).wrong
    assert np.median(wrong[changed]) > 10 * np.median(wrong[~drawn])


def test_extreme_logits_have_finite_noise():
    found = fit_label_noise(np.array([[1e4, -1e4], [-1e4, 1e4], [1e4, -1e4]]), np.array([0, 1, 1]))
    assert np.isfinite(found.wrong).all()
    assert found.wrong[2] == pytest.approx(1.0)
