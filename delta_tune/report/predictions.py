"""Predictions of the final model on the split that scores it, with thumbnails of its worst mistakes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from scipy.sparse import coo_array, csr_array
from torch import Tensor, nn

from delta_tune.config import as_utf8
from delta_tune.console.escape import distinct_names
from delta_tune.data.batches import evaluation_batches, filled
from delta_tune.data.dataset import Split
from delta_tune.data.pictures import thumbnail
from delta_tune.filesystem.atomic import atomic_write
from delta_tune.filesystem.rows import read_table_file
from delta_tune.filesystem.untrusted import MeanOfShares, Picture, Text, check_rows, parse_json, refusing
from delta_tune.inference.ensemble import Flipped, combine, members_of
from delta_tune.labels.kinds import LabelKind, Labels
from delta_tune.models.backbones import Backbone
from delta_tune.models.network_state import rebuild, state_arrays
from delta_tune.report.label_predictions import (
    LabelPredictions,
    label_metadata,
    most_wrong,
    prediction_columns,
    read_label_predictions,
)
from delta_tune.report.mistakes import WORST, Mistake
from delta_tune.results.statistics import wilson_intervals
from delta_tune.training.task import Task
from delta_tune.training.workplace import Workplace, split_parts

COLUMNS: dict[str, Any] = {
    "image": Text,
    "true": Text,
    "predicted": Text,
    "probability": MeanOfShares,
    "thumbnail": Picture | None,
}
"""Columns that a report shows, and their values."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassScore:
    """How one class fares."""

    name: str
    images: int
    """Of this class, ≥ 1."""
    recall: float
    """Share of them that is recognised,"""
    low: float
    high: float
    """and its 95 % interval."""
    f1: float
    taken_for: str
    """The class that they are most often mistaken for; empty if they never are."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Predictions:
    """A model's predictions on one split."""

    split: str
    classes: tuple[str, ...]
    confusion: csr_array
    """(K, K), whole numbers; rows are the true classes."""
    worst: tuple[Mistake, ...]
    """Most confident first."""

    def class_scores(self) -> list[ClassScore]:
        """Of each class in the split."""
        images, claimed, right = self.confusion.sum(1), self.confusion.sum(0), self.confusion.diagonal()
        low, high = wilson_intervals(right, np.maximum(images, 1))
        rows = []
        for index in np.flatnonzero(images):
            row = self.confusion[[index]]
            others = {k: n for k, n in zip(row.indices.tolist(), row.data.tolist(), strict=True) if k != index}
            rows.append(
                ClassScore(
                    name=self.classes[index],
                    images=int(images[index]),
                    recall=float(right[index] / images[index]),
                    low=float(low[index]),
                    high=float(high[index]),
                    f1=float(2 * right[index] / (images[index] + claimed[index])),
                    taken_for=self.classes[max(sorted(others), key=others.__getitem__)] if others else "",
                )
            )
        return rows


def split_logits(task: Task, split: Split, network: nn.Module, workplace: Workplace | None = None) -> Tensor:
    """A network's logits for a split, in order: float32 (N, K) on CPU.

    Args:
        task: has the architecture and the preprocessing.
        split: N images.
        network: the final model's, a combination of several too.
        workplace: computes them; None computes on the network's device.
    """
    if workplace is None:
        return _logits(network, task.backbone, split, None)
    parts = split_parts(len(split), workplace)
    states = [state_arrays(member) for member in members_of(network)]
    flip = isinstance(network, Flipped)
    return torch.cat(workplace.map(_part_logits, parts, task.backbone, task.dataset.kind, states, flip, split))


def _part_logits(
    backbone: Backbone,
    kind: LabelKind,
    states: Sequence[Mapping[str, np.ndarray]],
    flip: bool,
    split: Split,
    device: torch.device,
    part: range,
) -> Tensor:
    network = combine([rebuild(backbone, state, device) for state in states], kind, flip=flip)
    return _logits(network, backbone, split, np.array(part))


def _logits(network: nn.Module, backbone: Backbone, split: Split, indices: np.ndarray | None) -> Tensor:
    device = next(network.parameters()).device
    with torch.inference_mode():
        count = len(split) if indices is None else len(indices)
        batches = evaluation_batches(split, backbone.preprocessing, device, indices)
        return torch.cat([network(filled(images, count))[: len(images)] for images in batches]).float().cpu()


def save_predictions(
    task: Task,
    name: str,
    logits: Tensor,
    file: Path,
    *,
    told: str | None = None,
    thresholds: Sequence[float] | None = None,
) -> None:
    """Write one row per image of the split `name`: what it is, what is predicted, and the probabilities.

    The most confident mistakes get a thumbnail of what the network saw. A report calls the split `told`, if given.

    Args:
        task: its split is predicted.
        name: of the split.
        logits: (N, K), calibrated.
        file: Parquet.
        told: what a report calls the split, if not by its name.
        thresholds: with several labels an image, from which probability on each is there, (K,).
    """
    split, classes = task.dataset.for_name(name), distinct_names(task.dataset.classes, as_utf8)
    columns, wrong, metadata = _answers(task, logits, split.labels, classes, thresholds)
    worst = wrong[:WORST]
    pixels = split.images.batch(worst)
    thumbnails = {n: thumbnail(p, task.backbone.preprocessing) for n, p in zip(worst.tolist(), pixels, strict=True)}
    pictures = pa.array([thumbnails.get(n) for n in range(len(split))], type=pa.binary())
    table = pa.table({"image": [as_utf8(image) for image in split.names], **columns, "thumbnail": pictures})
    metadata = {"split": told or name, "classes": json.dumps(classes), **metadata}
    file.parent.mkdir(exist_ok=True)
    with atomic_write(file) as partial:
        pq.write_table(table.replace_schema_metadata(metadata), partial)


def _answers(
    task: Task, logits: Tensor, labels: Labels, classes: Sequence[str], thresholds: Sequence[float] | None
) -> tuple[dict[str, Any], np.ndarray, dict[str, str]]:
    """Columns of the answers, positions of the images that are wrong, the surest first, and what the file says."""
    probabilities: np.ndarray = task.dataset.kind.probabilities(logits).numpy()
    if task.dataset.is_multilabel:
        there = np.asarray(labels, dtype=np.float32)
        columns = prediction_columns(probabilities, there, classes, thresholds)
        return columns, most_wrong(probabilities, there, thresholds), label_metadata(classes, thresholds)
    columns = class_columns(probabilities, labels, classes)
    wrong = np.flatnonzero(probabilities.argmax(1) != labels)
    return columns, wrong[np.argsort(-probabilities.max(1)[wrong], kind="stable")], {}


def class_columns(probabilities: np.ndarray, labels: Labels, classes: Sequence[str]) -> dict[str, Any]:
    """The columns of N images: true and predicted class, and the probabilities (N, K) of both."""
    return {
        "true": [classes[label] for label in labels],
        "predicted": [classes[label] for label in probabilities.argmax(1)],
        "probability": probabilities.max(1),
        "probability_of_true": probabilities[np.arange(len(labels)), labels],
    }


def read_predictions(file: Path) -> Predictions | LabelPredictions | None:
    """Read what `save_predictions` wrote; None if there is no file.

    Raises:
        UserError: the file is damaged.
    """
    if not file.exists():
        return None
    with refusing(file, "remove it: a report leaves out what it lacks"):
        rows, metadata = read_table_file(file)
        if metadata.get(b"task") == b"multilabel":
            return read_label_predictions(rows, metadata)
        check_rows(rows, COLUMNS)
        classes = parse_json(metadata.get(b"classes", b""), list[Text])
        index_of = {name: index for index, name in enumerate(classes)}
        if len(index_of) < len(classes):
            raise ValueError("a class stands twice")
        if not all(row[key] in index_of for row in rows for key in ("true", "predicted")):
            raise ValueError("a row has a class that is not among the classes")
    true, predicted = (np.array([index_of[row[key]] for row in rows], dtype=int) for key in ("true", "predicted"))
    counts = coo_array((np.ones(len(rows), dtype=np.int64), (true, predicted)), shape=(len(classes), len(classes)))
    worst = sorted((row for row in rows if row.get("thumbnail")), key=lambda row: -float(row["probability"]))[:WORST]
    columns = ("image", "true", "predicted", "probability", "thumbnail")
    return Predictions(
        split=metadata.get(b"split", b"").decode(errors="replace"),
        classes=tuple(classes),
        confusion=counts.tocsr(),
        worst=tuple(Mistake(**{name: row[name] for name in columns}) for row in worst),
    )
