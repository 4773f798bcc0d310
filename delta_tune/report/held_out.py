"""What the final runs predict of images that they were not trained on, and which of their labels may be wrong."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from delta_tune.config import UserError, as_utf8
from delta_tune.console.escape import distinct_names
from delta_tune.data.pictures import thumbnail
from delta_tune.filesystem.atomic import atomic_write
from delta_tune.filesystem.rows import Rows, read_table_file
from delta_tune.filesystem.untrusted import MeanOfShares, Picture, Text, check_rows, refusing
from delta_tune.labels.kinds import LabelKind, Labels, kind_of
from delta_tune.labels.several_labels import suspect_pairs
from delta_tune.report import label_predictions
from delta_tune.report.mistakes import WORST, Mistake
from delta_tune.report.predictions import class_columns
from delta_tune.training.task import Task

HELD_OUT = "held-out"
"""Stands for the name of a split in the predictions of a report."""
COLUMNS: dict[str, Any] = {
    "image": Text,
    "true": Text,
    "predicted": Text,
    "probability": MeanOfShares,
    "suspect": Annotated[int, Field(ge=1)] | None,
    "thumbnail": Picture | None,
}
"""Columns that a report shows, and their values."""


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Predictions of N images by runs that were not trained on them.

    Attributes:
        names: of the images.
        labels: (N,), or (N, K) with several labels an image.
        logits: (N, K).
    """

    names: tuple[str, ...]
    labels: Labels
    logits: NDArray[np.float32]

    @property
    def kind(self) -> LabelKind:
        """Of the labels."""
        return kind_of(self.labels)

    @property
    def accuracy(self) -> float:
        """Share of the images whose answer is right."""
        return float(np.mean(self.kind.is_right(self.logits, self.labels)))


def join(parts: Sequence[HeldOut]) -> HeldOut:
    """The images of all parts."""
    return HeldOut(
        names=tuple(name for part in parts for name in part.names),
        labels=np.concatenate([part.labels for part in parts]),
        logits=np.concatenate([part.logits for part in parts]),
    )


def write_held_out(
    task: Task,
    logits: Tensor,
    suspects: NDArray[np.int64],
    file: Path,
    thresholds: Sequence[float] | None = None,
) -> None:
    """Write a row per image: what it is, what is predicted, the probabilities, and whether its label may be wrong.

    Args:
        task: its val are the N images.
        logits: (N, K), calibrated.
        suspects: positions of images whose label is probably wrong, the most suspect first; those have a thumbnail.
        file: Parquet.
        thresholds: with several labels an image, from which probability on each is there, (K,).
    """
    split, classes = task.dataset.val, distinct_names(task.dataset.classes, as_utf8)
    probabilities, labels = task.dataset.kind.probabilities(logits).numpy(), np.asarray(split.labels)
    columns: Callable[..., dict[str, Any]] = class_columns
    metadata, rows = dict[str, str](), range(len(labels))
    if task.dataset.is_multilabel:
        pairs = suspect_pairs(logits.numpy(), labels)
        columns = partial(label_predictions.prediction_columns, thresholds=thresholds, pairs=pairs)
        metadata = label_predictions.label_metadata(classes, thresholds) | {"classes": json.dumps(classes)}
    places = {int(position): place for place, position in enumerate(suspects, start=1)}
    shown = np.asarray(suspects[:WORST], dtype=np.int64)
    pictures = (thumbnail(pixels, task.backbone.preprocessing) for pixels in split.images.batch(shown))
    thumbnails = dict(zip(shown.tolist(), pictures, strict=True))
    table = pa.table(
        {
            "image": [as_utf8(name) for name in split.names],
            **columns(probabilities, labels, classes),
            "suspect": pa.array([places.get(row) for row in rows], type=pa.int32()),
            "thumbnail": pa.array([thumbnails.get(row) for row in rows], type=pa.binary()),
        }
    )
    with atomic_write(file) as incomplete:
        pq.write_table(table.replace_schema_metadata(metadata), incomplete)


def read_held_out(file: Path) -> Rows:
    """What `write_held_out` wrote of images with one label each, in their order.

    Raises:
        UserError: the file is damaged, or its images have several labels.
    """
    with refusing(file, "remove it: a report leaves out what it lacks"):
        rows, metadata = read_table_file(file)
        several = metadata.get(b"task") == b"multilabel"
        if not several:
            check_rows(rows, COLUMNS | {"probability_of_true": MeanOfShares})
    if several:
        raise UserError(f"{file} is of images with several labels each; the study's report shows which are suspect.")
    return rows


def read_suspects(file: Path) -> tuple[Mistake, ...]:
    """The images whose label is most probably wrong, the most suspect first; none if there is no file.

    Raises:
        UserError: the file is damaged.
    """
    if not file.exists():
        return ()
    with refusing(file, "remove it: a report leaves out what it lacks"):
        rows, metadata = read_table_file(file)
        several = metadata.get(b"task") == b"multilabel"
        check_rows(rows, label_predictions.COLUMNS | {"suspect": COLUMNS["suspect"]} if several else COLUMNS)
    suspects = sorted((row for row in rows if row["suspect"] and row["thumbnail"]), key=lambda row: int(row["suspect"]))
    if several:
        return tuple(label_predictions.label_mistake(row, "perhaps") for row in suspects[:WORST])
    columns = ("image", "true", "predicted", "probability", "thumbnail")
    return tuple(Mistake(verb="perhaps", **{name: row[name] for name in columns}) for row in suspects[:WORST])
