from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from delta_tune.attention.ablation import IMAGES_AT_ONCE
from delta_tune.attention.measurement import FIRST_ROUND, MAX_PROBE_IMAGES, measure_layers, round_sizes
from delta_tune.attention.probe_sample import ProbeImages
from delta_tune.attention.weights import attention_weights, correlation

IMAGES, CHANNELS = 400, 60


def synthetic(signal: float, seed: int = 0, images: int = IMAGES, channels: int = CHANNELS) -> torch.Tensor:
    """Losses per image whose mean over images is known: a slope over the channels, in noise of variance 1."""
    generator = torch.Generator().manual_seed(seed)
    return signal * torch.linspace(-1, 1, channels) + torch.randn(images, channels, generator=generator)


def drawn(images: int = IMAGES) -> ProbeImages:
    return ProbeImages.draw(np.arange(images) % 5, np.ones(images), 0)


def recorded(images: ProbeImages, losses: dict[str, torch.Tensor], calls: list | None = None):
    def ablate(positions, layers):
        if calls is not None:
            calls.append((positions, layers))
        return {layer: losses[layer][images.order[positions.start : positions.stop]] for layer in layers}

    return ablate


def measured(*args, **kwargs):
    """What `measure_layers` finds in all its rounds."""
    return {layer: each for done in measure_layers(*args, **kwargs) for layer, each in done.items()}


def test_rounds_grow_by_half_in_whole_blocks_until_the_images_run_out():
    sizes = round_sizes(1000)
    assert sizes[0] == FIRST_ROUND
    assert sizes[-1] == MAX_PROBE_IMAGES
    assert all(size % IMAGES_AT_ONCE == 0 for size in sizes)
    assert all(b == -(-3 * a // 16) * 8 for a, b in itertools.pairwise(sizes[:-1]))
    assert round_sizes(60) == [FIRST_ROUND, 60]
    assert round_sizes(7) == [7]


def test_layers_that_are_done_are_probed_no_further():
    images, calls = drawn(), []
    losses = {"clear": synthetic(3.0), "noisy": synthetic(0.0, 1)}
    found = measured(images, ("clear", "noisy"), recorded(images, losses, calls), seed=0)
    assert found["clear"].images == FIRST_ROUND
    assert found["noisy"].images == IMAGES
    assert calls[0] == (range(FIRST_ROUND), ("clear", "noisy"))
    assert all(layers == ("noisy",) for _, layers in calls[1:])
    assert [p for positions, _ in calls for p in positions] == list(range(IMAGES))


def test_reliability_is_that_of_the_known_signal():
    images = drawn()
    losses = {"a": synthetic(0.15, channels=1000)}
    found = measured(images, ("a",), recorded(images, losses), seed=0, reliable=2.0)["a"]
    variance = (0.15 * torch.linspace(-1, 1, 1000)).var().item()
    assert found.images == IMAGES
    assert found.reliability == pytest.approx(variance / (variance + 1 / IMAGES), abs=0.06)


def test_reliability_of_noise_that_looked_good_is_not_flattered():
    """Noise now and then passes a low bar by chance: images that decided so would say 0.3 or more."""
    found = []
    for seed in range(40):
        images = drawn()
        losses = {"a": synthetic(0.0, seed)}
        found.append(measured(images, ("a",), recorded(images, losses), seed=seed, reliable=0.3)["a"])
    stopped = [each.reliability for each in found if each.images < IMAGES]
    assert len(stopped) >= 5
    assert np.mean(stopped) < 0.25


def test_losses_are_the_mean_over_all_images_where_they_run_out():
    images = drawn(30)
    losses = synthetic(0.0, images=30)
    found = measured(images, ("a",), recorded(images, {"a": losses}), seed=0)["a"]
    assert found.images == 30
    np.testing.assert_allclose(found.losses, losses.numpy().mean(0), rtol=1e-5, atol=1e-6)


def test_stopping_early_keeps_the_weights_near_those_of_all_images():
    images, losses = drawn(), synthetic(0.5)
    found = measured(images, ("a",), recorded(images, {"a": losses}), seed=0)["a"]
    assert found.images < IMAGES
    ours, all_images = torch.from_numpy(found.losses), losses.double().mean(0)
    assert correlation(attention_weights(ours), attention_weights(all_images)) > 0.8


def test_a_layer_does_not_depend_on_what_is_measured_with_it():
    images = drawn()
    losses = {"a": synthetic(0.4), "b": synthetic(0.0, 1)}
    alone = measured(images, ("a",), recorded(images, losses), seed=0)["a"]
    together = measured(images, ("b", "a"), recorded(images, losses), seed=0)["a"]
    assert alone.losses.tolist() == together.losses.tolist()
    assert (alone.reliability, alone.images) == (together.reliability, together.images)


def in_time(images: ProbeImages, losses: dict[str, torch.Tensor], counts: dict[str, int], calls: list):
    """As `recorded`, but of each layer only so many images are there when the time is over."""
    whole = recorded(images, losses, calls)

    def ablate(positions, layers):
        found = whole(positions, layers)
        return {layer: each[: max(0, counts[layer] - positions.start)] for layer, each in found.items()}

    return ablate


def test_layers_whose_time_is_over_have_the_images_that_there_were_time_for():
    images, losses, calls = drawn(), {"a": synthetic(0.0), "b": synthetic(0.0, 1)}, []
    found = measured(images, ("a", "b"), in_time(images, losses, {"a": 72, "b": 64}, calls), seed=0)
    assert {layer: each.images for layer, each in found.items()} == {"a": 72, "b": 64}
    assert [positions for positions, _ in calls] == [range(FIRST_ROUND), range(FIRST_ROUND, 88)], "and no more"
    alone = drawn()
    expected = (losses["b"][alone.order[:64]].double() * torch.from_numpy(alone.weights(64))[:, None]).sum(0) / IMAGES
    np.testing.assert_allclose(found["b"].losses, expected.numpy(), rtol=1e-5, atol=1e-6)
    assert -1 <= found["a"].reliability <= 1


def test_layer_without_any_image_in_its_time_is_left_out():
    images, losses = drawn(), {"a": synthetic(0.0), "b": synthetic(0.0, 1)}
    found = measured(images, ("a", "b"), in_time(images, losses, {"a": 8, "b": 0}, []), seed=0)
    assert {layer: each.images for layer, each in found.items()} == {"a": 8}


def test_layers_are_measured_with_no_more_images_than_they_may():
    images = drawn()
    found = measured(images, ("a",), recorded(images, {"a": synthetic(0.0)}), seed=0, most=64)["a"]
    assert found.images == 64


def test_reliability_of_too_few_images_is_unknown():
    images = drawn(7)
    assert np.isnan(measured(images, ("a",), recorded(images, {"a": synthetic(1, images=7)}), seed=0)["a"].reliability)


def test_channels_without_any_loss_are_probed_to_the_end_and_unknown():
    images = drawn()
    found = measured(images, ("a",), recorded(images, {"a": torch.zeros(IMAGES, 8)}), seed=0)["a"]
    assert found.images == IMAGES
    assert np.isnan(found.reliability)


def test_layer_that_is_done_is_told_before_the_others_are_probed_further():
    images, calls = drawn(), []
    rounds = measure_layers(
        images, ("clear", "noisy"), recorded(images, {"clear": synthetic(3), "noisy": synthetic(0)}, calls), seed=0
    )
    assert list(next(rounds)) == ["clear"]
    assert len(calls) == 1
