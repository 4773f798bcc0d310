from __future__ import annotations

import pytest
import torch
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
