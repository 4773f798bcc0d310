from __future__ import annotations

import numpy as np
import pytest

from delta_tune.results.label_errors import fit_label_noise


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
