from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import softmax
from torch import nn

from delta_tune.inference.ensemble import Ensemble, Flipped, combine, members_of


def network(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 4, 5)).eval()


@pytest.fixture
def images():
    return torch.from_numpy(np.random.default_rng(0).normal(size=(6, 3, 4, 4)).astype(np.float32))


def probabilities(model, images):
    with torch.inference_mode():
        return softmax(model(images).numpy(), axis=1)


def test_ensemble_averages_probabilities(images):
    members = [network(seed) for seed in range(3)]
    expected = np.mean([probabilities(member, images) for member in members], axis=0)
    np.testing.assert_allclose(probabilities(Ensemble(members), images), expected, rtol=1e-5)


def test_output_is_the_log_of_the_mean(images):
    ensemble = Ensemble([network(0), network(1)])
    with torch.inference_mode():
        np.testing.assert_allclose(ensemble(images).exp().sum(1), np.ones(6), rtol=1e-5)


def test_members_that_are_certain_of_different_classes_stay_finite():
    ensemble = Ensemble([nn.Identity(), nn.Sequential(nn.Identity())])
    with torch.inference_mode():
        found = ensemble(torch.tensor([[500.0, -500.0, 0.0]]))
    assert found.isfinite().all()


def test_flipped_averages_the_image_and_its_mirror_image(images):
    plain = network(0)
    mirrored = torch.from_numpy(images.numpy()[:, :, :, ::-1].copy())
    expected = (probabilities(plain, images) + probabilities(plain, mirrored)) / 2
    np.testing.assert_allclose(probabilities(Flipped(plain), images), expected, rtol=1e-5)


def test_one_network_stays_as_it_is():
    plain = network(0)
    assert combine([plain]) is plain


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("many", [1, 3])
def test_members_are_those_that_were_combined(many, flip):
    networks = [network(seed) for seed in range(many)]
    assert members_of(combine(networks, flip=flip)) == networks
