"""Against torchvision's MixUp and CutMix, with the shares and boxes that were drawn here."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torchvision.transforms import v2

from delta_tune.config import ImageSettings
from delta_tune.data.mixing import beta_quantile, mix

CLASSES = 5
LABELS = torch.tensor([0, 4, 2, 2, 1, 3])


def settings(**strengths):
    return ImageSettings(augmentation="none", **strengths)


def images(side=20, seed=0):
    pixels = torch.rand(len(LABELS), 3, side, side, generator=torch.Generator().manual_seed(seed))
    return pixels.contiguous(memory_format=torch.channels_last)


def generator(seed):
    return torch.Generator().manual_seed(seed)


def drawn(seed):
    """The numbers that `mix` takes from the generator."""
    return torch.rand(4, dtype=torch.float64, generator=generator(seed)).tolist()


def test_nothing_is_mixed_or_drawn_where_both_are_off():
    given, rng = images(), generator(0)
    before = rng.get_state()
    found, labels = mix(given, LABELS, CLASSES, settings(), rng)
    assert found is given
    assert labels is LABELS
    assert torch.equal(rng.get_state(), before)


@pytest.mark.parametrize("seed", range(3))
def test_mixup_is_torchvisions(seed, monkeypatch):
    share = torch.tensor(stats.beta.ppf(drawn(seed)[1], 0.4, 0.4))
    monkeypatch.setattr(torch.distributions.Beta, "sample", lambda *_: share)
    expected, expected_labels = v2.MixUp(alpha=0.4, num_classes=CLASSES)(images(), LABELS)
    found, labels = mix(images(), LABELS, CLASSES, settings(mixup=0.4), generator(seed))
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(labels, expected_labels)
    assert found.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("seed", range(6))
def test_cutmix_is_torchvisions(seed, monkeypatch):
    """Its own draws are replaced by ours: first a quantile of Beta, then the column and the row of the centre."""
    _, quantile, top, left = drawn(seed)
    share = torch.tensor(stats.beta.ppf(quantile, 0.7, 0.7))
    monkeypatch.setattr(torch.distributions.Beta, "sample", lambda *_: share)
    centre = iter([int(left * 20), int(top * 20)])
    with monkeypatch.context() as patch:
        patch.setattr(torch, "randint", lambda *args, **options: torch.tensor(next(centre)))
        expected, expected_labels = v2.CutMix(alpha=0.7, num_classes=CLASSES)(images(), LABELS)
    given = images()
    found, labels = mix(given, LABELS, CLASSES, settings(cutmix=0.7), generator(seed))
    assert torch.equal(found, expected)
    torch.testing.assert_close(labels, expected_labels)
    assert torch.equal(given, images())


def test_share_of_cutmix_is_that_of_the_pixels_that_stay():
    flat = torch.arange(len(LABELS)).float()[:, None, None, None].expand(-1, 3, 20, 20)
    for seed in range(20):
        found, labels = mix(flat, LABELS, CLASSES, settings(cutmix=1.0), generator(seed))
        assert (found[1, 0] == 1).float().mean().item() == pytest.approx(labels[1, LABELS[1]].item())


def test_each_has_half_of_the_batches_where_both_are_on():
    def boxed(seed):
        found, _ = mix(images(), LABELS, CLASSES, settings(mixup=1.0, cutmix=1.0), generator(seed))
        return bool(torch.isin(found, images()).all())

    assert 70 < sum(boxed(seed) for seed in range(200)) < 130


def test_probabilities_sum_to_one():
    _, labels = mix(images(), LABELS, CLASSES, settings(mixup=0.2), generator(0))
    assert labels.dtype == torch.float32
    torch.testing.assert_close(labels.sum(1), torch.ones(len(LABELS)))


@pytest.mark.parametrize("a", [0.1, 1.0, 5.0])
def test_shares_follow_the_beta_distribution(a):
    shares = [beta_quantile(a, (i + 0.5) / 1000) for i in range(1000)]
    assert np.mean(shares) == pytest.approx(0.5)
    assert np.std(shares) == pytest.approx(math.sqrt(1 / (4 * (2 * a + 1))), rel=0.01)
