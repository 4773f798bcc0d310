"""Attention of a model of several labels an image: the same losses as in training, exact and to the first order."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import special
from sklearn.linear_model import LogisticRegression
from torch import nn

from delta_tune.attention import ablation_losses_per_image
from delta_tune.attention.channel_losses import first_order_losses_per_image
from delta_tune.attention.probe_head import fit_head
from delta_tune.config import TrialConfig
from delta_tune.training.measurements import Measurements


class Small(nn.Module):
    """Two convolutions and a head of four labels."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, padding=1)
        self.second = nn.Conv2d(6, 5, 3, padding=1)
        self.head = nn.Linear(5, 4)

    def forward(self, x):
        return self.head(self.second(self.first(x).relu()).relu().mean((2, 3)))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return Small().eval().requires_grad_(False)


IMAGES = torch.randn(10, 3, 8, 8, generator=torch.Generator().manual_seed(1))
LABELS = (torch.rand(10, 4, generator=torch.Generator().manual_seed(2)) < 0.4).float()


def losses(logits):
    logits = logits.double().numpy()
    labels = LABELS.numpy()
    entropies = -(labels * special.log_expit(logits) + (1 - labels) * special.log_expit(-logits))
    return torch.from_numpy(entropies.sum(1))


def test_exact_losses_are_those_of_the_network_with_the_channel_off(model):
    found = ablation_losses_per_image(model, IMAGES, LABELS, ["first"])["first"]
    for channel in range(6):
        with torch.no_grad():
            maps = model.first(IMAGES)
            maps[:, channel] = 0
            off = model.head(model.second(maps.relu()).relu().mean((2, 3)))
            torch.testing.assert_close(
                found[:, channel].double(), losses(off) - losses(model(IMAGES)), atol=1e-5, rtol=0
            )


def test_first_order_losses_are_the_gradient_times_the_channel(model):
    found = first_order_losses_per_image(model, IMAGES, LABELS, ["second"])["second"]
    maps = model.second(model.first(IMAGES).relu()).requires_grad_()
    logits = model.head(maps.relu().mean((2, 3)))
    (gradient,) = torch.autograd.grad(nn.BCEWithLogitsLoss(reduction="sum")(logits, LABELS), maps)
    torch.testing.assert_close(found, -(maps * gradient).sum((2, 3)).detach(), atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("labels", [LABELS.long(), LABELS[:5], LABELS.double()])
def test_labels_of_another_form_are_refused(model, labels):
    with pytest.raises(ValueError, match=r"labels must be int64 \(10,\), or float32 \(10, K\)"):
        ablation_losses_per_image(model, IMAGES, labels, ["first"])


def test_fitted_head_is_scikit_learn_s_regression_of_each_label():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(60, 3)).astype(np.float32)
    labels = (features @ rng.normal(size=(3, 2)) + rng.normal(size=(60, 2)) > 0).astype(np.float32)
    head = nn.Linear(3, 2, bias=False)
    fit_head(head, head, torch.from_numpy(features), torch.from_numpy(labels), penalty=0.1)
    for k in range(2):
        reference = LogisticRegression(C=1 / (0.1 * 60), fit_intercept=False, tol=1e-8).fit(features, labels[:, k])
        np.testing.assert_allclose(head.weight[k].detach(), reference.coef_[0], rtol=1e-3)


def test_attention_is_measured_of_several_labels(label_task):
    measurements = Measurements(dataset=label_task.dataset, backbone=label_task.backbone, seed=0, cache=None)
    measurements.measure([TrialConfig(regularizer="delta", layers="layer4.0.conv2")])
    found = measurements.attention["exact"]["layer4.0.conv2"]
    assert found.images == 48
    assert np.isfinite(found.losses).all()
    assert found.losses.std() > 0
