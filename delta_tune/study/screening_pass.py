"""What screening does with one candidate: load it, time it, and run it once over a few training images."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from delta_tune.attention.probe_head import measure_features
from delta_tune.config import Candidate, TrialConfig, UserError
from delta_tune.data.dataset import Dataset
from delta_tune.data.images import Preprocessing
from delta_tune.models.availability import why_missing
from delta_tune.models.backbones import Backbone, build_source, load_backbone
from delta_tune.models.device_errors import find_device_fault
from delta_tune.results.screened import ScreenedNetwork
from delta_tune.training.speed import measure_speed
from delta_tune.training.task import Task, check_labels
from delta_tune.training.transferability import head_inputs_as_vectors, predict_folds

TIMED_BATCH = 8
"""Images of a step that is timed, at most."""


class MissingWeights(UserError):
    """The library's own weights cannot be had here."""


@dataclass(kw_only=True)
class Runner:
    """A candidate on its way."""

    candidate: Candidate
    row: ScreenedNetwork
    backbone: Backbone | None = None
    """None once it is dropped."""
    epochs: int = 0
    """Of its trials that fit into the time."""

    place: float = math.inf
    """The kept ones are at 0 and 1, then come those that were looked at."""

    def keep(self, why: str, place: float = 0) -> None:
        """Note why the study goes on with it."""
        self.row, self.place = dataclasses.replace(self.row, kept=True, verdict=why), place

    def drop(self, why: str, place: float = math.inf) -> None:
        """Note why it is not used, and forget its weights."""
        self.row, self.place, self.backbone = dataclasses.replace(self.row, kept=False, verdict=why), place, None

    def task(self, dataset: Dataset, seed: int = 0) -> Task:
        """A task on a few images."""
        assert self.backbone is not None, "asked only of those that are not dropped"
        return Task(dataset=dataset, backbone=self.backbone, seed=seed)


def load(candidate: Candidate, image_size: int | None, channels: int) -> Backbone | str:
    """The backbone, or why this study cannot use it: its size or channels.

    Raises:
        MissingWeights: the library's own weights cannot be had here.
        UserError: no such model, or its weights cannot be read or do not fit.
    """
    model, weights = candidate.model, candidate.weights
    assert model is not None, "only the demo has none, and it is the only one then"
    if weights in (None, "default") and (why := why_missing(model)):
        raise MissingWeights(why)
    try:
        return load_backbone(model, weights, image_size, channels)
    except UserError as error:
        if candidate.listed and image_size is None and channels == 3:
            return in_short(error)
        if image_size is not None or channels != 3:
            load_backbone(model, weights, None)  # raises where size and channels are not what is wrong
            return in_short(error)
        raise


def preprocessing_of(runner: Runner) -> Preprocessing:
    """How the candidate's images are read."""
    assert runner.backbone is not None, "asked only of those that are not dropped"
    return runner.backbone.preprocessing


def check(runner: Runner, dataset: Dataset, suits: Callable[[str, Task], None]) -> None:
    """Drop a network that the study cannot use."""
    assert runner.backbone is not None, "asked only of those that are not dropped"
    runner.backbone = dataclasses.replace(runner.backbone, preprocessing=dataset.preprocessing)
    try:
        check_labels(runner.backbone, dataset)
        suits(runner.row.label, runner.task(dataset))
    except UserError as error:
        runner.drop(in_short(error))


def time_steps(runner: Runner, dataset: Dataset, device: torch.device, threads: int) -> None:
    """Time an image's forward pass and its part of a training step; drop what the machine has no memory for."""
    config = TrialConfig(
        regularizer="l2",
        head_start="random",
        co_tuning=0.0,
        contrast=0.0,
        batch_size=max(1, min(TIMED_BATCH, len(dataset.train))),
    )
    try:
        speed = measure_speed(runner.task(dataset), config, threads, device)
    except RuntimeError as error:
        if not _is_memory(error):
            raise
        runner.drop("it does not fit into memory")
        return
    assert runner.backbone is not None, "it is not dropped yet"
    runner.row = dataclasses.replace(
        runner.row,
        image_size=runner.backbone.preprocessing.image_size,
        parameters=sum(each.numel() for each in build_source(runner.backbone).parameters()),
        forward_s=speed.scoring,
        training_s=speed.training,
    )


def predict(runner: Runner, dataset: Dataset, seed: int, device: torch.device) -> np.ndarray | None:
    """Logits (N, K) of the images of train by classifiers that were not fitted to them; None if it is dropped."""
    assert runner.backbone is not None, "asked only of those that are not dropped"
    try:
        features, _ = measure_features(runner.backbone, dataset.train, (), device)
    except RuntimeError as error:
        if not _is_memory(error):
            raise
        runner.drop("it does not fit into memory")
        return None
    vectors = head_inputs_as_vectors(features)
    if not np.isfinite(vectors).all():
        runner.drop("its features are not finite numbers")
        return None
    return predict_folds(vectors, dataset.train.labels, len(dataset.classes), dataset.train.groups, seed)


def in_short(error: UserError) -> str:
    """Its sentence, for use within another."""
    return str(error).rstrip(".")


def _is_memory(error: RuntimeError) -> bool:
    fault = find_device_fault(error)
    return fault is not None and fault.kind != "GPU"
