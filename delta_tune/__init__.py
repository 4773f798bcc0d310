"""DELTA fine-tuning as a Ray-distributed hyperparameter search (arXiv 1901.09229)."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from delta_tune import attention
    from delta_tune.config import TrialConfig, UserError
    from delta_tune.inference import Model, Prediction, load
    from delta_tune.search import StudyResult, tune
    from delta_tune.settings import StudyConfig
    from delta_tune.task import Task, prepare
    from delta_tune.training import TrialResult, run_trial

__all__ = [
    "Model",
    "Prediction",
    "StudyConfig",
    "StudyResult",
    "Task",
    "TrialConfig",
    "TrialResult",
    "UserError",
    "attention",
    "load",
    "prepare",
    "run_trial",
    "tune",
]

_HOMES = {
    "config": ("TrialConfig", "UserError"),
    "inference": ("Model", "Prediction", "load"),
    "settings": ("StudyConfig",),
    "search": ("StudyResult", "tune"),
    "task": ("Task", "prepare"),
    "training": ("TrialResult", "run_trial"),
}


def __getattr__(name: str) -> Any:
    """Names are imported at their first use: Ray and torch take seconds, which `--help` does not have."""
    if name == "attention":
        return importlib.import_module("delta_tune.attention")
    for home, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f"delta_tune.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
