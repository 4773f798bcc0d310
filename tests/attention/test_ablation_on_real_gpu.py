"""Ablation on a real GPU: cuDNN computes in TF32 by default, and its own algorithms."""

import pytest
import torch
import torchvision

from delta_tune.attention.channel_losses import ablation_losses

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_every_layer_has_a_plan_and_the_losses_of_the_cpu(name):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = torchvision.models.get_model(name, weights=None, num_classes=10)
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = 1.0  # or maps fade with depth, and losses are rounding alone
        with torch.no_grad():
            model.train()(torch.randn(16, 3, 64, 64))
        model.eval()
        images, labels = torch.randn(8, 3, 64, 64), torch.arange(8)
    layers = {"resnet18": ["layer1", "layer3", "layer4"], "mobilenet_v2": ["features.3", "features.10", "features.17"]}
    expected = ablation_losses(model, images, labels, layers[name])
    notes = []
    found = ablation_losses(model.cuda(), images.cuda(), labels.cuda(), layers[name], notes=notes)
    assert notes == []
    for layer, losses in found.items():
        assert torch.corrcoef(torch.stack([losses, expected[layer]]))[0, 1] > 0.99
