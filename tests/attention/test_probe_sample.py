from __future__ import annotations

import numpy as np
import pytest
import torch

from delta_tune.attention.probe_sample import UNIFORM_SHARE, ProbeImages, error_norm

LABELS = np.repeat(np.arange(4), [40, 30, 20, 10])
SCORES = np.random.default_rng(0).exponential(size=100)


def test_surprise_is_the_length_of_the_losses_gradient():
    logits = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 1, 2, 0, 1])
    torch.nn.functional.cross_entropy(logits, labels, reduction="sum").backward()
    np.testing.assert_allclose(error_norm(logits.detach(), labels), logits.grad.norm(dim=1).numpy(), rtol=1e-12)


def test_draw_orders_every_image_once_and_is_seeded():
    order = ProbeImages.draw(LABELS, SCORES, 1).order
    assert sorted(order) == list(range(100))
    assert np.array_equal(order, ProbeImages.draw(LABELS, SCORES, 1).order)
    assert not np.array_equal(order, ProbeImages.draw(LABELS, SCORES, 2).order)


def test_weights_of_all_images_are_one():
    assert ProbeImages.draw(LABELS, SCORES, 0).weights(100).tolist() == [1.0] * 100


def test_weights_add_up_to_all_images_on_average():
    sums = [ProbeImages.draw(LABELS, SCORES, seed).weights(48).sum() for seed in range(200)]
    assert np.mean(sums) == pytest.approx(100, rel=0.05)


def test_weights_are_bounded_by_the_uniform_share():
    scores = np.zeros(100)
    scores[:3] = 1
    for count in (8, 24, 60):
        weights = ProbeImages.draw(np.zeros(100, dtype=np.int64), scores, 0).weights(count)
        assert weights.max() <= 100 / count / UNIFORM_SHARE * 1.01


def estimates(values, count):
    """The mean over all images, as samples tell it."""
    drawn = [ProbeImages.draw(LABELS, SCORES, seed) for seed in range(300)]
    return [(images.weights(count) * values[images.order[:count]]).sum() / 100 for images in drawn]


def test_weighted_sum_tells_the_mean_over_all_images():
    values = SCORES + LABELS
    assert np.mean(estimates(values, 48)) == pytest.approx(values.mean(), rel=0.04)


def test_weighted_sum_is_closer_than_a_random_sample_where_scores_tell_the_values():
    random = [np.random.default_rng(seed).choice(SCORES, 24, replace=False).mean() for seed in range(300)]
    assert np.std(estimates(SCORES, 24)) < 0.6 * np.std(random)


def test_every_beginning_holds_each_class_in_its_share_where_scores_are_equal():
    order = ProbeImages.draw(LABELS, np.ones(100), 0).order
    for count in (10, 40, 80):
        counts = np.bincount(LABELS[order[:count]], minlength=4)
        assert np.abs(counts - count * np.array([0.4, 0.3, 0.2, 0.1])).max() <= 1


def test_draw_without_any_surprise_is_uniform():
    images = ProbeImages.draw(np.zeros(50, dtype=np.int64), np.zeros(50), 0)
    np.testing.assert_allclose(images.weights(10), 5)


def test_weights_of_fewer_images_than_classes_are_finite():
    labels = np.arange(100) % 50
    weights = ProbeImages.draw(labels, SCORES, 0).weights(16)
    assert np.isfinite(weights).all()
    assert (weights >= 1).all()
