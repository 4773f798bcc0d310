from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
from timm.layers import DropPath
from torch import nn
from torchvision.models import efficientnet_b0
from torchvision.ops import StochasticDepth

from delta_tune.config import UserError
from delta_tune.models.architectures import build_unfilled
from delta_tune.models.drop_path import set_drop_path


def rates(network):
    probabilities = {DropPath: "drop_prob", StochasticDepth: "p"}
    return [getattr(m, probabilities[type(m)]) for m in network.modules() if type(m) in probabilities]


def test_drop_path_grows_linearly_to_the_largest_probability():
    """The 16 branches of each: torchvision's EfficientNet-B0 and timm's ResNet-50, whose first is never dropped."""
    np.testing.assert_allclose(rates(build_unfilled("efficientnet_b0", 0.3)), np.linspace(0, 0.3, 16))
    np.testing.assert_allclose(rates(build_unfilled("timm:resnet50", 0.3)), np.linspace(0, 0.3, 16)[1:])


def test_drop_path_none_is_the_librarys_own():
    assert rates(build_unfilled("efficientnet_b0")) == rates(efficientnet_b0())
    assert max(rates(efficientnet_b0())) == 0.2 * 15 / 16
    assert rates(build_unfilled("timm:resnet50")) == []


def test_drop_path_of_0_switches_the_librarys_own_off():
    assert rates(build_unfilled("efficientnet_b0", 0.0)) == [0.0] * 16


@pytest.mark.parametrize("model", ["vgg11", "timm:vgg11", "resnet18"])
def test_drop_path_is_refused_where_there_is_nothing_to_drop(model):
    with pytest.raises(UserError, match=rf"^drop_path is 0\.1, but {model} has no residual branches"):
        build_unfilled(model, 0.1)
    assert rates(build_unfilled(model, 0.0)) == []


@pytest.mark.parametrize("model", ["timm:test_resnet", "timm:tf_efficientnet_lite0", "timm:regnety_002"])
def test_drop_path_keeps_the_state_and_what_the_network_computes_in_eval_mode(model):
    torch.manual_seed(0)
    plain = timm.create_model(model.removeprefix("timm:"), num_classes=1000).eval()
    dropping = build_unfilled(model, 0.5).eval()
    assert rates(dropping)
    dropping.load_state_dict(plain.state_dict())
    images = torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(dropping(images), plain(images))


def test_drop_path_drops_whole_branches_of_single_images_and_keeps_the_mean():
    network = nn.Sequential(StochasticDepth(0.1, "row"))
    set_drop_path(network, 0.75, "tiny")
    torch.manual_seed(0)
    images = network.train()(torch.ones(4000, 2))
    assert set(images[:, 0].tolist()) == {0.0, 4.0}
    assert torch.equal(images[:, 0], images[:, 1])
    assert images.mean().item() == pytest.approx(1, abs=0.1)
