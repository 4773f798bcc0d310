"""The folder `best/` while a study runs: the best model so far, replaced at each improvement."""

from __future__ import annotations

from pathlib import Path

from delta_tune.inference.model_folder import save_model
from delta_tune.results.columns import SCORES
from delta_tune.results.layout import BEST, BEST_FILE, CHECKPOINTS, trial_name
from delta_tune.results.tables import StudyTables
from delta_tune.study.study import Study
from delta_tune.training.task import Task


def follow_leader(study: Study) -> None:
    """Make the best trial's weights the model, unless a final training has made a better one of a trial."""
    record = study.record
    if record.model is None or record.model == model_name(record.winner):
        save_searched(study)
        study.save_record()


def model_name(trial: int | None) -> str:
    """A trial's model in words, as in `study.json`."""
    return f"trial {trial}"


def save_searched(study: Study) -> int | None:
    """Make the best trial's saved weights the final model, unless they are; return the trial, None if there is none."""
    winner = next(iter(study.tables.ranked()), None)
    if winner is None:
        return None
    model = model_name(winner)
    if study.record.model != model or not (study.folder / BEST).exists():
        if study.mirror is not None:
            study.mirror.fetch_folder(study.folder / CHECKPOINTS / trial_name(winner))
        save_winner(study.task, study.tables, winner, study.folder)
        study.record.set_model(winner, model)
    return winner


def save_winner(task: Task, tables: StudyTables, winner: int, folder: Path) -> None:
    """Make `best/` of the winner's best epoch."""
    row = tables.best_row(winner)
    metrics = {name: row[name] for name in SCORES}
    origin = {"trial": trial_name(winner), "epoch": row["epoch"], "config": tables.config(winner).record()}
    weights = folder / CHECKPOINTS / trial_name(winner) / BEST_FILE
    save_model(task.backbone, task.dataset.classes, weights, origin | {"metrics": metrics}, folder / BEST)
