"""Labels that are probably wrong, from a network or from a finished study, and the CSV to correct them by."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from delta_tune.config import as_utf8
from delta_tune.filesystem.atomic import atomic_write
from delta_tune.inspection.images import ImageFacts
from delta_tune.report.held_out import read_held_out
from delta_tune.training.out_of_fold import confused_pairs, judge_labels

CSV_COLUMNS = ("image", "label", "suggested", "probability", "probability_of_label", "rank")
FORMULAS = ("=", "+", "-", "@", "\t", "\r")
"""What a spreadsheet takes for the beginning of a formula."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Suspect:
    """An image whose label is probably wrong."""

    image: str
    label: str
    suggested: str
    """The likeliest other class."""
    probability: float
    """Of the suggested class."""
    probability_of_label: float


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelReport:
    """What a model that was not trained on the images says of their labels."""

    told_by: str
    """Who, in words."""
    accuracy: float
    """Of these predictions."""
    share: float | None
    """Of wrong labels among all, estimated; None if it is not known."""
    suspects: tuple[Suspect, ...]
    """The most suspect first."""
    alike: tuple[tuple[str, str, float], ...]
    """Pairs of classes that are taken for one another, and the share of their images that are."""


def judge(
    features: np.ndarray, images: Sequence[ImageFacts], classes: Sequence[str], groups: np.ndarray, seed: int
) -> LabelReport:
    """What classifiers on frozen features say; arguments as of `judge_labels`."""
    number = {name: label for label, name in enumerate(classes)}
    labels = np.array([number[image.label] for image in images], dtype=np.int64)
    judged = judge_labels(features, labels, len(classes), groups, seed)
    predicted, suspects = judged.probabilities.argmax(1), []
    for position in judged.noise.suspects().tolist():
        row, given = judged.probabilities[position], labels[position]
        other = int(np.argmax(np.where(np.arange(len(row)) == given, -1, row)))
        suspects.append(
            Suspect(
                image=images[position].name,
                label=images[position].label,
                suggested=classes[other],
                probability=float(row[other]),
                probability_of_label=float(row[given]),
            )
        )
    return LabelReport(
        told_by="linear classifiers on the frozen network, each fitted to other images",
        accuracy=float(np.mean(predicted == labels)),
        share=judged.noise.share,
        suspects=tuple(suspects),
        alike=tuple((classes[one], classes[other], share) for one, other, share in confused_pairs(predicted, labels)),
    )


def label_report_of_study(file: Path) -> LabelReport:
    """What the final runs of a study say of the images that they held out.

    Args:
        file: its `held_out.parquet`.

    Raises:
        UserError: it is damaged.
    """
    rows = read_held_out(file)
    classes = sorted({str(row[key]) for row in rows for key in ("true", "predicted")})
    number = {name: label for label, name in enumerate(classes)}
    labels, predicted = (np.array([number[row[key]] for row in rows], dtype=np.int64) for key in ("true", "predicted"))
    found = sorted((row for row in rows if row["suspect"]), key=lambda row: int(row["suspect"]))
    return LabelReport(
        told_by="the study's final runs, of images that they were not trained on",
        accuracy=float(np.mean(predicted == labels)) if rows else 0.0,
        share=None,
        suspects=tuple(
            Suspect(
                image=row["image"],
                label=row["true"],
                suggested=row["predicted"],
                probability=row["probability"],
                probability_of_label=row["probability_of_true"],
            )
            for row in found
        ),
        alike=tuple((classes[one], classes[other], share) for one, other, share in confused_pairs(predicted, labels)),
    )


def write_suspects(suspects: Sequence[Suspect], file: Path) -> None:
    """Write a row for each image to look at; texts that a spreadsheet would take for formulas begin with an apostrophe.

    Raises:
        OSError: it cannot be written.
    """
    with atomic_write(file) as partial, partial.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(CSV_COLUMNS)
        for rank, each in enumerate(suspects, start=1):
            texts = [_cell(text) for text in (each.image, each.label, each.suggested)]
            writer.writerow([*texts, f"{each.probability:.4f}", f"{each.probability_of_label:.4f}", rank])


def _cell(text: str) -> str:
    """A text as a spreadsheet shows it."""
    text = as_utf8(text)
    return f"'{text}" if text.startswith(FORMULAS) else text
