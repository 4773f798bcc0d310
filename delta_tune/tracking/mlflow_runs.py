"""Trials as MLflow runs, by Ray's callback; needs an MLflow package, so it is imported only where one is asked for."""

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

from delta_tune.config import UserError
from delta_tune.results.tables import EPOCH_COLUMNS, StudyTables
from delta_tune.search.messages import TrialAssignment, TrialOutcome

# A server that does not answer must not hold up Tune's loop for MLflow's own seven tries of two minutes.
PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
ENDS = {"completed": "FINISHED", "pruned": "FINISHED", "stopped": "KILLED"}
"""State of a trial → MLflow's; all others FAILED."""
ERRORS = (MlflowException, SQLAlchemyError, ImportError, OSError, ValueError)


def check_mlflow(uri: str) -> None:
    """Look whether something answers there; a database is made where there is none.

    Raises:
        UserError: nothing does.
    """
    for name, value in PATIENCE.items():
        os.environ.setdefault(name, value)
    logging.getLogger("mlflow").setLevel(logging.WARNING)  # it tells on stderr of each table that it makes
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SADeprecationWarning)  # MLflow 3.17's own with SQLAlchemy 2.1
            MlflowClient(tracking_uri=uri).search_experiments(max_results=1)
    except ERRORS as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"--mlflow {uri} cannot be used ({reason}); give the address of a server, such as http://host:5000, or of "
            f"a database, such as sqlite:///mlflow.db."
        ) from error


class MlflowRuns(MLflowLoggerCallback):  # type: ignore[misc]
    """Ray's callback, with one request an epoch instead of two for each figure, and runs that a resume goes on with.

    A run has the trial's hyperparameters, the columns of `epochs.parquet` by epoch, and the trial's state as a tag.

    Args:
        uri: of the tracking server or database.
        tables: of the study, whose folder's name is the MLflow experiment's; they know how a trial ended before this
            is told.
        say: told once if MLflow takes no more; the study goes on without it.
    """

    def __init__(self, uri: str, tables: StudyTables, say: Callable[[str], None]) -> None:
        super().__init__(tracking_uri=uri, experiment_name=tables.folder.name)
        self._tables, self._say = tables, say
        self._client = MlflowClient(tracking_uri=uri)
        self._open: set[Any] = set()
        self._lost = False

    def log_trial_start(self, trial: Any) -> None:
        """A new run, or the one that an earlier session began for this trial."""
        self._send(lambda: self._begin(trial))

    def log_trial_result(self, iteration: int, trial: Any, result: dict[str, Any]) -> None:
        """An epoch."""
        if TrialOutcome.from_result(result) is None:
            now = round(1000 * time.time())
            known = {name: float(result[name]) for name in EPOCH_COLUMNS if result[name] is not None}
            figures = [Metric(name, value, now, result["epoch"]) for name, value in known.items()]
            self._send(lambda: self._client.log_batch(self._trial_runs[trial], metrics=figures))

    def log_trial_end(self, trial: Any, failed: bool = False) -> None:
        """The end, with the trial's state."""
        row = self._tables.trials[TrialAssignment.from_config(trial.config).number]
        told = {"state": row["state"], **({"error": row["error"]} if row.get("error") else {})}
        if row["state"] not in ("waiting", "running"):
            self._open.discard(trial)
            self._send(lambda: self._finish(trial, told))

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        """Trials that the end of the search left unfinished; a resume makes their runs running again."""
        for trial in self._open:
            self._send(partial(self._client.set_terminated, self._trial_runs[trial], ENDS["stopped"]))

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its settings at the start of a run; ours has nothing to give it."""
        return {}

    def _begin(self, trial: Any) -> None:
        if trial in self._trial_runs:  # a lost worker's trial starts again
            return
        self._open.add(trial)
        experiment, name = self.mlflow_util.experiment_id, str(trial)
        found = self._client.search_runs([experiment], f"tags.trial_name = '{name}'", max_results=1)
        if found:
            self._trial_runs[trial] = found[0].info.run_id
            self._client.update_run(self._trial_runs[trial], status="RUNNING")
            return
        run = self._client.create_run(experiment, run_name=name, tags={"trial_name": name})
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
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            self._say(f"MLflow takes no more results ({reason}); the study goes on, and its own tables have them all.")
