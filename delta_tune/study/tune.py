"""`tune`: a whole study in one call."""

from __future__ import annotations

from typing import Any

from delta_tune.background import run_every
from delta_tune.cluster.connection import ray_cluster
from delta_tune.cluster.failures import as_user_error, exit_if_head_dies
from delta_tune.cluster.resources import wait_for_resources
from delta_tune.cluster.shared_folder_check import check_shared_folder
from delta_tune.report.page import INTERVAL_S as REPORT_INTERVAL_S
from delta_tune.results.mirror import push_in_background
from delta_tune.results.study_result import StudyResult
from delta_tune.search.session import start_session
from delta_tune.study.plan import estimate
from delta_tune.study.study import Study

__all__ = ["StudyResult", "dry_run", "tune"]


def tune(**settings: Any) -> StudyResult:
    """Find the best way to fine-tune.

    Args:
        **settings: the fields of `StudyConfig`, which are the flags of `launch.py` with underscores; `space` may also
            be the function itself.

    Returns:
        The result. A Ray that was running already is left running, and nothing stays in its object store.

    Raises:
        UserError: a setting that cannot be used, before any trial starts; or a cause outside the study that stops it,
            such as a full disk.
    """
    study = Study(settings)
    folder = study.folder
    told = as_user_error(folder, study.out)
    watch = exit_if_head_dies(folder, study.out, study.progress.close)
    with told, ray_cluster(study.config.address) as cluster, watch:
        resources = study.resources(cluster)
        check_shared_folder(study.out, study.progress.say)
        for line in study.plan(resources):
            study.progress.say(line)
        wait_for_resources(resources, study.progress.say)
        study.open()
        session = start_session(resources, study.progress, study.mirror)
        page = run_every(REPORT_INTERVAL_S, study.reporter.now_and_then)
        with push_in_background(study.mirror, study.progress.say), page:
            study.search(session)
            study.confirm(session)
    with as_user_error(folder, study.out):
        return study.finish(session.device)


def dry_run(**settings: Any) -> list[str]:
    """The plan of the study that `tune` would run, in sentences; nothing is left behind.

    Raises:
        UserError: as `tune`.
    """
    study = Study({**settings, "storage": None, "mlflow": None, "wandb": None})
    with ray_cluster(study.config.address) as cluster:
        resources = study.resources(cluster)
        check_shared_folder(study.out, study.progress.say)
    return [
        *study.plan(resources),
        estimate(study.task, study.config, study.checked, study.num_trials, resources),
    ]
