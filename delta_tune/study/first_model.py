"""The first model of a study: a linear classifier on the frozen source's features, seconds after the data is read."""

from __future__ import annotations

import time

import ray

from delta_tune.config import FIRST_MODEL, TrialConfig
from delta_tune.console.format import format_duration, format_score
from delta_tune.models.devices import torch_threads
from delta_tune.results.columns import FINISHED
from delta_tune.results.layout import BEST, trial_name
from delta_tune.results.mirror import local_copy
from delta_tune.results.tables import StudyTables
from delta_tune.search.session import Session
from delta_tune.search.worker import push_with_retries
from delta_tune.study.best_model import follow_leader
from delta_tune.study.study import Study
from delta_tune.training.trial import run_trial

NUMBER = 0
"""Of its trial."""


def first_searched(tables: StudyTables) -> int:
    """Number of the first trial that the search proposes; a study that an earlier version began has no first model."""
    row = tables.trials.get(NUMBER)
    return NUMBER if row is not None and row["config.regularizer"] != FIRST_MODEL else NUMBER + 1


def fit_first_model(study: Study, session: Session) -> None:
    """Fit the classifier, score it and save it as `best/`, unless an earlier session has."""
    tables, number = study.tables, NUMBER
    row = tables.trials.get(number)
    if first_searched(tables) == number or (row is not None and row["state"] in FINISHED):
        follow_leader(study)  # an earlier session may have been killed before it did
        return
    config = TrialConfig(regularizer=FIRST_MODEL, max_epochs=1, seed=study.config.seed)
    if row is None:
        tables.add(number, config, {}, {})
    began = time.time()
    with session.measuring.workplace() as workplace:
        study.task.measurements.measure_source([config, *study.configs], study.progress.say, workplace)
    tables.start(number, ray.get_runtime_context().get_node_id(), began, 0.0)
    place = f"{session.checkpoints(study.folder)}/{trial_name(number)}"
    # Only the head is left to score: no work for a GPU
    with local_copy(place) as (folder, mirror), torch_threads(1):
        result = run_trial(study.task, config, metric=study.config.metric, checkpoint=folder)
        if mirror is not None:
            push_with_retries(mirror)
    for epoch in result.epochs:
        tables.report(number, epoch, time.time())
    tables.finish(number, "completed")
    follow_leader(study)
    score = format_score(study.config.metric, tables.best_row(number)[study.config.metric])
    study.progress.say(
        f"First model after {format_duration(study.budget.session)}: a linear classifier on the frozen network, "
        f"{study.config.metric} {score}; {study.folder / BEST} has the best so far from now on."
    )
