"""The confirmed configuration trained once more, on all images that may be used: the study's final model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ray
import torch

from delta_tune.checkpoint import last_weights
from delta_tune.config import TrialConfig
from delta_tune.plan import Resources
from delta_tune.task import Task
from delta_tune.training import run_trial


class RetrainingDiverged(Exception):
    """The configuration does not bear the larger training set."""


def retrain(task: Task, config: TrialConfig, checkpoint: Path, resources: Resources) -> Path:
    """Train on `task`'s train, on the cluster, and go on where an earlier session stopped.

    Returns:
        The weights after the last epoch: with no image left to choose an epoch by, it is the one that was planned for.

    Raises:
        RetrainingDiverged: with the reason.
    """
    # A whole GPU: no other trial runs any more
    gpus = 1.0 if resources.gpus_per_trial else 0.0
    remote: Any = ray.remote(num_cpus=resources.cpus_per_trial, num_gpus=gpus, max_retries=3)(_run)
    error = ray.get(remote.remote(task, config, checkpoint, resources.device, resources.threads))
    if error:
        raise RetrainingDiverged(error)
    return last_weights(checkpoint)


def _run(task: Task, config: TrialConfig, checkpoint: Path, device: str, threads: int) -> str | None:
    torch.set_num_threads(threads)
    return run_trial(task, config, checkpoint=checkpoint, device=device).error
