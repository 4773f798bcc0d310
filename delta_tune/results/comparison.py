"""Compare several studies, from their folders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from delta_tune.results.statistics import wilson_interval
from delta_tune.results.study_folder import read_study


def compare_studies(folders: Sequence[str | Path]) -> list[dict[str, Any]]:
    """One row per study: data, model, best trial, test score, trials and time.

    Raises:
        UserError: a folder is not a study.
    """
    return [_row(Path(folder)) for folder in folders]


def comparability_notes(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Sentences on differences that make the studies' scores incomparable."""
    notes = []
    if len({row["data_fingerprint"] for row in rows}) > 1:
        notes.append("The images, their splits or their preprocessing differ: that alone may explain a higher score.")
    if len({row["metric"] for row in rows}) > 1:
        notes.append("The studies optimised different metrics.")
    if len({row["accuracy_of"] for row in rows if row["accuracy"] is not None}) > 1:
        notes.append(
            "The accuracies are of different images: of test, of those that final runs held out, or of validation, "
            "which is optimistic, for it chose the model."
        )
    intervals = [row["interval"] for row in rows if row["interval"] is not None]
    if not notes and len(intervals) > 1:
        highest = max(low for low, _ in intervals)
        if all(high >= highest for _, high in intervals):
            notes.append("The intervals overlap: the difference may be chance.")
    return notes


def _row(folder: Path) -> dict[str, Any]:
    record, tables = read_study(folder)
    states = [row["state"] for row in tables.searched.values()]
    winner = record.winner if record.finished and record.winner is not None else tables.leader
    test = record.scoring
    best = None if winner is None else tables.best_row(winner)
    split = "test" if test else "val"
    images = dict(record.images)
    accuracy: float | None = test.accuracy if test else best["val_accuracy"] if best else None
    if test is None and record.held_out is not None:
        split, accuracy = "held-out images", float(record.held_out["accuracy"])
        images = images | {split: record.held_out["images"]}
    return {
        "study": folder.name,
        "data": record.settings["data"],
        "data_fingerprint": record.fingerprints["data"],
        "images": record.images,
        "model": record.backbone if winner is None else record.model_of(tables.backbone(winner)),
        "method": None if winner is None else tables.trials[winner]["config.regularizer"],
        "metric": record.metric,
        "best": best[record.metric] if best else None,
        "task": record.settings["task"],
        "accuracy_of": split,
        "accuracy": accuracy,
        "interval": None if accuracy is None or split not in images else wilson_interval(accuracy, images[split]),
        "trials": {state: states.count(state) for state in dict.fromkeys(states)},
        "epochs": sum(len(rows) for rows in tables.epochs.values()),
        "seconds": record.spent_seconds,
        "finished": record.finished,
    }
