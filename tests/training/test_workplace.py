from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from delta_tune.attention.probe_head import join_passes, measure_features
from delta_tune.data import batches
from delta_tune.training import workplace
from delta_tune.training.workplace import split_parts


def place(slots, *, accelerated=False):
    return SimpleNamespace(slots=slots, accelerated=accelerated)


@pytest.mark.parametrize("images", [1, 63, 64, 256, 257, 1000, 50_000])
@pytest.mark.parametrize("slots", [1, 2, 7])
def test_parts_are_whole_batches_in_order_and_no_more_than_slots(images, slots):
    parts = split_parts(images, place(slots))
    assert [index for part in parts for index in part] == list(range(images))
    assert all(part.start % batches.EVAL_BATCH_SIZE == 0 for part in parts)
    assert 1 <= len(parts) <= slots
    assert all(len(part) >= 256 for part in parts[:-1])


@pytest.mark.parametrize(("images", "sizes"), [(1024, [1024]), (1025, [1024, 1]), (50_000, [12_544] * 3 + [12_368])])
def test_a_gpu_has_parts_of_a_thousand_images_at_least(images, sizes):
    assert [len(part) for part in split_parts(images, place(4, accelerated=True))] == sizes


def test_pass_in_parts_is_the_same_bits_as_one(task, monkeypatch):
    for module in (batches, workplace):
        monkeypatch.setattr(module, "EVAL_BATCH_SIZE", 4)
    monkeypatch.setattr(workplace, "PART_BATCHES", 1)
    backbone, train, layers = task.backbone, task.dataset.train, ("layer1.0.conv2",)
    cpu = torch.device("cpu")
    features, mean_squares = join_passes([measure_features(backbone, train, layers, cpu)])
    parts = split_parts(len(train), place(3))
    assert len(parts) == 3
    joined = join_passes([measure_features(backbone, train, layers, cpu, part) for part in parts])
    assert np.array_equal(joined[0], features)
    assert joined[1] == mean_squares
