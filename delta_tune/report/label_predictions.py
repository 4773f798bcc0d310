"""Predictions of a model of several labels an image: their columns, and what a report shows of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from delta_tune.filesystem.untrusted import MeanOfShares, Picture, Share, Text, check_rows, parse_json
from delta_tune.labels.several_labels import NO_LABEL
from delta_tune.labels.several_labels_metrics import average_precisions
from delta_tune.labels.thresholds import HALF
from delta_tune.report.mistakes import WORST, Mistake

COLUMNS: dict[str, Any] = {
    "image": Text,
    "true": Text,
    "predicted": Text,
    "wrong": Text,
    "probability": MeanOfShares,
    "probabilities": list[MeanOfShares],
    "thumbnail": Picture | None,
}
"""Columns that a report shows, and their values; true and predicted labels are arrays in JSON."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelScore:
    """How well one label is found."""

    label: str
    images: int
    """That have it."""
    average_precision: float
    precision: float
    """0 if it is never predicted."""
    recall: float
    threshold: float

    @property
    def f1(self) -> float:
        """The harmonic mean of precision and recall."""
        both = self.precision + self.recall
        return 2 * self.precision * self.recall / both if both else 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelPredictions:
    """A model's predictions on one split."""

    split: str
    scores: tuple[LabelScore, ...]
    """Of the labels that an image of the split has."""
    worst: tuple[Mistake, ...]
    """Most wrong first."""


def prediction_columns(
    probabilities: npt.NDArray[np.float32],
    labels: npt.NDArray[np.float32],
    classes: Sequence[str],
    thresholds: Sequence[float] | None,
    pairs: npt.NDArray[np.int64] | None = None,
) -> dict[str, Any]:
    """The columns of N images: their labels, those that are predicted, and of each the most wrong one.

    Args:
        probabilities: (N, K).
        labels: (N, K).
        classes: K names.
        thresholds: from which probability on a label is predicted, (K,); None is a half for all.
        pairs: (image, label) which are to stand as the most wrong ones, the worst first, (M, 2).
    """
    least = np.full(len(classes), HALF) if thresholds is None else np.asarray(thresholds)
    wrong = np.abs(probabilities - labels).argmax(1)
    for image, label in reversed(pairs.tolist() if pairs is not None else []):
        wrong[image] = label

    def names(rows: npt.NDArray[np.bool_]) -> list[str]:
        return [json.dumps([classes[k] for k in np.flatnonzero(row).tolist()], ensure_ascii=False) for row in rows]

    return {
        "true": names(labels > 0),
        "predicted": names(probabilities >= least),
        "wrong": [classes[k] for k in wrong.tolist()],
        "probability": probabilities[np.arange(len(labels)), wrong],
        "probabilities": pa.array(list(probabilities), type=pa.list_(pa.float32())),
    }


def most_wrong(
    probabilities: npt.NDArray[np.float32], labels: npt.NDArray[np.float32], thresholds: Sequence[float] | None
) -> npt.NDArray[np.int64]:
    """Positions of the images with a wrong answer, by how far their most wrong label is off; (M,)."""
    least = np.full(labels.shape[1], HALF) if thresholds is None else np.asarray(thresholds)
    wrong = np.flatnonzero(((probabilities >= least) != (labels > 0)).any(1))
    gaps = np.abs(probabilities - labels).max(1)[wrong]
    found: npt.NDArray[np.int64] = wrong[np.argsort(-gaps, kind="stable")]
    return found


def read_label_predictions(rows: Sequence[Mapping[str, Any]], metadata: Mapping[bytes, bytes]) -> LabelPredictions:
    """What a report shows of a checked file's rows.

    Raises:
        ValueError: the file is damaged.
    """
    check_rows(rows, COLUMNS)
    classes = parse_json(metadata.get(b"classes", b""), list[Text])
    thresholds = parse_json(metadata.get(b"thresholds", b""), list[Share])
    number = {name: k for k, name in enumerate(classes)}
    if len(number) < len(classes) or len(thresholds) != len(classes):
        raise ValueError("its classes stand twice, or have not a threshold each")
    labels = [{key: parse_json(row[key], list[Text]) for key in ("true", "predicted")} for row in rows]
    if not all(
        name in number
        for row, each in zip(rows, labels, strict=True)
        for name in (*each["true"], *each["predicted"], row["wrong"])
    ):
        raise ValueError("a row has a label that is not among the classes")
    if not all(len(row["probabilities"]) == len(classes) for row in rows):
        raise ValueError("a row has not a probability for each class")
    true, predicted = (_matrix([each[key] for each in labels], number) for key in ("true", "predicted"))
    probabilities = np.array([row["probabilities"] for row in rows], dtype=float).reshape(len(rows), len(classes))
    precisions = average_precisions(probabilities, true)
    hits, actual, claimed = (true * predicted).sum(0), true.sum(0), predicted.sum(0)
    scores = tuple(
        LabelScore(
            label=classes[k],
            images=int(actual[k]),
            average_precision=float(precisions[k]),
            precision=float(hits[k] / max(1, claimed[k])),
            recall=float(hits[k] / actual[k]),
            threshold=thresholds[k],
        )
        for k in np.flatnonzero(actual)
    )
    shown = [row for row in rows if row.get("thumbnail")]
    worst = sorted(shown, key=lambda row: -abs(float(row["probability"]) - _is_true(row)))[:WORST]
    return LabelPredictions(
        split=metadata.get(b"split", b"").decode(errors="replace"),
        scores=scores,
        worst=tuple(label_mistake(row, "predicted") for row in worst),
    )


def label_mistake(row: Mapping[str, Any], who: str) -> Mistake:
    """What a row says of its most wrong label: that it is missing, or too many.

    Args:
        row: of the file.
        who: the beginning of the sentence: "predicted" or "perhaps".
    """
    return Mistake(
        image=row["image"],
        true=" + ".join(parse_json(row["true"], list[Text])) or NO_LABEL,
        verb=f"{who} {'without' if _is_true(row) else 'also'}",
        predicted=row["wrong"],
        probability=row["probability"],
        thumbnail=row["thumbnail"],
    )


def label_metadata(classes: Sequence[str], thresholds: Sequence[float] | None) -> dict[str, str]:
    """What the file says beside its rows."""
    least = [HALF] * len(classes) if thresholds is None else list(thresholds)
    return {"task": "multilabel", "thresholds": json.dumps(least)}


def _is_true(row: Mapping[str, Any]) -> bool:
    """Whether the image has the label that is most wrong."""
    return row["wrong"] in parse_json(row["true"], list[Text])


def _matrix(names: Sequence[Sequence[str]], number: Mapping[str, int]) -> npt.NDArray[np.float32]:
    found = np.zeros((len(names), len(number)), dtype=np.float32)
    for row, each in zip(found, names, strict=True):
        row[[number[name] for name in each]] = 1
    return found
