"""Prepare a study from its settings; everything that can be refused is refused here, before Ray starts."""

from __future__ import annotations

import dataclasses
import math
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from importlib.metadata import version
from typing import Any

from delta_tune.config import DATA_OPTIONS, StudyConfig, UserError, mask_secrets
from delta_tune.console.progress import Progress
from delta_tune.data.dataset import Dataset
from delta_tune.report.page import ReportWriter
from delta_tune.results.layout import SHARED_CACHE
from delta_tune.results.mirror import push_or_raise
from delta_tune.results.remembered_studies import remember_study
from delta_tune.results.study_folder import read_study
from delta_tune.results.tables import StudyTables
from delta_tune.search.asha import AshaScheduler
from delta_tune.search.optuna_search import OptunaSearcher
from delta_tune.search.optuna_storage import open_storage
from delta_tune.search.recorder import Recorder
from delta_tune.spaces.default_space import default_space, default_space_note
from delta_tune.spaces.l2_baseline import rung_groups
from delta_tune.spaces.validation import CheckedSpace
from delta_tune.study.begin_session import begin_session, claim_new_name, study_folder
from delta_tune.study.chosen_backbones import choose_backbones
from delta_tune.study.confirmation_splits import check_confirmation
from delta_tune.study.first_model import first_searched
from delta_tune.study.labels import check_terms, settings_for_labels
from delta_tune.study.network_checks import check_task
from delta_tune.study.networks import label_tasks, space_of, used_tasks
from delta_tune.study.resume import check_same_study, foreign_owner_note, restore, seconds_spent, study_identity
from delta_tune.study.schedule import epochs_of_steps, scaled_grace
from delta_tune.study.settings import resolve_settings, settings_for_json, settings_left_open
from delta_tune.study.study import Study
from delta_tune.study.time_budget import TimeBudget
from delta_tune.study.trial_plan import plan_trials
from delta_tune.tracking.trackers import check_trackers
from delta_tune.training.task import Task, prepare_several

PACKAGES = ("delta-tune", "torch", "torchvision", "timm", "ray", "optuna")
"""Packages whose versions are written to `study.json`."""


def steps_of_epoch(dataset: Dataset, checked: CheckedSpace) -> int:
    """Steps of an epoch with the space's usual batch size."""
    return math.ceil(len(dataset.train) / checked.usual_batch_size)


def spaces_of(config: StudyConfig, tasks: Mapping[str, Task]) -> dict[str, Any]:
    """Label → the search space of each network: the user's, or else the network's default."""
    return {label: config.space or default_space(task.backbone) for label, task in tasks.items()}


def space_notes(tasks: Mapping[str, Task]) -> list[str]:
    """Sentences for the plan on the default spaces of the study's networks, where these are not the usual one."""
    notes = {label: default_space_note(task.backbone) for label, task in tasks.items()}
    return [f"{label}: {note}" if len(tasks) > 1 else note for label, note in notes.items() if note]


def with_epochs_of_steps(config: StudyConfig, steps: int, keep_grace: bool) -> StudyConfig:
    """The settings with the epochs that `max_steps` takes.

    Args:
        config: the settings; their epochs are the default.
        steps: of an epoch.
        keep_grace: whether the grace period stays; else it changes in proportion to the epochs.

    Raises:
        UserError: a grace period that stays is longer than a full trial.
    """
    assert config.max_steps is not None, "asked only then"
    epochs = epochs_of_steps(config.max_steps, steps)
    if keep_grace and config.grace_period > epochs:
        raise UserError(
            f"--grace-period {config.grace_period} is more than the epochs of a full trial, {epochs} for "
            f"{config.max_steps} steps; give a shorter one, or more --max-steps."
        )
    grace = config.grace_period if keep_grace else scaled_grace(config.grace_period, config.max_epochs, epochs)
    return dataclasses.replace(config, max_epochs=epochs, grace_period=grace)


def git_commit() -> str | None:
    """The git commit of the working directory; None outside a checkout."""
    try:
        found = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):  # git is not installed or does not answer
        return None
    return found.stdout.strip() or None


def prepare_study(settings: Mapping[str, Any], session: ExitStack | None = None, started: float | None = None) -> Study:
    """Prepare a new study, or one to resume.

    Args:
        settings: as the user gave them.
        session: the study is claimed until this ends; None claims nothing, for a plan.
        started: when the time budget began, by `time.monotonic`; None for now.

    Raises:
        UserError: a setting is unusable, data or weights cannot be read, the study cannot be resumed, or another
            session works on it.
    """
    started = time.monotonic() if started is None else started
    began = time.time() - (time.monotonic() - started)
    settings, remote, claim = begin_session(settings, session)
    name = settings.get("name")
    config, record, asked = resolve_settings(settings, f"{remote.address}/{name}" if remote is not None else None)
    check_trackers(config)
    storage = None if config.storage is None else open_storage(config.storage)
    progress = Progress(verbose=config.verbose)
    left_open = settings_left_open(config, record, settings)
    trials = plan_trials(config, record, left_open)
    budget_s = config.time_budget_s

    def check_candidate(label: str, task: Task) -> None:
        own = (
            trials
            if config.space is not None
            else plan_trials(config, record, left_open, spaces_of(config, {label: task}))
        )
        check_task(task, own.checked.only(label, default=True))

    chosen, cut = choose_backbones(
        config,
        record,
        left_open=left_open,
        batch_size=trials.checked.usual_batch_size,
        seconds_left=None if budget_s is None else budget_s - (time.monotonic() - started),
        suits=check_candidate,
        progress=progress,
    )
    networks = prepare_several(
        config.data,
        chosen,
        cut=cut,
        image_size=config.image_size,
        channels=config.channels,
        seed=config.seed,
        cache=config.cache or config.out.absolute() / SHARED_CACHE,
        progress=progress.bar,
        memory_limit=config.memory_bytes,
        scratch=config.scratch,
        **{name: getattr(config, name) for name in DATA_OPTIONS},
    )
    tasks = label_tasks(networks, record.backbones)
    dataset, spaces = networks[0].dataset, spaces_of(config, tasks)
    by_network = config.space is None
    if len(set(spaces.values())) == 1:
        config = dataclasses.replace(config, space=next(iter(spaces.values())))
    if config.max_steps is not None and "max_epochs" not in record.settled:
        config = with_epochs_of_steps(config, steps_of_epoch(dataset, trials.checked), "grace_period" in settings)
        trials = plan_trials(config, record, left_open, spaces)
    elif len(tasks) > 1 or by_network:
        trials = plan_trials(config, record, left_open, spaces)
    config, decided = settings_for_labels(config, dataset, {*settings, *record.settled})
    checked, notes = trials.checked, (*decided, *trials.notes, *asked)
    if by_network:
        checked = dataclasses.replace(checked, notes=(*space_notes(tasks), *checked.notes))
    tasks = used_tasks(tasks, checked)
    progress.networks = tuple(tasks) if len(tasks) > 1 else ()
    check_terms(dataset, checked)
    for label, task in tasks.items():
        check_task(task, space_of(tasks, label, checked))
    if note := check_confirmation(config, dataset):
        notes += (note,)
    folder = study_folder(config, config.name or claim_new_name(config, list(tasks.values()), remote, claim))
    mirror = None if remote is None else remote.mirror(folder.name)
    tables = StudyTables(folder, config.metric)
    if config.resume:
        check_same_study(record, folder, tasks, checked)
        _, tables = read_study(folder)
        notes += foreign_owner_note(folder)
    study = Study(
        config=config,
        folder=folder,
        out=str(folder.parent) if remote is None else remote.address,
        mirror=mirror,
        record=record,
        tables=tables,
        tasks=tasks,
        spaces=spaces,
        checked=checked,
        num_trials=trials.num_trials,
        notes=notes,
        progress=progress,
        reporter=ReportWriter(folder, progress.say),
        budget=TimeBudget(
            config.time_budget_s,
            spent=seconds_spent(record, tables),
            began=began,
            before=time.monotonic() - started,
        ),
        left_open=left_open,
        storage=storage,
    )
    make_search(study)
    return study


def make_search(study: Study) -> None:
    """Make what proposes, stops and records the study's trials, as its settings are and its tables say."""
    config, tables, checked = study.config, study.tables, study.checked
    study.scheduler = AshaScheduler(
        metric=config.metric,
        max_epochs=config.max_epochs,
        grace_period=config.grace_period,
        reduction_factor=config.reduction_factor,
        num_val=len(study.dataset.val),
        group_of=rung_groups(checked),
    )
    study.searcher = OptunaSearcher(
        checked,
        metric=config.metric,
        sampler=config.sampler,
        seed=config.seed,
        max_epochs=config.max_epochs,
        num_trials=study.num_trials,
        on_proposal=study.add_trial,
        name=study.folder.name,
        storage=study.storage,
        study_id=study.record.study_id,
        first=first_searched(tables),
        backbones=tuple(study.tasks),
    )
    restore(tables, study.scheduler, study.searcher, config.max_epochs)
    study.recorder = Recorder(tables, study.scheduler, study.progress, study.num_trials, study.mirror)


def written_settings(study: Study) -> dict[str, Any]:
    """Settings for `study.json`, without those that are left to the time budget."""
    settings = settings_for_json(study.config, study.folder) | {"out": study.out}
    return {name: value for name, value in settings.items() if name not in study.left_open}


def open_study(study: Study) -> None:
    """Create the study's folder and write its record, before anything is computed.

    Raises:
        UserError: the folder is not writable.
    """
    try:
        study.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{study.folder} cannot be made ({error.strerror}); give another --out.") from error
    settings = written_settings(study)
    study.record.begin(
        study_identity(study.tasks, study.checked),
        settings,
        versions={name: version(name) for name in PACKAGES},
        git_commit=git_commit(),
        command=[mask_secrets(argument) for argument in sys.argv],
    )
    study.tables.write()  # before study.json, which marks a study that can be resumed
    study.record.write(study.folder)
    if study.mirror is not None:
        push_or_raise(study.mirror)
    assert study.record.study_id is not None, "given at its beginning"
    place = str(study.folder.resolve()) if study.mirror is None else study.mirror.address
    if reason := remember_study(study.record.study_id, place, settings, study.record.space):
        study.progress.say(
            f"This study cannot be remembered outside of its folder ({reason}): --resume will ask for the places that "
            f"it uses, such as --data and --weights."
        )
