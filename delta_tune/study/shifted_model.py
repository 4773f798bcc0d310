"""The shift of the final model's logits towards rare classes, written into the bias of its head."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from delta_tune.data.dataset import Dataset
from delta_tune.models.backbones import Backbone
from delta_tune.models.network_state import build_network
from delta_tune.report.held_out import HeldOut
from delta_tune.results.image_scores import CLASS_METRICS
from delta_tune.results.logit_shift import LogitShift, choose_shift
from delta_tune.study.study import Study
from delta_tune.training.checkpoint import save_weights
from delta_tune.training.class_shares import log_shares
from delta_tune.training.task import Task


def find_shift(study: Study, task: Task, held_out: HeldOut, weights: Path) -> tuple[LogitShift, Tensor] | None:
    """The shift that helps the study's metric on images that the runs were not trained on, and what it adds to logits.

    Args:
        study: its metric must count all classes alike.
        task: of the model.
        held_out: predictions of the final runs.
        weights: of one of the model's networks: something may follow its head's bias that is no sum.

    Returns:
        The shift and its offsets (K,); None for no shift.
    """
    metric = study.config.metric
    if metric not in CLASS_METRICS or task.dataset.is_multilabel:  # labels of their own have thresholds instead
        return None
    shares = shares_of(task.dataset)
    shift = choose_shift(held_out.logits, held_out.labels, shares.numpy(), metric)
    if shift is None:
        return None
    offsets = -shift.strength * shares
    if not reaches_logits(task.backbone, safetensors.torch.load_file(weights), offsets):
        study.progress.say(
            f"The logits of rare classes are not raised, although {metric} would gain: in {task.backbone.model} "
            f"more than a sum follows the head's bias."
        )
        return None
    return shift, offsets


def shares_of(dataset: Dataset) -> Tensor:
    """log of each class's share of train and validation, (K,)."""
    labels = np.concatenate([dataset.train.labels, dataset.val.labels])
    return log_shares(labels, len(dataset.classes))


def shift_networks(backbone: Backbone, files: Sequence[Path], offsets: Tensor, folder: Path) -> list[Path]:
    """Write each network with the offsets (K,) added to the bias of its head; return the files, in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for number, file in enumerate(files):
        written.append(folder / f"shifted-{number}.safetensors")
        save_weights(_shifted(backbone, safetensors.torch.load_file(file), offsets), written[-1])
    return written


def reaches_logits(backbone: Backbone, state: dict[str, Tensor], offsets: Tensor) -> bool:
    """Whether what is added to the bias of the head is added to the logits."""
    size, channels = backbone.preprocessing.image_size, backbone.preprocessing.channels
    images = torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        plain = build_network(backbone, state)(images)
        shifted = build_network(backbone, _shifted(backbone, state, offsets))(images)
    return torch.allclose(shifted, plain + offsets, rtol=1e-3, atol=1e-3)


def _shifted(backbone: Backbone, state: dict[str, Tensor], offsets: Tensor) -> dict[str, Tensor]:
    name = f"{backbone.head}.bias"
    return state | {name: state[name] + offsets.to(state[name])}
