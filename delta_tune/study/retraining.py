"""Retrain the confirmed configuration on train and validation as the final model."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch

from delta_tune.cluster.assigned_gpu import use_assigned_gpu
from delta_tune.cluster.failures import BrokenGpuError, device_faults_named
from delta_tune.cluster.resources import wait_for_resources
from delta_tune.config import TrialConfig
from delta_tune.data.resampling import merge_val_into_train
from delta_tune.filesystem.uris import is_uri
from delta_tune.inference.model_folder import save_model
from delta_tune.results.layout import BEST, CHECKPOINTS, trial_name
from delta_tune.results.mirror import local_copy
from delta_tune.results.tables import StudyTables
from delta_tune.search.session import Session
from delta_tune.search.worker import push_with_retries
from delta_tune.study.confirmation import Confirmation
from delta_tune.training.checkpoint import last_weights, read_resume_point
from delta_tune.training.task import Task
from delta_tune.training.trial import run_trial

LOOK_S = 1.0


class RetrainingFailed(Exception):
    """The training diverged on the larger training set, or took too long."""


def task_with_all_images(task: Task) -> Task:
    """The task with validation added to train."""
    return task.on(merge_val_into_train(task.dataset))


def describe_model(task: Task, confirmation: Confirmation) -> str:
    """The final model in words; a resumed study uses them to recognise it."""
    return f"trial {confirmation.trials[confirmation.best]} retrained on {len(task.dataset.train)} images"


def retrain_and_save(
    task: Task,
    tables: StudyTables,
    confirmation: Confirmation,
    session: Session,
    folder: Path,
    left: Callable[[], float] | None = None,
) -> int | None:
    """Retrain the confirmed configuration and save it as `best/`; return its trial, None if it failed.

    Args:
        task: the training data.
        tables: the search's tables.
        confirmation: names the best method.
        session: where to train.
        folder: the study's folder.
        left: returns the seconds until the training is ended, done or not; None for no limit.
    """
    trial = confirmation.trials[confirmation.best]
    config, say = tables.config(trial), session.progress.say
    say(f"Training the final model: {describe_model(task, confirmation)}, {config.max_epochs} epochs.")
    with session.measuring.workplace(probes=config.method.uses_attention) as workplace:
        task.measurements.measure([config], say=say, workplace=workplace)
    checkpoint = folder / CHECKPOINTS / f"retrained-{trial}"
    try:
        place = f"{session.checkpoints(folder)}/{checkpoint.name}"
        retrain(task, config, place, session, left)
    except RetrainingFailed as error:
        say(f"The final training {error}; best/ stays as it is.")
        return None
    means = {confirmation.metric: float(np.mean(confirmation.scores[confirmation.best]))}
    origin = {"trial": trial_name(trial), "epoch": config.max_epochs, "config": config.record(), "metrics": means}
    if session.mirror is not None:
        session.mirror.fetch_folder(checkpoint)
    weights = [last_weights(checkpoint)]
    save_model(task.backbone, task.dataset.classes, weights, origin, folder / BEST, task.dataset.kind)
    if session.mirror is not None:
        session.mirror.discard(checkpoint)
    shutil.rmtree(checkpoint)
    return trial


def retrain(
    task: Task,
    config: TrialConfig,
    checkpoint: str,
    session: Session,
    left: Callable[[], float] | None = None,
) -> None:
    """Train on the cluster, resuming where an earlier session stopped.

    The result is the weights after the last epoch, in the folder or at the address `checkpoint`: no images are left to
    choose an epoch by.

    Raises:
        RetrainingFailed: with the reason.
        ExternalFailure: others have used the cluster for a long time.
    """
    # A whole GPU: no other trial is running
    gpus = 1.0 if session.resources.gpus_per_trial else 0.0
    resources = dataclasses.replace(session.resources, gpus_per_trial=gpus)
    wait_for_resources(resources, session.progress.say)
    again = {"max_retries": 3, "retry_exceptions": [BrokenGpuError]}
    remote: Any = ray.remote(num_cpus=resources.cpus_per_trial, num_gpus=gpus, **again)(_run)
    run = remote.remote(task, config, checkpoint, resources.device, resources.threads)
    with session.progress.bar("Final training", config.max_epochs) as advance:
        known = 0
        while not ray.wait([run], timeout=LOOK_S)[0]:
            if (done := _epochs_done(checkpoint)) > known:
                advance(done - known)
                known = done
            if left is not None and left() <= 0:
                ray.cancel(run, force=True)
                raise RetrainingFailed("did not end within the time budget")
    error = ray.get(run)
    if error:
        raise RetrainingFailed(f"diverged ({error})")


def _epochs_done(checkpoint: str) -> int:
    """From the local folder; at an address progress is not read."""
    point = None if is_uri(checkpoint) else read_resume_point(Path(checkpoint))
    return 0 if point is None else point.epoch


def _run(task: Task, config: TrialConfig, checkpoint: str, device: str, threads: int) -> str | None:
    torch.set_num_threads(threads)
    with device_faults_named("the final training"), local_copy(checkpoint) as (folder, mirror):
        if device != "cpu":
            use_assigned_gpu()
        saved = None if mirror is None else lambda epoch: push_with_retries(mirror)
        return run_trial(task, config, checkpoint=folder, device=device, saved=saved).error
