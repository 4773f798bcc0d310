"""The final training, with Ray replaced."""

from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from delta_tune.cluster.resources import Resources
from delta_tune.config import TrialConfig
from delta_tune.study import retraining


@pytest.fixture
def cancelled(monkeypatch):
    """What was cancelled of a Ray whose tasks never end."""
    found = []
    task = SimpleNamespace(remote=lambda *args: "the training")
    monkeypatch.setattr(retraining, "wait_for_resources", lambda *args: None)
    monkeypatch.setattr(retraining.ray, "remote", lambda **options: lambda function: task)
    monkeypatch.setattr(retraining.ray, "wait", lambda runs, timeout: ([], runs))
    monkeypatch.setattr(retraining.ray, "cancel", lambda run, force: found.append((run, force)))
    return found


@contextmanager
def no_bar(text, total):
    yield lambda count: None


def test_final_training_that_takes_too_long_is_ended(cancelled, tmp_path):
    resources = Resources(cpus_per_trial=1, gpus_per_trial=0, slots=1)
    session = SimpleNamespace(resources=resources, progress=SimpleNamespace(say=print, bar=no_bar))
    left = iter([2.0, 1.0, -0.1])
    with pytest.raises(retraining.RetrainingFailed, match="did not end within the time budget"):
        retraining.retrain(None, TrialConfig(), str(tmp_path), session, lambda: next(left))
    assert cancelled == [("the training", True)]
