"""`tune`: a whole study in one call."""

from __future__ import annotations

import dataclasses
import time
from contextlib import ExitStack
from typing import Any

from delta_tune.background import run_every
from delta_tune.cluster.connection import ray_cluster
from delta_tune.cluster.failures import as_user_error, exit_if_head_dies
from delta_tune.cluster.resources import wait_for_resources
from delta_tune.cluster.shared_folder_check import check_shared_folder
from delta_tune.console.escape import resume_command
from delta_tune.report.page import INTERVAL_S as REPORT_INTERVAL_S
from delta_tune.results.log import crash_logged
from delta_tune.results.mirror import push_in_background
from delta_tune.results.study_result import StudyResult
from delta_tune.search.session import Session, start_session
from delta_tune.study.budget_plan import choose_by_budget, plan_by_budget
from delta_tune.study.confirm_phase import confirm_and_retrain
from delta_tune.study.finish_phase import conclude, finish, keep_best
from delta_tune.study.first_model import fit_first_model, spend_rest
from delta_tune.study.plan import estimate, plan_lines, study_resources, waits_for_speed
from delta_tune.study.search_phase import search
from delta_tune.study.setup import open_study, prepare_study
from delta_tune.study.study import Study

__all__ = ["StudyResult", "dry_run", "tune"]


def tune(**settings: Any) -> StudyResult:
    """Search for the best fine-tuning configuration and train the final model.

    Args:
        **settings: fields of `StudyConfig`: the flags of `launch.py` with underscores; `space` may also be a function.

    Returns:
        The result. A running Ray is left running, with nothing left in its object store.

    Raises:
        UserError: a setting is unusable (before any trial starts), or an external failure such as a full disk stops the
            study.
        KeyboardInterrupt: the user interrupted before the study began, or while its results were written.
    """
    return tune_since(time.monotonic(), **settings)


def tune_since(started: float, **settings: Any) -> StudyResult:
    """`tune`, with a time budget that began at `started`, by `time.monotonic`.

    Raises:
        UserError: like `tune`.
        KeyboardInterrupt: like `tune`.
    """
    with ExitStack() as session:
        return run_study(prepare_study(settings, session, started), session)


def run_study(study: Study, session: ExitStack) -> StudyResult:
    """Run a prepared study to its end.

    Args:
        study: the study.
        session: holds the claim on it; closed early if this process is about to exit.

    Raises:
        UserError: an external failure stops the study.
    """
    folder = study.folder

    def save_and_release() -> None:
        with session:  # releases the claim last
            keep_best(study)

    resume = resume_command(folder.name, study.out)
    told = as_user_error(folder, study.out)
    watch = exit_if_head_dies(folder, study.out, study.progress.close, save_and_release)
    with crash_logged(folder, resume), told, ray_cluster(study.config.address) as cluster, watch:
        check_shared_folder(study.out, study.progress.say)
        resources = study_resources(study, cluster, study.progress.say)
        study.record.set_accelerators(resources.device, [dataclasses.asdict(each) for each in resources.accelerators])
        for line in plan_lines(study, resources):
            study.progress.say(line)
        wait_for_resources(resources, study.progress.say)
        open_study(study)
        workers = start_session(resources, study.progress, study.mirror)
        page = run_every(REPORT_INTERVAL_S, study.reporter.now_and_then)
        with push_in_background(study.mirror, study.progress.say), page:
            interrupted = run_phases(study, workers)
        winner = conclude(study, workers.measuring, interrupted=interrupted)
    with crash_logged(folder, resume), as_user_error(folder, study.out):
        return finish(study, winner, interrupted=interrupted)


def run_phases(study: Study, workers: Session) -> bool:
    """Search, confirm and retrain; an interrupt ends them in order. Return whether there was one."""
    try:
        with workers.measuring.kept_workers():
            fit_first_model(study, workers)
            plan_by_budget(study, workers)
            spend_rest(study, workers)
        return search(study, workers) or confirm_and_retrain(study, workers)
    except KeyboardInterrupt:  # outside of Tune, which ends its runs itself: in attention or the final training
        return True


def dry_run(**settings: Any) -> list[str]:
    """The plan of the study that `tune` would run, line by line; writes nothing.

    Raises:
        UserError: like `tune`.
    """
    study = prepare_study({**settings, "storage": None, "mlflow": None, "wandb": None})
    with as_user_error(study.folder, study.out), ray_cluster(study.config.address) as cluster:
        check_shared_folder(study.out, study.progress.say)
        resources = study_resources(study, cluster, None)
        if waits_for_speed(study):
            choose_by_budget(study, start_session(resources, study.progress), prepared=False)
    return [*plan_lines(study, resources), estimate(study, resources)]
