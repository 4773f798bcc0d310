"""DELTA fine-tuning as a Ray-distributed hyperparameter search (arXiv 1901.09229)."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from delta_tune.filesystem.home import provide_home

if TYPE_CHECKING:
    from delta_tune import attention
    from delta_tune.config import StudyConfig, TrialConfig, UserError
    from delta_tune.inference.model import Model, Prediction, load
    from delta_tune.results.study_result import StudyResult
    from delta_tune.study.tune import tune
    from delta_tune.training.task import Task, prepare
    from delta_tune.training.trial import TrialResult, run_trial

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
    "config": ("StudyConfig", "TrialConfig", "UserError"),
    "inference.model": ("Model", "Prediction", "load"),
    "results.study_result": ("StudyResult",),
    "study.tune": ("tune",),
    "training.task": ("Task", "prepare"),
    "training.trial": ("TrialResult", "run_trial"),
}

provide_home()


def __getattr__(name: str) -> Any:
    """Names are imported at their first use: Ray and torch take seconds, which `--help` does not have."""
    if name == "attention":
        return importlib.import_module("delta_tune.attention")
    for home, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f"delta_tune.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
