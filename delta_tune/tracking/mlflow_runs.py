"""Log trials as MLflow runs; imported only if asked for, because it needs an MLflow package."""

from __future__ import annotations

import logging
import os
import time
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from ray.air.integrations.mlflow import MLflowLoggerCallback
from sqlalchemy.exc import SADeprecationWarning, SQLAlchemyError

from delta_tune.config import UserError, mask_secrets
from delta_tune.results.columns import EPOCH_COLUMNS
from delta_tune.results.tables import StudyTables
from delta_tune.search.messages import EachEpoch, TrialAssignment

# A silent server must not block Tune's loop for MLflow's default of seven tries of two minutes.
PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
ENDS = {"completed": "FINISHED", "pruned": "FINISHED", "stopped": "KILLED"}
"""Trial state → MLflow status; all others are FAILED."""
STUDY_ID = "delta_tune.study_id"
"""Tag of a run: the id of its study."""
ERRORS = (MlflowException, SQLAlchemyError, ImportError, OSError, ValueError)


def check_mlflow(uri: str) -> None:
    """Check that the server or database answers; create the database if needed.

    Raises:
        UserError: it does not answer.
    """
    for name, value in PATIENCE.items():
        os.environ.setdefault(name, value)
    logging.getLogger("mlflow").setLevel(logging.WARNING)  # it logs each created table on stderr
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SADeprecationWarning)  # deprecations inside MLflow 3.17 with SQLAlchemy 2.1
            MlflowClient(tracking_uri=uri).search_experiments(max_results=1)
    except ERRORS as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"--mlflow {uri} cannot be used ({reason}); give the address of a server, such as http://host:5000, or of "
            f"a database, such as sqlite:///mlflow.db."
        ) from error


class MlflowRuns(EachEpoch, MLflowLoggerCallback):  # type: ignore[misc]
    """Tune callback: one request per epoch; a resumed study continues its runs.

    A run has the trial's hyperparameters, the columns of `epochs.parquet` by epoch, and the trial's state as a tag.

    Args:
        uri: tracking server or database.
        tables: the study's tables; their folder's name is the experiment's. They have a trial's end before this
            callback runs.
        say: prints one sentence if logging fails; the study continues without MLflow.
        study_id: the study's; runs of another study of that name are left alone.
    """

    def __init__(self, uri: str, tables: StudyTables, say: Callable[[str], None], study_id: str = "") -> None:
        super().__init__(tracking_uri=uri, experiment_name=tables.folder.name)
        self._tables, self._say = tables, say
        self._client = MlflowClient(tracking_uri=uri)
        self._study_id = study_id
        self._open: set[Any] = set()
        self._lost = False

    def log_trial_start(self, trial: Any) -> None:
        """Start a run, or continue the one of an earlier session."""
        self._send(lambda: self._begin(trial))

    def log_trial_result(self, iteration: int, trial: Any, result: dict[str, Any]) -> None:
        """Log an epoch."""
        now = round(1000 * time.time())
        known = {name: float(result[name]) for name in EPOCH_COLUMNS if result[name] is not None}
        figures = [Metric(name, value, now, result["epoch"]) for name, value in known.items()]
        self._send(lambda: self._client.log_batch(self._trial_runs[trial], metrics=figures))

    def log_trial_end(self, trial: Any, failed: bool = False) -> None:
        """End the run with the trial's state."""
        row = self._tables.trials[TrialAssignment.from_config(trial.config).number]
        told = {"state": row["state"], **({"error": row["error"]} if row.get("error") else {})}
        if row["state"] not in ("waiting", "running"):
            self._open.discard(trial)
            self._send(lambda: self._finish(trial, told))

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        """End the runs of unfinished trials; a resume reopens them."""
        for trial in self._open:
            self._send(partial(self._client.set_terminated, self._trial_runs[trial], ENDS["stopped"]))

    def __getstate__(self) -> dict[str, Any]:
        """Empty: Tune pickles its settings at the start of a run, but a resume uses the study's tables."""
        return {}

    def _begin(self, trial: Any) -> None:
        if trial in self._trial_runs:  # the trial restarts after its worker was lost
            return
        self._open.add(trial)
        experiment, name = self.mlflow_util.experiment_id, str(trial)
        tags = {"trial_name": name, STUDY_ID: self._study_id}
        asked = " and ".join(f"tags.`{tag}` = '{value}'" for tag, value in tags.items())
        found = self._client.search_runs([experiment], asked, max_results=1)
        if found:
            self._trial_runs[trial] = found[0].info.run_id
            self._client.update_run(self._trial_runs[trial], status="RUNNING")
            return
        run = self._client.create_run(experiment, run_name=name, tags=tags)
        self._trial_runs[trial] = run.info.run_id
        hyperparameters = TrialAssignment.from_config(trial.config).hyperparameters
        params = [Param(name, str(value)) for name, value in hyperparameters.items() if value is not None]
        self._client.log_batch(run.info.run_id, params=params)

    def _finish(self, trial: Any, told: dict[str, str]) -> None:
        run = self._trial_runs[trial]
        self._client.log_batch(run, tags=[RunTag(name, value) for name, value in told.items()])
        self._client.set_terminated(run, ENDS.get(told["state"], "FAILED"))

    def _send(self, request: Callable[[], object]) -> None:
        if self._lost:
            return
        try:
            request()
        except ERRORS as error:
            self._lost = True
            reason = mask_secrets((str(error).strip().splitlines() or [type(error).__name__])[0])
            self._say(f"MLflow takes no more results ({reason}); the study goes on, and its own tables have them all.")
