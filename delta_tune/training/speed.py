"""How fast this machine trains: a few steps on a few images, before a time budget is shared out."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass

import numpy as np
import torch

from delta_tune.config import TrialConfig
from delta_tune.data.dataset import Dataset
from delta_tune.data.resampling import first_images
from delta_tune.models.devices import torch_threads
from delta_tune.training.task import Task
from delta_tune.training.trial import run_trial

FEW_IMAGES = 8
"""Images of the first steps on a CPU."""
SHORT_S = 0.5
"""If a whole batch takes no longer than this, whole batches are timed: a step is not all proportional to its images."""
STEPS_ON_ACCELERATOR = 8
"""Steps of an epoch that is timed there: one alone would be over before the next could be launched."""
SAFE_LR = 1e-6
"""The run must not diverge, and its time does not depend on it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Speed:
    """Seconds per image on one trial's device and threads, while no other trial runs.

    Attributes:
        training: of a step of SGD.
        scoring: of the pass without gradients.
        waiting: wall clock / CPU time of the measurement, ≥ 1: above it other programs use the CPU.
    """

    training: float
    scoring: float
    waiting: float = 1.0

    def epoch_seconds(self, dataset: Dataset) -> float:
        """Seconds of an epoch: training on all images of train, and the scoring of val."""
        return self.training * len(dataset.train) + self.scoring * len(dataset.val)


def measure_speed(task: Task, config: TrialConfig, threads: int, device: torch.device) -> Speed:
    """Time steps of a configuration that needs no attention.

    Args:
        task: data and source; `few` of it is enough.
        config: with the batch size of trials.
        threads: of torch.
        device: where to train.
    """
    with torch_threads(threads):
        if device.type != "cpu":
            return _timed(task, config, STEPS_ON_ACCELERATOR * config.batch_size, device)
        wall, used = time.perf_counter(), time.process_time()
        first = min(FEW_IMAGES, config.batch_size)
        speed = _timed(task, dataclasses.replace(config, batch_size=first), first, device)
        if first < config.batch_size and speed.training * config.batch_size <= SHORT_S:
            speed = _timed(task, config, config.batch_size, device)
        waiting = (time.perf_counter() - wall) / max(time.process_time() - used, 1e-3)
        return dataclasses.replace(speed, waiting=max(1.0, waiting))


def few(task: Task, config: TrialConfig) -> Task:
    """The part of a task that `measure_speed` needs: images copied out of the data set, and no cache."""
    images = STEPS_ON_ACCELERATOR * config.batch_size
    # No cache: it would keep features of a few images under the key of all.
    return dataclasses.replace(task, dataset=first_images(task.dataset, images), cache=None)


def assume_relationship(task: Task) -> None:
    """Let all source classes go with each target class alike, so that a timed trial need not learn which do."""
    if (head := task.backbone.source_head) is not None:
        shape = len(task.dataset.classes), len(head["weight"])
        task.measurements.relationship = np.full(shape, 1 / shape[1], np.float32)


def _timed(task: Task, config: TrialConfig, images: int, device: torch.device) -> Speed:
    """The shortest of two epochs on so many images, after one that is not counted."""
    part = dataclasses.replace(task, dataset=first_images(task.dataset, images))
    assume_relationship(part)
    short = dataclasses.replace(config, max_epochs=3, warmup_epochs=0, lr=SAFE_LR)
    rows = run_trial(part, short, device=device).epochs[1:]
    return Speed(
        training=min(row["seconds"] for row in rows) / len(part.dataset.train),
        scoring=min(row["eval_seconds"] for row in rows) / len(part.dataset.val),
    )
