from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.simulated_gpu import simulated_gpu
from torch import nn

from delta_tune.training import regularizers


def naive_behavior(target, source, weights, mean_square=None):
    """method.md's formula, one image, layer and channel at a time."""
    total = 0.0
    for layer, maps in target.items():
        images, channels, height, width = maps.shape
        for b in range(images):
            for j in range(channels):
                distance = sum(
                    float(maps[b, j, y, x] - source[layer][b, j, y, x]) ** 2
                    for y in range(height)
                    for x in range(width)
                )
                factor = channels * float(weights[layer][j])
                if mean_square is not None:
                    factor /= channels * mean_square[layer]
                total += factor * distance / (height * width) / images
    return 0.5 * total


@pytest.fixture
def maps():
    generator = torch.Generator().manual_seed(0)
    target = {
        "a": torch.randn(3, 4, 5, 2, generator=generator),
        "b": torch.randn(3, 2, 1, 3, generator=generator),
    }
    source = {k: torch.randn(v.shape, generator=generator) for k, v in target.items()}
    weights = {k: torch.rand(v.shape[1], generator=generator).softmax(0) for k, v in target.items()}
    return target, source, weights


def test_behavior_raw_equals_naive_formula(maps):
    target, source, weights = maps
    factors = {k: regularizers.channel_factors(w, None) for k, w in weights.items()}
    assert regularizers.behavior(target, source, factors).item() == pytest.approx(
        naive_behavior(target, source, weights), rel=1e-5
    )


def test_behavior_relative_equals_naive_formula(maps):
    target, source, weights = maps
    mean_square = {"a": 0.7, "b": 3.0}
    factors = {k: regularizers.channel_factors(w, mean_square[k]) for k, w in weights.items()}
    assert regularizers.behavior(target, source, factors).item() == pytest.approx(
        naive_behavior(target, source, weights, mean_square), rel=1e-5
    )


def test_behavior_relative_uniform_is_half_when_the_map_is_lost(maps):
    _, source, _ = maps
    source = {"a": source["a"]}
    factors = {"a": regularizers.channel_factors(torch.full((4,), 0.25), source["a"].square().mean().item())}
    assert regularizers.behavior({"a": torch.zeros_like(source["a"])}, source, factors).item() == pytest.approx(0.5)


def test_behavior_gradient_equals_autograd_of_the_plain_expression(maps):
    target, source, weights = maps
    factors = {k: regularizers.channel_factors(w, None) for k, w in weights.items()}
    ours = {k: v.clone().requires_grad_() for k, v in target.items()}
    plain = {k: v.clone().requires_grad_() for k, v in target.items()}
    (3 * regularizers.behavior(ours, source, factors)).backward()
    expression = sum(((plain[k] - source[k]).square().mean((0, 2, 3)) * factors[k]).sum() * 0.5 for k in plain)
    (3 * expression).backward()
    for k in plain:
        torch.testing.assert_close(ours[k].grad, plain[k].grad)


def test_behavior_counts_only_the_layers_with_factors(maps):
    target, source, weights = maps
    factors = {"b": regularizers.channel_factors(weights["b"], None)}
    only_b = regularizers.behavior({"b": target["b"]}, {"b": source["b"]}, factors)
    assert regularizers.behavior(target, source, factors).item() == only_b.item()


def test_channel_factors_of_a_dead_map_are_zero_in_relative_scale():
    assert regularizers.channel_factors(torch.full((4,), 0.25), 0.0).tolist() == [0, 0, 0, 0]


def naive_contrast(features, labels):
    """Eq. 2 of arXiv 2004.11362, one pair at a time."""
    z = features / np.linalg.norm(features, axis=1, keepdims=True)
    similarity = np.exp(z @ z.T / regularizers.CONTRAST_TEMPERATURE)
    losses = []
    for i in range(len(z)):
        others = [a for a in range(len(z)) if a != i]
        positives = [p for p in others if labels[p] == labels[i]]
        if positives:
            everything = sum(similarity[i, a] for a in others)
            losses.append(-sum(np.log(similarity[i, p] / everything) for p in positives) / len(positives))
    return np.mean(losses) if losses else 0.0


@pytest.mark.parametrize("labels", [[0, 0, 1, 1, 1], [0, 2, 0, 1, 3], [0, 0, 0, 0, 0], [0, 1, 2, 3, 4]])
def test_supervised_contrast_equals_the_formula_pair_by_pair(labels):
    features = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    found = regularizers.supervised_contrast(features, torch.tensor(labels)).item()
    assert found == pytest.approx(naive_contrast(features.double().numpy(), labels), rel=1e-5)


def test_supervised_contrast_of_maps_is_that_of_their_means():
    maps = torch.randn(4, 6, 3, 2, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1, 0, 1])
    expected = regularizers.supervised_contrast(maps.mean((2, 3)), labels)
    assert regularizers.supervised_contrast(maps, labels).item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("labels", [[0, 0, 1], [0, 1, 2], [0]])
def test_supervised_contrast_has_finite_gradients_and_none_without_positives(labels):
    features = torch.randn(len(labels), 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    regularizers.supervised_contrast(features, torch.tensor(labels)).backward()
    assert features.grad.isfinite().all()
    assert features.grad.any() == (len(set(labels)) < len(labels))


def test_supervised_contrast_is_computed_in_float32_under_autocast():
    features, labels = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 0, 0, 1, 1, 1])
    expected = regularizers.supervised_contrast(features, labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(regularizers.supervised_contrast(features, labels), expected)


def test_head_l2_includes_the_bias():
    head = nn.Linear(2, 3)
    with torch.no_grad():
        head.weight.fill_(2.0)
        head.bias.fill_(1.0)
    assert regularizers.head_l2(head).item() == 0.5 * (6 * 4 + 3 * 1)


def test_weight_l2_sp_equals_naive_sum_and_has_no_gradient_at_the_start():
    start = [torch.randn(3, 2), torch.randn(4)]
    moved = [p.clone().add_(0.5).requires_grad_() for p in start]
    assert regularizers.weight_l2_sp(moved, start).item() == pytest.approx(0.5 * 10 * 0.25, rel=1e-5)
    same = [p.clone().requires_grad_() for p in start]
    loss = regularizers.weight_l2_sp(same, start)
    loss.backward()
    assert loss.item() == 0
    assert all(p.grad is not None and p.grad.abs().sum() == 0 for p in same)


def test_behavior_keeps_float32_under_autocast(maps):
    target, source, weights = maps
    factors = {k: regularizers.channel_factors(w, None) for k, w in weights.items()}
    expected = regularizers.behavior(target, source, factors)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert regularizers.behavior(target, source, factors).item() == expected.item()


def plain_l2_sp(parameters, source):
    """The formula, tensor by tensor, as autograd differentiates it."""
    return 0.5 * torch.stack([(p - s).square().sum() for p, s in zip(parameters, source, strict=True)]).sum()


def l2_sp_and_gradients(penalty, parameters, source):
    parameters = [p.detach().requires_grad_() for p in parameters]
    value = penalty(parameters, source)
    (0.3 * value).backward()
    return value.detach(), [p.grad for p in parameters]


@pytest.fixture
def weights_and_source():
    generator = torch.Generator().manual_seed(0)
    source = [torch.randn(shape, generator=generator) for shape in ((64, 32, 3, 3), (64,), (1000, 64))]
    return [s + 0.1 * torch.randn(s.shape, generator=generator) for s in source], source


def test_weight_l2_sp_equals_the_plain_formula_bit_for_bit_on_the_cpu(weights_and_source):
    expected, gradients = l2_sp_and_gradients(plain_l2_sp, *weights_and_source)
    value, found = l2_sp_and_gradients(regularizers.weight_l2_sp, *weights_and_source)
    assert torch.equal(value, expected)
    assert all(map(torch.equal, found, gradients))


def test_weight_l2_sp_on_a_gpu_equals_the_plain_formula_in_launches_that_do_not_grow(weights_and_source):
    expected, gradients = l2_sp_and_gradients(plain_l2_sp, *weights_and_source)
    counts = []
    with simulated_gpu() as gpu:
        for times in (1, 5):
            weights, source = ([x.to("cuda") for x in group] * times for group in weights_and_source)
            gpu.clear()
            value, found = l2_sp_and_gradients(regularizers.weight_l2_sp, weights, source)
            counts.append(gpu.launches.total())
            assert value.item() == pytest.approx(times * expected.item(), rel=1e-5)
            for one, other in zip(found, gradients * times, strict=True):
                torch.testing.assert_close(one.cpu(), other)
    assert counts[0] == counts[1] <= 10
