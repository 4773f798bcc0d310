"""The space that `curves.parquet` was recorded in, for replaying studies of it."""

from __future__ import annotations

from typing import Any

from delta_tune.spaces.space import SpaceTrial

EPOCHS = 12
SCHEDULES = ("cosine", "step", "constant", "averaged")


def curves_space(trial: SpaceTrial) -> dict[str, Any]:
    """What is searched in the recorded study: `search_spaces/methods.py` without frozen features, and the schedule."""
    regularizer = trial.suggest_categorical("regularizer", ["delta", "delta_uniform", "l2_sp", "l2"])
    schedule = trial.suggest_categorical("_schedule", list(SCHEDULES))
    trial.suggest_float("lr", 1e-4, 1e-2, log=True)
    trial.suggest_categorical("batch_norm", ["frozen", "train"])
    trial.suggest_categorical("head_lr_multiplier", [1.0, 10.0])
    config: dict[str, Any] = {"schedule": "constant", "average_epochs": 1.0} if schedule == "averaged" else {}
    config = config or {"schedule": schedule}
    if regularizer == "l2":
        trial.suggest_float("weight_decay", 1e-5, 1e-2, log=True)
        return config
    trial.suggest_float("beta", 1e-4, 1e-1, log=True)
    if regularizer == "l2_sp":
        trial.suggest_float("alpha", 1e-3, 1.0, log=True)
        return config
    trial.suggest_float("alpha", 1e-2, 30, log=True)
    if regularizer == "delta":
        trial.suggest_float("attention_temperature", 0.5, 20, log=True)
    return config
