from __future__ import annotations

import pytest
import timm
import torch
import torchvision
from helpers.random_models import draw_weights

from delta_tune.export.twins import TWINS, copy_weights, in_timm, in_torchvision
from delta_tune.models.architectures import constructor_options

QUICK = ("mobilenet_v2", "mnasnet0_5", "resnet18")
KINDS = (
    *("resnext50_32x4d", "densenet121", "vgg11", "vgg11_bn", "convnext_tiny", "efficientnet_b0", "efficientnet_b5"),
    *("efficientnet_v2_s", "mobilenet_v3_large", "mobilenet_v3_small", "vit_b_32", "swin_t"),
)
"""The smallest of each family and of each rule of twins."""


def marks_of(name):
    return () if name in QUICK else pytest.mark.slow if name in KINDS else pytest.mark.exhaustive


@pytest.mark.parametrize("name", [pytest.param(name, marks=marks_of(name)) for name in sorted(TWINS)])
def test_twins_compute_the_same(name):
    size = {"vit_h_14": 56, "swin_t": 224, "swin_s": 224, "swin_b": 224}.get(name, 96)
    network = draw_weights(torchvision.models.get_model(name, num_classes=3, **constructor_options(name, 3, size)))
    own, keywords = in_timm(name)
    keywords = keywords | constructor_options(f"timm:{own}", 3, size)
    twin = timm.create_model(own, num_classes=3, **keywords).eval()
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    images += torch.tensor([1.0, -1.0]).reshape(2, 1, 1, 1)
    with torch.inference_mode():
        expected = network(images)
        assert not torch.allclose(twin(images), expected, rtol=1e-4, atol=1e-4)
        copy_weights(network.state_dict(), twin)
        torch.testing.assert_close(twin(images), expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
    assert not torch.allclose(expected[0], expected[1], rtol=1e-3, atol=0), "the images make a difference"


def test_weights_of_another_network_are_refused():
    network, other = (torchvision.models.get_model(name, num_classes=3) for name in ("resnet18", "resnet34"))
    with pytest.raises(ValueError, match="not those of its twin"):
        copy_weights(network.state_dict(), other)


def test_twin_of_a_network_of_timm_does_not_depend_on_the_weights_that_it_began_with():
    assert in_torchvision("resnet18.a1_in1k") == in_torchvision("resnet18") == "resnet18"
    assert in_torchvision("mobilenetv2_100") == "mobilenet_v2"
    assert in_torchvision("test_resnet") is None


@pytest.mark.parametrize("name", sorted(TWINS))
def test_twins_are_networks_of_both_libraries(name):
    assert name in torchvision.models.list_models(module=torchvision.models)
    assert timm.is_model(TWINS[name][0])
