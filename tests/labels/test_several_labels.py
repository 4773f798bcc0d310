"""Several labels an image, against scikit-learn, scipy and torch's own gradients."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import special
from sklearn import metrics
from sklearn.utils.class_weight import compute_class_weight

from delta_tune.labels.kinds import kind_named, kind_of
from delta_tune.labels.one_label import ONE_LABEL
from delta_tune.labels.several_labels import SEVERAL_LABELS, suspect_pairs

RNG = np.random.default_rng(0)
LABELS = (RNG.random((40, 5)) < [0.5, 0.3, 0.2, 0.1, 0.4]).astype(np.float32)
LABELS[:5] = np.eye(5)
LOGITS = (RNG.normal(size=(40, 5)) + 1.5 * LABELS - 0.5).astype(np.float32)
Y, X = torch.from_numpy(LABELS), torch.from_numpy(LOGITS)


def entropies(logits, shares):
    """Binary cross entropies (N, K), by scipy."""
    return -(shares * special.log_expit(logits) + (1 - shares) * special.log_expit(-logits))


def test_kind_is_told_by_the_form_of_the_labels():
    assert kind_of(LABELS) is SEVERAL_LABELS
    assert kind_of(torch.tensor([0, 1])) is ONE_LABEL
    assert kind_named("multilabel") is SEVERAL_LABELS
    assert kind_named("auto") is kind_named("classification") is ONE_LABEL


def test_loss_is_the_mean_over_images_of_the_sum_over_labels():
    expected = entropies(LOGITS.astype(float), LABELS)
    assert SEVERAL_LABELS.loss(X, Y).item() == pytest.approx(expected.sum(1).mean(), rel=1e-6)
    assert SEVERAL_LABELS.loss(X, Y, "sum").item() == pytest.approx(expected.sum(), rel=1e-6)
    np.testing.assert_allclose(SEVERAL_LABELS.losses(X.double(), Y), expected.sum(1), rtol=1e-12)


def test_losses_of_many_variants_are_those_of_each():
    variants = torch.stack([X, X + 1])
    expected = [entropies(each.numpy().astype(float), LABELS).sum(1) for each in variants]
    np.testing.assert_allclose(SEVERAL_LABELS.losses(variants.double(), Y), expected, rtol=1e-12)


@pytest.mark.parametrize("kind", [ONE_LABEL, SEVERAL_LABELS])
def test_gradient_of_the_loss_is_probabilities_less_labels_for_both_kinds(kind):
    labels = Y if kind is SEVERAL_LABELS else Y.argmax(1)
    logits = X.clone().requires_grad_()
    kind.loss(logits, labels, "sum").backward()
    expected = kind.probabilities(X) - kind.shares(labels, 5)
    torch.testing.assert_close(logits.grad, expected)
    np.testing.assert_allclose(kind.errors(X, labels), logits.grad.norm(dim=1), rtol=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_training_loss_smooths_each_label_towards_a_half(smoothing):
    shares = LABELS * (1 - smoothing) + smoothing / 2
    expected = entropies(LOGITS.astype(float), shares).sum(1).mean()
    assert SEVERAL_LABELS.training_loss(X, Y, smoothing, None).item() == pytest.approx(expected, rel=1e-6)


def test_training_loss_of_mixed_images_is_the_mean_of_their_losses():
    mixed = 0.3 * Y + 0.7 * Y.roll(1, 0)
    expected = 0.3 * SEVERAL_LABELS.loss(X, Y) + 0.7 * SEVERAL_LABELS.loss(X, Y.roll(1, 0))
    torch.testing.assert_close(SEVERAL_LABELS.training_loss(X, mixed, 0.0, None), expected)


def test_balanced_weights_are_scikit_learn_s_of_each_label():
    present, absent = SEVERAL_LABELS.balanced_weights(LABELS, 5)
    for k in range(5):
        expected = compute_class_weight("balanced", classes=np.array([0, 1]), y=LABELS[:, k].astype(int))
        assert [absent[k].item(), present[k].item()] == pytest.approx(expected.tolist())


def test_balanced_training_loss_weighs_presence_and_absence():
    weights = SEVERAL_LABELS.balanced_weights(LABELS, 5)
    each = np.where(LABELS > 0, weights[0].numpy(), weights[1].numpy())
    expected = (each * entropies(LOGITS.astype(float), LABELS)).sum(1).mean()
    assert SEVERAL_LABELS.training_loss(X, Y, 0.0, weights).item() == pytest.approx(expected, rel=1e-5)


def test_label_that_every_image_has_leaves_the_balanced_loss_finite():
    labels = torch.ones(4, 2)
    loss = SEVERAL_LABELS.training_loss(
        torch.zeros(4, 2), labels, 0.1, SEVERAL_LABELS.balanced_weights(labels.numpy(), 2)
    )
    assert math.isfinite(loss.item())


def test_guessing_loss_is_that_of_logits_of_zero():
    assert SEVERAL_LABELS.guessing_loss(5) == pytest.approx(SEVERAL_LABELS.loss(torch.zeros_like(X), Y).item())


def test_log_mean_has_the_mean_of_the_probabilities():
    other = X.flip(0)
    found = SEVERAL_LABELS.log_mean([X, other]).sigmoid()
    torch.testing.assert_close(found, (X.sigmoid() + other.sigmoid()) / 2)


def test_log_mean_of_certain_networks_is_finite():
    assert SEVERAL_LABELS.log_mean([torch.tensor([[200.0]]), torch.tensor([[-200.0]])]).item() == pytest.approx(0.0)


@pytest.mark.parametrize(
    ("metric", "reference"),
    [
        ("val_loss", lambda: -entropies(LOGITS.astype(float), LABELS).sum(1).mean()),
        ("val_accuracy", lambda: metrics.accuracy_score(LABELS, LOGITS > 0)),
        ("val_macro_f1", lambda: metrics.f1_score(LABELS, LOGITS > 0, average="samples", zero_division=1.0)),
        ("val_mean_average_precision", lambda: metrics.label_ranking_average_precision_score(LABELS, LOGITS)),
        (
            "val_balanced_accuracy",
            lambda: np.mean([metrics.balanced_accuracy_score(LABELS[:, k], LOGITS[:, k] > 0) for k in range(5)]),
        ),
    ],
)
def test_mean_of_the_images_scores_is_scikit_learn_s(metric, reference):
    found = SEVERAL_LABELS.image_scores(LOGITS, LABELS, metric)
    assert found.shape == (40,)
    assert found.mean() == pytest.approx(reference(), rel=1e-5)


def test_stratum_is_the_rarest_label_and_images_without_any_have_their_own():
    labels = np.array([[1, 0, 1], [1, 1, 0], [1, 0, 0], [0, 0, 0], [1, 0, 1]], dtype=np.float32)
    assert SEVERAL_LABELS.strata(labels).tolist() == [2, 1, 0, 3, 2]


def test_labels_in_words():
    first, _, none = SEVERAL_LABELS.keys(np.array([[1, 0, 1], [0, 1, 0], [0, 0, 0]], dtype=np.float32))
    assert SEVERAL_LABELS.say(first, ("a", "b", "c")) == "'a' and 'c'"
    assert SEVERAL_LABELS.say(none, ("a", "b", "c")) == "no label"


def test_note_tells_how_many_labels_an_image_has():
    labels = np.array([[1, 1, 1], [0, 1, 0], [0, 0, 0], [0, 0, 0]], dtype=np.float32)
    assert SEVERAL_LABELS.notes([labels[:2], labels[2:]]) == [
        "Several labels an image: 1.0 on average, 3 at most, 2 images without any."
    ]


def test_temperature_undoes_a_factor_of_the_logits():
    rng = np.random.default_rng(1)
    logits = rng.normal(scale=2, size=(4000, 3))
    labels = (rng.random(logits.shape) < special.expit(logits)).astype(np.float32)
    assert SEVERAL_LABELS.temperature(3 * logits, labels) == pytest.approx(3, rel=0.08)


def test_temperature_is_1_if_all_is_right():
    assert SEVERAL_LABELS.temperature(np.where(LABELS > 0, 3.0, -3.0), LABELS) == 1


def test_flipped_labels_are_suspect():
    rng = np.random.default_rng(2)
    logits = rng.normal(-1, 4, (300, 4))
    labels = (rng.random(logits.shape) < special.expit(logits)).astype(np.float32)
    wrong = [(7, 1), (30, 0), (200, 3)]
    for image, label in wrong:
        logits[image, label] = 9.0
        labels[image, label] = 0
    found = suspect_pairs(logits, labels)
    assert set(wrong) == set(map(tuple, found.tolist()))
    assert SEVERAL_LABELS.suspects(logits, labels).tolist() == found[:, 0].tolist()


def test_labels_that_follow_their_probabilities_are_not_suspect():
    rng = np.random.default_rng(3)
    logits = rng.normal(-1, 1, (300, 4))
    labels = (rng.random(logits.shape) < special.expit(logits)).astype(np.float32)
    assert len(suspect_pairs(3 * logits, labels)) == 0
