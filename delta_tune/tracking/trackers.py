"""Experiment trackers: log the trials of a search to MLflow and Weights & Biases."""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Callable

from ray.tune.logger import LoggerCallback

from delta_tune.config import StudyConfig, UserError, refuse_secret
from delta_tune.results.tables import StudyTables


def check_trackers(config: StudyConfig) -> None:
    """Check before any work that the requested trackers can be used.

    Raises:
        UserError: a package is missing, an address does not answer, or there is no key.
    """
    if config.mlflow is not None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # as Ray's is off
        refuse_secret("mlflow", config.mlflow)
        _need("mlflow", "mlflow-skinny", f"--mlflow {config.mlflow}")
        if "://" not in config.mlflow and not config.mlflow.startswith("databricks"):
            raise UserError(
                f"--mlflow takes an address, but got {config.mlflow!r}; give that of a server, such as "
                f"http://host:5000, or of a database, such as sqlite:///mlflow.db."
            )
        from delta_tune.tracking.mlflow_runs import check_mlflow

        check_mlflow(config.mlflow)
    if config.wandb is not None:
        _need("wandb", "wandb", f"--wandb {config.wandb}")
        if not config.wandb or re.search(r"[/\\#?%:]", config.wandb):
            raise UserError(f"--wandb takes a project's name without any of / \\ # ? % :, but got {config.wandb!r}.")
        from ray.air.integrations.wandb import WandbLoggerCallback

        try:
            WandbLoggerCallback(project=config.wandb).setup()
        except ValueError as error:
            raise UserError(
                f"--wandb {config.wandb}: there is no key; run `wandb login`, set WANDB_API_KEY, or set "
                f"WANDB_MODE=offline to keep the runs here."
            ) from error


def trackers(
    config: StudyConfig, tables: StudyTables, say: Callable[[str], None], study_id: str = ""
) -> list[LoggerCallback]:
    """Tune callbacks for the requested trackers.

    Args:
        config: settings, checked by `check_trackers`.
        tables: the study's tables; their folder's name becomes the MLflow experiment and the wandb group.
        say: prints a sentence if a tracker fails.
        study_id: the study's id.
    """
    found: list[LoggerCallback] = []
    if config.mlflow is not None:
        from delta_tune.tracking.mlflow_runs import MlflowRuns

        found.append(MlflowRuns(config.mlflow, tables, say, study_id))
    if config.wandb is not None:
        from delta_tune.tracking.wandb_runs import WandbRuns

        found.append(WandbRuns(config.wandb, tables.folder, say))
    return found


def _need(module: str, package: str, asked: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise UserError(f"{asked} needs a package that is not installed; install it with: pip install {package}")
