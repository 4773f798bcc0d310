"""The folder `best/` while a study runs: the best model so far, never replaced by a worse one."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from delta_tune.config import UserError
from delta_tune.inference.model_config import read_config
from delta_tune.inference.model_folder import save_model
from delta_tune.results.columns import SCORES
from delta_tune.results.layout import BEST, BEST_FILE, CHECKPOINTS, trial_name
from delta_tune.results.tables import StudyTables
from delta_tune.study.all_images import scores_to_beat
from delta_tune.study.study import Study
from delta_tune.training.checkpoint import best_weights, read_resume_point
from delta_tune.training.task import Task


@dataclass(frozen=True, kw_only=True)
class SavedModel:
    """Weights of a trial that are on disk.

    Attributes:
        trial: its number.
        row: of the epoch after which they were scored.
        weights: the file.
        name: the model in words, as in `study.json`.
        lasting: whether the file stays; a trial that runs replaces it by better ones.
    """

    trial: int
    row: dict[str, Any]
    weights: Path
    name: str
    lasting: bool = True


def follow_leader(study: Study) -> None:
    """Make the best trial's weights the model, unless the model is a final training's."""
    if not study.record.retrained:
        save_searched(study)
        study.save_record()


def keep_or_save(study: Study) -> int | None:
    """Keep a final training's model, or make the search's best the model; return its trial, None if there is none."""
    if study.record.retrained and (study.folder / BEST).exists():
        return study.record.winner
    return save_searched(study)


def save_searched(study: Study) -> int | None:
    """Make the best saved weights of the search the model, unless they are; return its trial, None if there is none."""
    record, best = study.record, study.folder / BEST
    found = best_saved(study)
    if found is None:
        return None
    searched = best.exists() and record.model is not None and not record.retrained
    if searched and (record.model == found.name or _score(study) <= study.tables.rank_of(found.row)):
        return record.winner
    if study.mirror is not None and study.tables.trials[found.trial]["state"] == "completed":
        study.mirror.fetch_folder(found.weights.parent)
    try:
        save_winner(study.task_of_trial(found.trial), study.tables, found, best)
    except FileNotFoundError:
        if found.lasting:
            raise
        return record.winner  # the trial has saved a better one meanwhile, which is next
    record.set_model(found.trial, found.name, found.row["epoch"])
    return found.trial


def _score(study: Study) -> tuple[float, float]:
    """By which the model is ordered, with what more images than a trial's are worth.

    Last if it was scored on a sample, or its `config.json` is damaged.
    """
    if study.tables.is_sampled(study.record.winner):
        return math.inf, math.inf
    train, num_val = len(study.dataset.train), len(study.dataset.val)
    try:
        config = read_config(study.folder / BEST)
        metrics, growth = config["metrics"], config.get("fitted_to", train) / train
        return study.tables.rank_of(scores_to_beat(metrics, study.config.metric, growth, num_val))
    except (UserError, KeyError):
        return math.inf, math.inf


def best_saved(study: Study) -> SavedModel | None:
    """The best completed trial, or one that runs, or was stopped with the search, and is better so far."""
    tables, found = study.tables, None
    if tables.leader is not None:
        found = completed_model(tables, tables.leader)
    # From s3://… a trial that runs would be fetched again and again
    states = {"stopped"} if study.mirror is not None else {"stopped", "running"}
    for number, trial in tables.trials.items():
        if trial["state"] not in states or not tables.epochs[number]:
            continue
        if found is not None and tables.rank_of(tables.best_row(number)) >= tables.rank_of(found.row):
            continue
        unfinished = unfinished_model(study, number)
        if unfinished is not None and (found is None or tables.rank_of(unfinished.row) < tables.rank_of(found.row)):
            found = unfinished
    return found


def completed_model(tables: StudyTables, number: int) -> SavedModel:
    """The weights of a completed trial's best epoch."""
    weights = tables.folder / CHECKPOINTS / trial_name(number) / BEST_FILE
    images = tables.trials[number].get("fitted_to")
    name = f"trial {number}" if images is None else f"trial {number}, fitted to {images:,} of the training images"
    return SavedModel(trial=number, row=tables.best_row(number), weights=weights, name=name)


def unfinished_model(study: Study, number: int) -> SavedModel | None:
    """The best weights of a trial that runs or was stopped; None if none was saved, or what was saved is damaged."""
    folder = study.folder / CHECKPOINTS / trial_name(number)
    if study.mirror is not None:
        study.mirror.fetch_folder(folder)
    try:
        point = read_resume_point(folder)
    except UserError as error:
        study.progress.say(f"Trial {number} cannot be the model: {error}")
        return None
    if point is None or point.best_epoch is None:
        return None
    trial = study.tables.trials[number]
    total, stopped = trial["config.max_epochs"], trial["state"] == "stopped"
    reached = f"stopped after epoch {len(point.rows)}" if stopped else f"after epoch {point.best_epoch}"
    return SavedModel(
        trial=number,
        row=point.rows[point.best_epoch - 1],
        weights=best_weights(folder, point),
        name=f"trial {number}, {reached} of {total}",
        lasting=stopped,
    )


def save_winner(task: Task, tables: StudyTables, winner: SavedModel, best: Path) -> None:
    """Make `best/` of a trial's weights."""
    origin = {
        "trial": trial_name(winner.trial),
        "epoch": winner.row["epoch"],
        "config": tables.config(winner.trial).record(),
        "metrics": {name: winner.row[name] for name in SCORES if winner.row.get(name) is not None},
    }
    save_model(task.backbone, task.dataset.classes, [winner.weights], origin, best, task.dataset.kind)
