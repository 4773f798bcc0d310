"""Write `best/`: the final model's weights and all that is needed to predict with them."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from delta_tune.filesystem.atomic import atomic_write, write_json
from delta_tune.results.layout import (
    BEST,
    BEST_FILE,
    CHECKPOINTS,
    CONFIG_FILE,
    PICTURES_FILE,
    PREDICTIONS_FILE,
    WEIGHTS_FILE,
    trial_name,
)
from delta_tune.results.tables import SCORES, StudyTables
from delta_tune.training.task import Task


def save_winner(task: Task, tables: StudyTables, winner: int, folder: Path) -> None:
    """Make `best/` of the winner's best epoch."""
    row = tables.best_row(winner)
    told = {"trial": trial_name(winner), "epoch": row["epoch"], "config": tables.config(winner).record()}
    told["metrics"] = {name: row[name] for name in SCORES}
    save_model(task, folder / CHECKPOINTS / trial_name(winner) / BEST_FILE, told, folder / BEST)


def save_model(task: Task, weights: Path, told: Mapping[str, Any], best: Path) -> None:
    """A folder of weights and all that another program needs to predict with them.

    What was kept beside it of another model's predictions and maps is taken away.

    Args:
        task: what they were trained for.
        weights: a safetensors file.
        told: where they come from: trial, epoch, config, metrics.
        best: the folder.
    """
    for told_of_another in (PREDICTIONS_FILE, PICTURES_FILE):
        (best.parent / told_of_another).unlink(missing_ok=True)
    best.mkdir(exist_ok=True)
    with atomic_write(best / WEIGHTS_FILE) as partial:
        shutil.copyfile(weights, partial)
    write_json(
        best / CONFIG_FILE,
        {
            **told,
            "backbone": {
                "model": task.backbone.model,
                "head": task.backbone.head,
                "fingerprint": task.backbone.fingerprint,
            },
            "classes": list(task.dataset.classes),
            "preprocessing": dataclasses.asdict(task.backbone.preprocessing),
        },
    )


def update_model_config(best: Path, told: Mapping[str, Any]) -> None:
    """Add what became known of the model to its `config.json`."""
    write_json(best / CONFIG_FILE, json.loads((best / CONFIG_FILE).read_text()) | dict(told))
