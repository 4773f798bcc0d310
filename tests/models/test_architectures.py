"""Architectures: what is built, before it has weights."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn
from torchvision.models import inception_v3, mobilenet_v3_small

from delta_tune.config import UserError
from delta_tune.models.architectures import build_unfilled


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("resnet5", "did you mean resnet50"),
        ("timm:resnet5O", "did you mean timm:resnet50"),
        ("seresnet50", "give timm:seresnet50"),
        ("fasterrcnn_resnet50_fpn", "unknown"),
    ],
)
def test_unknown_model_is_refused_with_the_nearest(name: str, hint: str) -> None:
    with pytest.raises(UserError, match=hint):
        build_unfilled(name)


@pytest.mark.parametrize("name", ["timm:tf_efficientnet_lite0", "timm:convnext_atto", "inception_v3"])
def test_building_leaves_the_global_generator_and_constants_alone(name: str) -> None:
    timms = name.startswith("timm:")
    original = timm.create_model(name.removeprefix("timm:")) if timms else inception_v3(init_weights=False)
    before = torch.get_rng_state()
    built = build_unfilled(name)
    assert torch.equal(torch.get_rng_state(), before)
    parameters = {key for key, _ in built.named_parameters()}
    for key, value in original.named_buffers():
        if key not in parameters and not key.startswith("AuxLogits"):
            assert torch.equal(built.get_buffer(key), value)


def test_every_activation_is_out_of_place() -> None:
    assert any(module.inplace for module in mobilenet_v3_small().modules() if isinstance(module, nn.Hardswish))
    assert not any(getattr(module, "inplace", False) for module in build_unfilled("mobilenet_v3_small").modules())
