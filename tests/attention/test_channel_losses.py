from __future__ import annotations

import math

import pytest
import torch
from test_ablation import NETS, batch, build, chain, naive
from torch import Tensor

from delta_tune.attention.channel_losses import (
    ablation_losses,
    ablation_losses_per_image,
    first_order_losses,
    first_order_losses_per_image,
)
from delta_tune.attention.weights import attention_weights, correlation, perplexity, split_half_reliability
from delta_tune.config import UserError


def test_ablation_losses_are_the_mean_over_images() -> None:
    model = build(chain)
    images, labels = batch(11)
    found = ablation_losses(model, images, labels, ["1.0"])["1.0"]
    assert found.dtype == torch.float32
    assert found.shape == (8,)
    torch.testing.assert_close(found, naive(model, images, labels, "1.0").mean(0), rtol=1e-5, atol=2e-6)


def test_ablation_losses_can_be_trained_on_afterwards() -> None:
    losses = ablation_losses_per_image(build(chain), *batch(2), ["1.0"])["1.0"]
    assert not losses.is_inference()


def test_ablation_losses_name_the_nearest_layer() -> None:
    model = build(NETS["residual"][0])
    with pytest.raises(UserError, match=r"no layer '3.conv3' \(did you mean .*3.conv2"):
        ablation_losses(model, *batch(2), ["3.conv3"])


def test_ablation_losses_refuse_a_model_in_training_mode() -> None:
    model = build(chain)
    model[1].train()
    with pytest.raises(ValueError, match="1 is in training mode"):
        ablation_losses(model, *batch(2), ["1.0"])


def test_ablation_losses_accept_a_head_put_in_after_eval() -> None:
    model = build(chain)
    model[4][3] = torch.nn.Linear(6, 3)
    assert ablation_losses(model, *batch(2), ["1.0"])["1.0"].isfinite().all()


def test_ablation_losses_refuse_labels_of_another_length() -> None:
    images, labels = batch(3)
    with pytest.raises(ValueError, match=r"labels must be int64 \(3,\)"):
        ablation_losses(build(chain), images, labels[:2], ["1.0"])


def test_attention_weights_are_the_softmax_of_z_scores() -> None:
    d = [0.3, -0.1, 0.05, 0.0]
    mean = sum(d) / 4
    std = math.sqrt(sum((x - mean) ** 2 for x in d) / 4)
    powers = [math.exp((x - mean) / std / 2) for x in d]
    expected = torch.tensor([p / sum(powers) for p in powers])
    torch.testing.assert_close(attention_weights(torch.tensor(d), temperature=2.0), expected)


@pytest.mark.parametrize("value", [0.0, 0.1, -3e30])
def test_attention_weights_are_uniform_where_channels_do_not_differ(value: float) -> None:
    assert torch.equal(attention_weights(torch.full((7,), value)), torch.full((7,), 1 / 7))


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_attention_weights_do_not_depend_on_the_scale(scale: float) -> None:
    d = torch.tensor([1.0, 2.0, 4.0])
    torch.testing.assert_close(attention_weights(d * scale), attention_weights(d))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_attention_weights_refuse_what_is_not_finite(bad: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        attention_weights(torch.tensor([0.0, bad]))


def test_attention_weights_refuse_a_temperature_of_zero() -> None:
    with pytest.raises(ValueError, match="temperature > 0 must hold, but got 0"):
        attention_weights(torch.ones(3), temperature=0)


@pytest.mark.parametrize("family", ["residual", "fire"])
def test_first_order_losses_are_the_slope_of_scaling_a_channel(family: str) -> None:
    make, (layer, *_) = NETS[family]
    model = build(make).double()
    images, labels = batch(3)
    step, slopes = 1e-6, []
    scale = torch.ones(1)

    def scaled(module: object, inputs: object, output: Tensor) -> Tensor:
        return output * scale

    found = first_order_losses_per_image(model, images.double(), labels, [layer])[layer]
    handle = model.get_submodule(layer).register_forward_hook(scaled)
    for channel in range(found.shape[1]):
        scale = torch.ones(found.shape[1], 1, 1, dtype=torch.float64)
        scale[channel] = 1 - step
        with torch.no_grad():
            lower = torch.nn.functional.cross_entropy(model(images.double()), labels, reduction="none")
            scale[channel] = 1 + step
            upper = torch.nn.functional.cross_entropy(model(images.double()), labels, reduction="none")
        slopes.append((lower - upper) / (2 * step))
    handle.remove()
    torch.testing.assert_close(found, torch.stack(slopes, 1).float(), rtol=1e-4, atol=1e-6)


def test_first_order_losses_leave_no_gradient_and_no_hook() -> None:
    model = build(NETS["residual"][0])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        found = first_order_losses(model, *batch(3), ["1.conv2", "3.conv2"])
    assert [d.shape for d in found.values()] == [(6,), (8,)]
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def synthetic(images: int, signal: float) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    means = torch.linspace(-1, 1, 200) * signal
    return means + torch.randn(images, 200, generator=generator)


def test_split_half_reliability_is_that_of_the_known_signal() -> None:
    losses = synthetic(64, 0.25)
    found = split_half_reliability(losses, torch.Generator().manual_seed(0), splits=32)
    variance = torch.linspace(-0.25, 0.25, 200).var().item()
    assert found == pytest.approx(variance / (variance + 1 / 64), abs=0.07)  # of the mean over 64 images


def test_split_half_reliability_of_noise_is_near_zero() -> None:
    assert abs(split_half_reliability(synthetic(64, 0.0), torch.Generator().manual_seed(0), splits=32)) < 0.3


def test_split_half_reliability_needs_two_images() -> None:
    with pytest.raises(ValueError, match="at least 2 images"):
        split_half_reliability(torch.zeros(1, 3), torch.Generator())


def test_correlation_is_pearsons() -> None:
    a, b = torch.randn(2, 50, generator=torch.Generator().manual_seed(0))
    assert correlation(a, b) == pytest.approx(float(torch.corrcoef(torch.stack((a, b)))[0, 1]), abs=1e-6)
    assert math.isnan(correlation(a, torch.ones(50)))


def test_perplexity_is_one_for_uniform_weights() -> None:
    assert perplexity(torch.full((8,), 1 / 8)) == pytest.approx(1)
    assert perplexity(torch.tensor([0.5, 0.5, 0.0, 0.0])) == pytest.approx(0.5)
