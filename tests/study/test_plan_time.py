"""The time that a plan expects of an epoch."""

from __future__ import annotations

import pytest

from delta_tune.config import TrialConfig
from delta_tune.study import plan
from delta_tune.training.speed import Speed


def test_an_epoch_is_all_images_of_both_splits_at_the_speed_of_a_few(task, monkeypatch):
    def measured(some, config, threads, device):
        assert (config.regularizer, config.batch_size, threads, device.type) == ("delta_uniform", 8, 2, "cpu")
        return Speed(training=2.0, scoring=0.5)

    monkeypatch.setattr(plan, "measure_speed", measured)
    expected = 2.0 * len(task.dataset.train) + 0.5 * len(task.dataset.val)
    assert plan.time_one_epoch(task, TrialConfig(batch_size=8), 2) == pytest.approx(expected)


def test_a_plan_trains_on_few_images(task, monkeypatch):
    seen, few = [], plan.few
    monkeypatch.setattr(plan, "few", lambda *args: seen.append(few(*args)) or seen[-1])
    assert plan.time_one_epoch(task, TrialConfig(batch_size=2), 1) > 0
    assert len(seen[0].dataset.train) == 16 < len(task.dataset.train)
