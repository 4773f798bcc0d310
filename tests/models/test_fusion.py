from __future__ import annotations

import copy

import pytest
import timm
import torch
import torchvision
from torch import nn

from delta_tune.models import onednn
from delta_tune.models.feature_maps import feature_maps
from delta_tune.models.fusion import fold_batch_norms, fuse_activations


def with_statistics(model):
    """In eval mode, with batch norms that do something."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.running_var):
                tensor.uniform_(0.5, 1.5, generator=generator)
            for tensor in (module.bias.data, module.running_mean):
                tensor.normal_(std=0.2, generator=generator)
    return model.eval().requires_grad_(False)


@pytest.mark.parametrize(
    ("make", "layers", "norms"),
    [
        (lambda: timm.create_model("test_resnet"), ("layer1.0.conv2", "layer3.0.conv1"), 15),
        (lambda: torchvision.models.mobilenet_v2(), ("features.3.conv.2", "features.17.conv.2"), 52),
        (lambda: timm.create_model("tf_efficientnet_lite0"), ("blocks.1.1.conv_pwl",), 49),
        (lambda: torchvision.models.densenet121(), ("features.denseblock1",), 121),
    ],
)
def test_folding_changes_neither_maps_nor_logits(make, layers, norms):
    torch.manual_seed(0)
    model = with_statistics(make())
    images = torch.randn(2, 3, 64, 64)
    assert sum(isinstance(m, nn.BatchNorm2d) for m in model.modules()) == norms
    with torch.no_grad(), feature_maps(model, layers) as maps:
        logits, expected = model(images), dict(maps)
        expected = {layer: each.clone() for layer, each in expected.items()}
    folded = fold_batch_norms(model, layers)
    assert folded > 0
    assert folded + sum(isinstance(m, nn.BatchNorm2d) for m in model.modules()) == norms
    with torch.no_grad(), feature_maps(model, layers) as maps:
        torch.testing.assert_close(model(images), logits, rtol=1e-4, atol=1e-4)
        for layer in layers:
            torch.testing.assert_close(maps[layer], expected[layer], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("private", [True, False])
@pytest.mark.parametrize(
    ("make", "layers", "convolutions"),
    [
        (lambda: timm.create_model("test_resnet"), ("layer1.0.conv2", "layer3.0.conv1"), 15),
        (lambda: torchvision.models.mobilenet_v2(), ("features.3.conv.2", "features.17.conv.2"), 52),
        (lambda: timm.create_model("tf_efficientnet_lite0"), ("blocks.1.1.conv_pwl",), 49),
        (lambda: timm.create_model("test_efficientnet"), ("blocks.0.0",), 17),
        (lambda: torchvision.models.squeezenet1_1(), ("features.3.expand3x3", "features.12"), 26),
    ],
)
def test_fusing_changes_neither_maps_nor_logits(make, layers, convolutions, private, monkeypatch):
    if not private:
        monkeypatch.setattr(onednn, "available", lambda: False)
    torch.manual_seed(0)
    model = with_statistics(make()).to(memory_format=torch.channels_last)
    fold_batch_norms(model, layers)
    images = torch.randn(2, 3, 64, 64).contiguous(memory_format=torch.channels_last)
    with torch.no_grad(), feature_maps(model, layers) as maps:
        logits, expected = model(images), dict(maps)
        expected = {layer: each.clone() for layer, each in expected.items()}
    assert fuse_activations(model, layers) == convolutions
    with torch.no_grad(), feature_maps(model, layers) as maps:
        torch.testing.assert_close(model(images), logits, rtol=1e-5, atol=1e-5)
        for layer in layers:
            torch.testing.assert_close(maps[layer], expected[layer], rtol=1e-5, atol=1e-5)


class AskingItsConvolution(nn.Module):
    """As DaViT and XCiT: its forward pass reads attributes of a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.act = nn.ReLU()

    def forward(self, images: Tensor) -> Tensor:
        device, (height, _) = self.first.weight.device, self.first.kernel_size
        return self.act(self.first(images)).to(device) * height


def test_fused_convolution_has_the_attributes_of_its_convolution():
    torch.manual_seed(0)
    model, images = AskingItsConvolution().eval().requires_grad_(False), torch.randn(2, 3, 8, 8)
    expected = model(images)
    assert fuse_activations(model, ()) == 1
    torch.testing.assert_close(model(images), expected)
    torch.testing.assert_close(copy.deepcopy(model)(images), expected)
    assert not list(model.parameters())
    with pytest.raises(AttributeError, match="no_such_thing"):
        model.first.no_such_thing


@pytest.mark.parametrize("wanted", ["first", "first.conv", "second"])
def test_an_output_that_is_wanted_stays_what_it_is(wanted):
    block = nn.Sequential()
    block.conv, block.rest = nn.Conv2d(3, 4, 3), nn.Identity()
    model = nn.Sequential()
    model.first, model.second, model.third = block, nn.BatchNorm2d(4), nn.ReLU()
    model = with_statistics(model)
    images = torch.randn(2, 3, 8, 8)
    with feature_maps(model, [wanted]) as maps:
        model(images)
        expected = maps[wanted].clone()
        fold_batch_norms(model, [wanted])
        fuse_activations(model, [wanted])
    with feature_maps(model, [wanted]) as maps:
        model(images)
        torch.testing.assert_close(maps[wanted], expected)


def test_standardised_convolutions_are_left_alone():
    class Standardised(nn.Conv2d):
        def forward(self, x):
            weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
            return nn.functional.conv2d(x, weight, self.bias)

    model = with_statistics(nn.Sequential(Standardised(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()))
    images = torch.randn(2, 3, 8, 8)
    before = model(images)
    assert fold_batch_norms(model, ()) == fuse_activations(model, ()) == 0
    assert torch.equal(model(images), before)


def test_convolutions_that_are_kept_have_their_own_output():
    model = with_statistics(timm.create_model("test_resnet"))
    before = model.layer1[0].conv2.weight.clone()
    fold_batch_norms(model, ("layer1.0.conv2",))
    assert torch.equal(model.layer1[0].conv2.weight, before)


class Untraceable(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x):
        return self.norm(self.conv(x)) if x.sum() > 0 else self.conv(x)


def test_network_that_cannot_be_traced_stays_as_it_is():
    model = with_statistics(Untraceable())
    assert fold_batch_norms(model, ()) == 0
    assert isinstance(model.norm, nn.BatchNorm2d)


class Shared(nn.Module):
    """One convolution with two readers, another that runs twice."""

    def __init__(self):
        super().__init__()
        self.read_twice, self.run_twice = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        self.norm, self.second = nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, x):
        y = self.read_twice(x)
        return self.norm(y) + y + self.second(self.run_twice(self.run_twice(y)))


def test_convolutions_with_other_readers_are_not_folded():
    model = with_statistics(Shared())
    x = torch.randn(2, 3, 5, 5)
    before = model(x)
    assert fold_batch_norms(model, ()) == 0
    assert torch.equal(model(x), before)
