from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch

from delta_tune import task as task_module
from delta_tune.attention_store import read_attention
from delta_tune.config import TrialConfig
from delta_tune.task import Task, balanced_subset, prepare


@pytest.fixture
def fresh(task, tmp_path):
    """The task with nothing measured, and a cache of its own."""
    return Task(dataset=task.dataset, backbone=task.backbone, seed=0, attention_cache=tmp_path / "cache")


def test_measure_attention_is_found_again_by_a_later_study(fresh, monkeypatch):
    fresh.measure([TrialConfig(regularizer="delta")])
    later = Task(dataset=fresh.dataset, backbone=fresh.backbone, attention_cache=fresh.attention_cache)
    monkeypatch.setattr(task_module, "ablation_losses_per_image", lambda *a, **k: pytest.fail("computed again"))
    later.measure([TrialConfig(regularizer="delta")])
    for layer, losses in fresh.attention["exact"].items():
        assert np.array_equal(later.attention["exact"][layer], losses)


def test_measure_computes_attention_once_for_all_temperatures_and_subsets(fresh, monkeypatch):
    calls = []
    exact = task_module.ablation_losses_per_image

    def counted(*args, **kwargs):
        calls.append(1)
        return exact(*args, **kwargs)

    monkeypatch.setattr(task_module, "ablation_losses_per_image", counted)
    configs = [
        TrialConfig(layers=layers, attention_temperature=t)
        for layers in ("all", "last", "last_two")
        for t in (1.0, 9.0)
    ]
    fresh.measure(configs)
    for config in configs:
        fresh.channel_factors(config, torch.device("cpu"))
    assert len(calls) == 1


def test_measure_recomputes_a_damaged_file(fresh):
    fresh.measure([TrialConfig(regularizer="delta")])
    (file,) = fresh.attention_files
    good = fresh.attention["exact"]
    file.write_bytes(b"no parquet")
    later = Task(dataset=fresh.dataset, backbone=fresh.backbone, attention_cache=fresh.attention_cache)
    later.measure([TrialConfig(regularizer="delta")])
    assert all(np.array_equal(later.attention["exact"][k], v) for k, v in good.items())
    assert read_attention(file).keys() == good.keys()


def test_attention_key_depends_on_seed_layers_and_estimator(task):
    key = task.attention_key("exact", ["layer1", "layer2"])
    assert key == task.attention_key("exact", ["layer1", "layer2"])
    others = {
        task.attention_key("first_order", ["layer1", "layer2"]),
        task.attention_key("exact", ["layer1"]),
        Task(dataset=task.dataset, backbone=task.backbone, seed=1).attention_key("exact", ["layer1", "layer2"]),
    }
    assert key not in others
    assert len(others) == 3


def test_attention_key_depends_on_the_split(image_folder, tiny_weights, task):
    part = prepare(image_folder, "timm:test_resnet", str(tiny_weights), image_size=64, train_per_class=5)
    assert part.attention_key("exact", part.backbone.layers) != task.attention_key("exact", task.backbone.layers)


def test_measure_only_what_the_methods_need(fresh):
    fresh.measure([TrialConfig(regularizer="l2"), TrialConfig(regularizer="l2_sp")])
    assert not fresh.features
    assert not fresh.attention
    fresh.measure([TrialConfig(regularizer="delta_uniform", behavior_scale="raw")])
    assert not fresh.attention


def test_channel_factors_are_uniform_and_mean_one_without_attention_in_raw_scale(task):
    config = TrialConfig(regularizer="delta_uniform", behavior_scale="raw")
    for factors in task.channel_factors(config, torch.device("cpu")).values():
        torch.testing.assert_close(factors, torch.ones_like(factors))


def test_channel_factors_of_attention_are_mean_one_in_raw_scale(task):
    config = TrialConfig(regularizer="delta", behavior_scale="raw")
    for factors in task.channel_factors(config, torch.device("cpu")).values():
        assert factors.mean().item() == pytest.approx(1.0, rel=1e-5)
        assert factors.std().item() > 0


def test_mean_squares_equal_a_plain_pass_over_the_training_images(task):
    from delta_tune.augment import centre
    from delta_tune.features import feature_maps

    task.measure([TrialConfig(regularizer="delta_uniform")])
    pixels = torch.from_numpy(task.dataset.train.images.batch(np.arange(len(task.dataset.train))))
    source = task.source_model(torch.device("cpu"))
    with torch.no_grad(), feature_maps(source, task.backbone.layers) as maps:
        source(centre(pixels, task.backbone.preprocessing))
        for layer in task.backbone.layers:
            assert task.mean_squares[layer] == pytest.approx(maps[layer].double().square().mean().item(), rel=1e-4)


def test_task_travels_without_networks(task):
    task.source_model(torch.device("cpu"))
    copy = pickle.loads(pickle.dumps(task))
    assert copy._sources == {}
    assert np.array_equal(copy.dataset.train.labels, task.dataset.train.labels)


def test_balanced_subset_takes_classes_in_equal_turns():
    labels = np.array([0] * 50 + [1] * 3 + [2] * 20)
    chosen = labels[balanced_subset(labels, 13, seed=0)]
    assert [int((chosen == k).sum()) for k in range(3)] == [5, 3, 5]


def test_balanced_subset_is_nested_and_seeded():
    labels = np.repeat(np.arange(4), 10)
    small, large = balanced_subset(labels, 8, seed=1), balanced_subset(labels, 20, seed=1)
    assert set(small) <= set(large)
    assert not np.array_equal(small, balanced_subset(labels, 8, seed=2))
