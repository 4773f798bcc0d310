"""How the speed of training is measured."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from delta_tune.config import TrialConfig
from delta_tune.training import speed
from delta_tune.training.speed import few, measure_speed
from delta_tune.training.trial import TrialResult

CPU = torch.device("cpu")
PLAIN = TrialConfig(regularizer="l2", batch_size=32)


@pytest.fixture
def timed(monkeypatch):
    """Replaces training by a table of seconds for each batch size; the batch sizes and images that were timed."""
    seen = []

    def use(seconds):
        def run_trial(task, config, device):
            images = len(task.dataset.train)
            seen.append((config.batch_size, images))
            rows = [
                {"seconds": factor * seconds[images], "eval_seconds": factor * 0.01 * len(task.dataset.val)}
                for factor in (9, 1, 2)
            ]
            assert config.max_epochs == len(rows)
            return TrialResult(state="completed", epochs=rows)

        monkeypatch.setattr(speed, "run_trial", run_trial)
        return seen

    return use


def test_speed_is_that_of_whole_batches_where_they_are_quick(task, timed):
    seen = timed({8: 0.1, 32: 0.2})
    found = measure_speed(task, PLAIN, 1, CPU)
    assert seen == [(8, 8), (32, 32)]
    assert (found.training, found.scoring) == (pytest.approx(0.2 / 32), pytest.approx(0.01))


def test_slow_network_is_timed_on_few_images(task, timed):
    seen = timed({8: 4.0})
    assert measure_speed(task, PLAIN, 1, CPU).training == pytest.approx(0.5)
    assert seen == [(8, 8)]


def test_gpu_is_timed_on_several_steps(task, timed):
    seen = timed({36: 1.0})
    measure_speed(task, PLAIN, 1, torch.device("cuda"))
    assert seen == [(32, len(task.dataset.train))]


@pytest.mark.parametrize("method", ["l2", "l2_fe", "delta_uniform"])
def test_speed_of_a_few_images_leaves_task_and_cache_alone(task, method):
    before = torch.get_num_threads(), dict(task.measurements.features)
    config = TrialConfig(regularizer=method, batch_size=4, behavior_scale="raw", average_epochs=1)
    part = few(task, config)
    found = measure_speed(part, config, 1, CPU)
    assert found.training > 0
    assert found.scoring > 0
    assert part.cache is None
    assert (torch.get_num_threads(), task.measurements.features) == before


def test_speed_can_be_measured_on_one_class_only(task):
    part = few(task, TrialConfig(batch_size=1))
    assert np.unique(part.dataset.train.labels).size == 1
    assert measure_speed(part, TrialConfig(regularizer="l2", batch_size=1), 1, CPU).training > 0
