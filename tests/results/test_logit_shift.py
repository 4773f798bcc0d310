"""A shift of logits towards rare classes, chosen on images that the networks were not trained on."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, f1_score

from delta_tune.results.logit_shift import LEAST_GAIN, choose_shift

SHARES = np.array([0.8, 0.15, 0.05])
REFERENCES = {
    "val_balanced_accuracy": balanced_accuracy_score,
    "val_macro_f1": lambda true, claimed: f1_score(true, claimed, average="macro"),
}


def posterior(count, seed=0, shares=SHARES):
    """Bayes's own logits of a point on a line near its class's place, and the class, which has these shares."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(3, count, p=SHARES)
    x = rng.normal(1.5 * labels, 1.0)
    distances = (x[:, None] - 1.5 * np.arange(3)) ** 2
    return (np.log(shares) - distances / 2).astype(np.float32), labels


@pytest.mark.parametrize("metric", REFERENCES)
def test_shift_is_the_candidate_with_the_best_metric(metric):
    logits, labels = posterior(4000)
    found = choose_shift(logits, labels, np.log(SHARES).astype(np.float32), metric)
    score = REFERENCES[metric]
    by_hand = {tau: score(labels, (logits - tau * np.log(SHARES)).argmax(1)) for tau in np.arange(1, 7) / 4}
    assert found.after == pytest.approx(max(by_hand.values()))
    assert by_hand[found.strength] == max(by_hand.values())
    assert found.before == pytest.approx(score(labels, logits.argmax(1)))


def test_balanced_accuracy_of_right_probabilities_wants_all_of_the_log_shares():
    found = choose_shift(*posterior(60_000), np.log(SHARES).astype(np.float32), "val_balanced_accuracy")
    assert abs(found.strength - 1) <= 0.25
    assert found.after > found.before + 0.1


@pytest.mark.parametrize("metric", ["val_accuracy", "val_loss"])
def test_metric_that_goes_by_the_frequent_classes_wants_none(metric):
    assert choose_shift(*posterior(4000), np.log(SHARES).astype(np.float32), metric) is None


def test_logits_that_are_for_equal_shares_already_get_none():
    logits, labels = posterior(4000, shares=np.ones(3))
    assert choose_shift(logits, labels, np.log(SHARES).astype(np.float32), "val_balanced_accuracy") is None


def test_gain_within_its_standard_error_is_left():
    """One image of a rare class more is right of 8, and three others are not: far above the least gain, and luck."""
    labels = np.array([0] * 12 + [1] * 8)
    logits = np.zeros((20, 2), dtype=np.float32)
    logits[np.arange(20), labels] = 5.0
    for image in (12, 13):
        logits[image] = [0.1, 0.0]  # a small shift turns it
    logits[:2] = [0.1, 0.0]
    shares = np.log([0.6, 0.4]).astype(np.float32)
    assert LEAST_GAIN < 2 / 8 / 2 - 2 / 12 / 2
    assert choose_shift(logits, labels, shares, "val_balanced_accuracy") is None


def test_gain_below_the_least_is_left(monkeypatch):
    logits, labels = posterior(4000)
    monkeypatch.setattr("delta_tune.results.logit_shift.LEAST_GAIN", 0.5)
    assert choose_shift(logits, labels, np.log(SHARES).astype(np.float32), "val_macro_f1") is None


def test_single_image_says_nothing():
    assert choose_shift(np.zeros((1, 2), np.float32), np.array([1]), np.log([0.9, 0.1]), "val_macro_f1") is None
