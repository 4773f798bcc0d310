"""Trials of networks whose hooked layers return tokens or maps with their channels last."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from helpers.small_networks import NAMES, PREFIX_TOKENS, SIDE, small_backbone

from delta_tune.attention.layer_attention import LayerAttention
from delta_tune.config import ImageSettings, TrialConfig
from delta_tune.data.augmentation import center_crop
from delta_tune.data.loading import load_dataset
from delta_tune.filesystem.cache import Cache
from delta_tune.models.backbones import build_source, build_source_head, build_target
from delta_tune.models.feature_maps import feature_maps, head_function, head_inputs
from delta_tune.models.fusion import cast_weights
from delta_tune.training.measurements import Measurements
from delta_tune.training.objective import Objective
from delta_tune.training.source_map_index import StepKey
from delta_tune.training.source_maps import SourceMaps
from delta_tune.training.task import Task
from delta_tune.training.trial import run_trial
from delta_tune.training.workplace import ThisProcess

CPU = torch.device("cpu")
STEP = StepKey(seed=0, batch_size=4, images=ImageSettings(augmentation="none"), epoch=1, step=0)
SOME = ("small_vit", "small_swin", "small_convnext")
COMPILED = (SOME[0], *(pytest.param(name, marks=pytest.mark.slow) for name in SOME[1:]))
"""The same for tests that compile: one of them in the default run."""


@pytest.fixture(scope="module")
def tasks(image_folder):
    """A task of each network, all on the same images."""
    first = small_backbone(NAMES[0])
    dataset = load_dataset(image_folder, preprocessing=first.preprocessing, seed=0)
    return {
        name: Task(
            dataset=dataset, backbone=dataclasses.replace(small_backbone(name), preprocessing=dataset.preprocessing)
        )
        for name in NAMES
    }


def quick(**settings):
    base = {"regularizer": "delta_uniform", "lr": 0.01, "batch_size": 8, "head_start": "random", "max_epochs": 2}
    return TrialConfig(**{**base, **settings})


def some_images(task):
    return center_crop(torch.from_numpy(task.dataset.train.images.batch(np.arange(4))), task.backbone.preprocessing)


def outputs_of(network, layers, images):
    """Layer → what its module returns, as arrays."""
    found = {}
    for layer in layers:
        network.get_submodule(layer).register_forward_hook(
            lambda module, args, output, layer=layer: found.update({layer: output.double().numpy()})
        )
    with torch.no_grad():
        network(images)
    return found


def parts_of(name, output):
    """The image's positions (B, T, C), and the prefix tokens (B, P, C) of a network that has some."""
    flat = output.reshape(len(output), -1, output.shape[-1])
    first = PREFIX_TOKENS.get(name, 0)
    return [flat[:, first:], flat[:, :first]] if first else [flat]


def attention_of(backbone):
    """Made-up losses of switching off the channels of each layer."""
    rng = np.random.default_rng(0)
    return {
        layer: LayerAttention(
            losses=rng.normal(size=backbone.channels[layer]).astype(np.float32), reliability=1.0, images=8
        )
        for layer in backbone.layers
    }


def softmax_of_scores(losses, temperature):
    scores = (losses - losses.mean()) / losses.std() / temperature
    return np.exp(scores) / np.exp(scores).sum()


def objective_of(task, config, target):
    task.measurements.measure_source([config], lambda text: None, ThisProcess())
    layouts = task.backbone.layouts_of(task.backbone.layers)
    source = SourceMaps(task.source_model(CPU, tuple(layouts)), tuple(layouts), layouts=layouts)
    factors = task.measurements.channel_factors(config, CPU)
    head = target.get_submodule(task.backbone.head)
    return Objective(config, target, head, source, factors, layouts=layouts)


@pytest.mark.parametrize(("method", "scale"), [("delta_uniform", "raw"), ("delta", "relative")])
@pytest.mark.parametrize("name", NAMES)
def test_behavior_is_the_mean_over_positions_and_prefix_tokens_by_definition(tasks, name, method, scale):
    task = tasks[name].on(tasks[name].dataset)
    backbone, config = task.backbone, quick(regularizer=method, behavior_scale=scale)
    task.measurements.attention["exact"] = attention_of(backbone)
    target = build_target(backbone, 3, torch.Generator().manual_seed(0)).eval()
    with torch.no_grad():
        for parameter in target.parameters():
            parameter.mul_(1.05)
    images = some_images(task)
    objective = objective_of(task, config, target)
    with objective.hooked():
        found = objective(target(images), torch.zeros(4, dtype=torch.int64), images, STEP)["behavior"].item()
    ours, theirs = (outputs_of(network, backbone.layers, images) for network in (target, build_source(backbone)))
    everything = torch.from_numpy(task.dataset.train.images.batch(np.arange(36)))
    whole = outputs_of(build_source(backbone), backbone.layers, center_crop(everything, backbone.preprocessing))
    expected = 0.0
    for layer in backbone.layers:
        channels = backbone.channels[layer]
        weights = np.full(channels, 1 / channels)
        if method == "delta":
            losses = task.measurements.attention["exact"][layer].losses.astype(np.float64)
            weights = softmax_of_scores(losses, config.attention_temperature)
        parts = zip(*(parts_of(name, each[layer]) for each in (ours, theirs, whole)), strict=True)
        terms = []
        for target_part, source_part, of_all in parts:
            term = 0.0
            for b in range(4):
                for j in range(channels):
                    distance = ((target_part[b, :, j] - source_part[b, :, j]) ** 2).sum() / target_part.shape[1]
                    term += 0.5 * channels * weights[j] * distance / 4
            terms.append(term / (channels * (of_all**2).mean()) if scale == "relative" else term)
        expected += sum(terms) / len(terms)
    assert found == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_behavior_is_zero_at_equal_weights(tasks, name):
    task, config = tasks[name], quick()
    target = build_target(task.backbone, 3, torch.Generator().manual_seed(0)).eval()
    images = some_images(task)
    objective = objective_of(task, config, target)
    with objective.hooked():
        found = objective(target(images), torch.zeros(4, dtype=torch.int64), images, STEP)["behavior"].item()
    assert found < 1e-10  # the source's activations are fused


@pytest.mark.parametrize("name", NAMES)
def test_behavior_is_zero_at_equal_weights_in_half_precision(tasks, name):
    """As on a GPU: the source's weights are cast once, autocast casts the target's."""
    task, config = tasks[name], quick()
    backbone = task.backbone
    source, target = build_source(backbone), build_target(backbone, 3, torch.Generator().manual_seed(0)).eval()
    cast_weights(source, torch.bfloat16)
    layouts, images = backbone.layouts_of(backbone.layers), some_images(task)
    task.measurements.measure_source([config], lambda text: None, ThisProcess())
    maps = SourceMaps(source, tuple(layouts), layouts=layouts)
    factors, head = task.measurements.channel_factors(config, CPU), target.get_submodule(backbone.head)
    objective = Objective(config, target, head, maps, factors, layouts=layouts)
    with objective.hooked(), torch.autocast("cpu", dtype=torch.bfloat16):
        losses = objective(target(images), torch.zeros(4, dtype=torch.int64), images, STEP)
    assert losses["behavior"].dtype == torch.float32
    assert losses["behavior"].item() < 1e-6
    losses["train_loss"].backward()
    assert all(
        p.grad is None or (p.grad.dtype == torch.float32 and p.grad.isfinite().all()) for p in target.parameters()
    )


@pytest.mark.parametrize("name", NAMES)
def test_weight_of_a_layer_is_one_with_and_without_prefix_tokens(tasks, name):
    """A target that lost all of a layer's output has ½ there, whatever its parts: alpha means the same."""
    task, config = tasks[name], quick(layers="last")
    task.measurements.measure_source([config], lambda text: None, ThisProcess())
    factors = task.measurements.channel_factors(config, CPU)
    squares = task.measurements.mean_squares
    lost = sum(0.5 * float(factor.sum()) * squares[part] for part, factor in factors.items())
    assert lost == pytest.approx(0.5, rel=1e-5)
    assert len(factors) == (2 if name in PREFIX_TOKENS else 1)


def test_mean_squares_of_the_parts_are_cached_and_read_again(tasks, tmp_path, monkeypatch):
    task, config = tasks["small_vit"], quick()

    def measured():
        cache = Cache(tmp_path / "cache")
        measurements = Measurements(dataset=task.dataset, backbone=task.backbone, seed=0, cache=cache)
        measurements.measure([config])
        return measurements.mean_squares

    first = measured()
    assert set(first) == {f"{layer}{part}" for layer in task.backbone.layers for part in ("", ":prefix")}
    monkeypatch.setattr("delta_tune.training.measurements.measure_features", None)
    assert measured() == first


class ContiguousStore:
    """Keeps maps as Ray's object store does: without gaps, channels last, as arrays."""

    def __init__(self):
        self.arrays, self.found = {}, 0

    def ask(self, key, names):
        arrays = self.arrays.get(key)
        if arrays is None or not set(names) <= set(arrays):
            return None, True
        self.found += 1
        return {name: torch.from_numpy(arrays[name].copy()).permute(0, 3, 1, 2) for name in names}, False

    def leave(self, key, maps):
        self.arrays[key] = {name: np.ascontiguousarray(each.permute(0, 2, 3, 1).numpy()) for name, each in maps.items()}


def numbers(result):
    rows = [{k: v for k, v in row.items() if not k.endswith("seconds")} for row in result.epochs]
    return rows, {name: value.tolist() for name, value in result.model_state.items()}


@pytest.mark.parametrize("name", SOME)
def test_repeated_trial_has_the_same_bits_alone_and_with_shared_maps(tasks, name):
    alone = numbers(run_trial(tasks[name], quick()))
    assert numbers(run_trial(tasks[name], quick())) == alone
    store = ContiguousStore()
    assert numbers(run_trial(tasks[name], quick(), maps=store)) == alone
    assert numbers(run_trial(tasks[name], quick(), maps=store)) == alone
    assert store.found == 2 * 5  # 36 images in batches of 8, two epochs
    assert alone[0][1]["behavior"] > 0


class Killed(Exception):
    """Ends a run where a process would be killed."""


@pytest.mark.parametrize("name", SOME)
def test_resumed_trial_equals_an_uninterrupted_one_bit_for_bit(tasks, name, tmp_path):
    def die(row):
        if row["epoch"] == 2:
            raise Killed

    def rows(result):
        return [{k: v for k, v in row.items() if not k.endswith("seconds")} for row in result.epochs]

    config = quick(max_epochs=3, average_epochs=1)
    whole = run_trial(tasks[name], config, checkpoint=tmp_path / "whole")
    with pytest.raises(Killed):  # the first epoch is saved
        run_trial(tasks[name], config, die, checkpoint=tmp_path / "cut", decisive=(1, 2))
    assert rows(run_trial(tasks[name], config, checkpoint=tmp_path / "cut")) == rows(whole)


@pytest.mark.parametrize("name", COMPILED)
def test_compiled_trial_gives_the_same_numbers(tasks, name):
    plain, compiled = (
        run_trial(tasks[name], quick(max_epochs=1), compile_with=backend).epochs[0] for backend in (None, "eager")
    )
    parts = ("train_loss", "behavior", "head_l2", "val_loss")
    assert [plain[part] for part in parts] == pytest.approx([compiled[part] for part in parts], rel=1e-5)


@pytest.mark.parametrize("name", COMPILED)
def test_hooks_break_no_compiled_graph(tasks, name):
    backbone = tasks[name].backbone
    target = build_target(backbone, 3, torch.Generator().manual_seed(0))
    images = torch.randn(2, 3, SIDE, SIDE)
    torch.compiler.reset()
    without = torch._dynamo.explain(target)(images).graph_break_count
    torch.compiler.reset()
    with feature_maps(target, backbone.layers) as maps:
        assert torch._dynamo.explain(target)(images).graph_break_count <= without
        assert tuple(maps) == backbone.layers
    torch.compiler.reset()


@pytest.mark.parametrize("name", NAMES)
def test_head_is_cut_where_pooling_and_norms_end(tasks, name):
    backbone = tasks[name].backbone
    target, images = build_target(backbone, 3, torch.Generator().manual_seed(0)).eval(), some_images(tasks[name])
    with torch.no_grad():
        inputs = head_inputs(target, backbone.head, images)
        logits = head_function(target, backbone.head, image_size=SIDE)(inputs)
        torch.testing.assert_close(logits, target(images))
        torch.testing.assert_close(inputs, target.forward_head(target.forward_features(images), pre_logits=True))
        _, own = build_source_head(backbone, CPU)
        assert own(inputs).shape == (4, 10)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("method", ["co_tuning", "bi_tuning"])
def test_terms_on_the_heads_inputs_reach_the_first_layer(tasks, name, method):
    """They train the whole backbone through pooling and norms, and get one vector an image."""
    task = tasks[name]
    result = run_trial(task, quick(regularizer=method, max_epochs=1))
    assert result.epochs[0]["co_tuning" if method == "co_tuning" else "contrast"] > 0
    inputs = head_inputs(build_source(task.backbone), task.backbone.head, some_images(task))
    assert inputs.shape == (4, task.backbone.source_head["weight"].shape[1])
    first = next(key for key in task.backbone.state if key.endswith("weight"))
    assert not np.array_equal(task.backbone.state[first], result.model_state[first].numpy())
