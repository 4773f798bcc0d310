"""Channel losses on simulated GPUs."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from helpers.simulated_gpu import simulated_gpu

from delta_tune.attention.channel_losses import ablation_losses_per_image, first_order_losses_per_image
from delta_tune.config import TrialConfig
from delta_tune.data.batches import evaluation_batches
from delta_tune.models.backbones import build_target


@pytest.fixture
def probe(task):
    """The source with a head, three images, their labels, and the layers."""
    model = build_target(task.backbone, 3, torch.Generator().manual_seed(0)).eval()
    torch.nn.init.normal_(model.get_submodule(task.backbone.head).weight, generator=torch.Generator().manual_seed(0))
    images = next(evaluation_batches(task.dataset.train, task.backbone.preprocessing, torch.device("cpu")))[:3]
    return model, images, torch.tensor([0, 1, 2]), task.backbone.layers[:2]


@pytest.mark.parametrize("kind", ["cuda", "mps", "xpu"])
@pytest.mark.parametrize("losses_of", [ablation_losses_per_image, first_order_losses_per_image])
def test_losses_are_those_of_the_cpu(probe, losses_of, kind):
    model, images, labels, layers = probe
    expected = losses_of(model, images, labels, layers)
    with simulated_gpu(kind):
        found = losses_of(model.to(kind), images.to(kind), labels.to(kind), layers)
        model.to("cpu")
    for layer in layers:
        torch.testing.assert_close(found[layer], expected[layer], rtol=1e-3, atol=1e-5)


def test_plans_hold_on_a_gpu_that_rounds_to_tf32(probe):
    model, images, labels, layers = probe
    notes = []
    with simulated_gpu(tf32=True):
        before = torch.backends.cudnn.allow_tf32
        ablation_losses_per_image(model.to("cuda"), images.to("cuda"), labels.to("cuda"), layers, notes=notes)
        assert torch.backends.cudnn.allow_tf32 == before
    assert not notes


@pytest.mark.parametrize("kind", ["cuda", "mps", "xpu"])
def test_attention_is_measured_on_a_gpu(task, kind):
    task = dataclasses.replace(task)
    layer = task.backbone.layers[-1]
    config = TrialConfig(regularizer="delta", layers=layer)
    with simulated_gpu(kind):
        task.measurements.measure([config], kind)
    assert task.measurements.attention["exact"][layer].images == len(task.dataset.train)
