"""Prepare a study from its settings; everything that can be refused is refused here, before Ray starts."""

from __future__ import annotations

import dataclasses
import itertools
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from delta_tune.config import StudyConfig, UserError, as_utf8, mask_secrets, study_config
from delta_tune.console.escape import flag, folder_name, shell_command
from delta_tune.console.progress import Progress
from delta_tune.filesystem.uris import is_uri
from delta_tune.models.backbones import resolve_layers
from delta_tune.report.page import ReportWriter
from delta_tune.results.layout import SHARED_CACHE, STUDY_FILE
from delta_tune.results.lock import StudyInUseError
from delta_tune.results.mirror import push_or_raise
from delta_tune.results.study_folder import read_study
from delta_tune.results.study_record import StudyRecord
from delta_tune.results.tables import StudyTables
from delta_tune.search.asha import AshaScheduler
from delta_tune.search.optuna_search import OptunaSearcher
from delta_tune.search.optuna_storage import open_storage
from delta_tune.search.recorder import Recorder
from delta_tune.spaces.l2_baseline import rung_groups
from delta_tune.spaces.space import Proposal, find_space
from delta_tune.spaces.validation import CheckedSpace
from delta_tune.study.claim import claim_study
from delta_tune.study.known_studies import (
    check_space_text,
    is_copy,
    known_study,
    new_id,
    remember_study,
    settings_to_resume,
)
from delta_tune.study.remote import RemoteStudies
from delta_tune.study.resume import (
    check_plain_files,
    check_same_study,
    foreign_owner_note,
    remove_unfinished_files,
    restore,
    seconds_spent,
    study_identity,
)
from delta_tune.study.study import Study
from delta_tune.study.time_budget import TimeBudget
from delta_tune.study.trial_plan import plan_trials
from delta_tune.tracking.trackers import check_trackers
from delta_tune.training.task import Task, prepare

NAMES_NOT_PATHS = ("demo", "default")
"""Values of data and weights that never mean a folder of that name."""

DATA_OPTIONS = (
    "val_fraction", "test_fraction", "train_fraction", "train_per_class", "skip_damaged", "drop_duplicates"
)  # fmt: skip
PACKAGES = ("delta-tune", "torch", "torchvision", "timm", "ray", "optuna")
"""Packages whose versions are written to `study.json`."""

# Settings that may change at a resume: how much and where to run, not what is measured. Of data, weights and space the
# content is compared: they may have been moved.
CHANGEABLE = {
    *("data", "weights", "space"),
    *("num_trials", "time_budget", "confirm", "cpus_per_trial", "gpus_per_trial", "max_concurrent_trials"),
    *("address", "out", "name", "resume", "verbose", "cache", "storage", "mlflow", "wandb"),
}


def resolve_settings(
    given: Mapping[str, Any], place: str | None = None
) -> tuple[StudyConfig, StudyRecord, tuple[str, ...]]:
    """The settings of the study, the record of the study to resume (else a new one), and sentences for the plan.

    A resumed study has its settings; settings given again must agree or be changeable. What its folder alone names is
    not used.

    Args:
        given: settings as the user gave them.
        place: the study's address, if `out` is a local copy of it.

    Raises:
        UserError: a setting is unknown, invalid, differs from the study to resume, or must be given again.
    """
    config = study_config(given)
    if not config.resume:
        record = StudyRecord()
        record.study_id = new_id()
        return config, record, ()
    assert config.name is not None, "checked before the study was claimed"
    folder = config.out / config.name
    place = place or str(folder.resolve())
    record = StudyRecord.read(folder)
    begin_with = shell_command(flag("--start-from", config.name))
    for name, value in settings_for_json(config, config.out).items():
        if name in given and name not in CHANGEABLE and value != record.settings.get(name):
            raise UserError(
                f"{folder} was begun with {name} {record.settings.get(name)!r} and cannot be resumed "
                f"with {value!r}; leave it out, or start a new study, with {begin_with} to begin with "
                f"what this one found."
            )
    known = known_study(record.study_id)
    settings, notes = settings_to_resume(record, given, known, place)
    if known is not None and is_copy(known, place):
        record.study_id = new_id()
        notes += (f"This is a copy of {known['folder']}, which stays as it is.",)
    elif record.study_id is None:
        record.study_id = new_id()
    here = {"out": config.out, "name": config.name, "resume": True}
    config = study_config({**settings, **given, **here})
    check_space_text(record, config.space, str(folder), folder.name)
    return config, record, notes


def check_paths(config: StudyConfig) -> None:
    """Refuse places for results that are not UTF-8: Arrow and Ray cannot open them.

    Raises:
        UserError: names the setting.
    """
    places = {"out": config.out.absolute(), "name": config.name, "cache": config.cache}
    for setting, place in places.items():
        if as_utf8(str(place)) != str(place):
            raise UserError(
                f"--{setting} {place} has bytes that are not UTF-8, which Arrow and Ray cannot open; give another."
            )


def new_name(task: Task) -> str:
    """A name of the form data-model-date-time."""
    return (
        f"{folder_name(task.dataset.name)}-{task.backbone.model.removeprefix('timm:')}-{datetime.now():%Y%m%d-%H%M%S}"
    )


def claim_new_name(config: StudyConfig, task: Task, remote: RemoteStudies | None, claim: Callable[[str], None]) -> str:
    """A name that no other study has, claimed for this one."""
    base = new_name(task)
    for name in itertools.chain([base], (f"{base}-{number}" for number in itertools.count(2))):
        if (config.out / name).exists() or (remote is not None and remote.has(name)):
            continue
        try:
            claim(name)
        except StudyInUseError:
            continue
        if not (config.out / name / STUDY_FILE).exists() and not (remote is not None and remote.has(name)):
            return name
    raise AssertionError("names do not run out")


def study_folder(config: StudyConfig, name: str) -> Path:
    """The folder of the study: a new one, or with `resume` the existing one.

    Raises:
        UserError: the name is taken, the study to resume does not exist, or the folder is not writable.
    """
    folder = (config.out / name).absolute()
    if (folder / STUDY_FILE).exists() and not config.resume:
        raise UserError(
            f"The name {name!r} is taken: {folder} holds a study; give --resume to carry it on, or another --name."
        )
    above = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        reason = "no permission to write" if above.is_dir() else "not a folder"
        raise UserError(f"--out {config.out} cannot be written to ({above}: {reason}); give a folder that can.")
    return folder


def check_layers(task: Task, checked: CheckedSpace) -> None:
    """Refuse a layer that the backbone does not have.

    Raises:
        UserError: names the nearest layers.
    """
    for layers in {p.config.layers for p in checked.drawn if p.config.uses_behavior}:
        resolve_layers(task.backbone, layers)


def settings_for_json(config: StudyConfig, folder: Path) -> dict[str, Any]:
    """Settings as they go into `study.json`: paths absolute, so a study is resumed from anywhere, functions by name."""
    settings = dataclasses.asdict(config) | {"name": folder.name, "out": str(folder.parent), "resume": False}
    if callable(config.space):
        settings["space"] = getattr(config.space, "__name__", repr(config.space))
    else:
        settings["space"] = str(find_space(config.space))
    for name in ("data", "weights", "start_from"):
        if settings[name] not in (None, *NAMES_NOT_PATHS) and Path(settings[name]).exists():
            settings[name] = str(Path(settings[name]).absolute())
    return settings


def git_commit() -> str | None:
    """The git commit of the working directory; None outside a checkout."""
    try:
        found = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):  # git is not installed or does not answer
        return None
    return found.stdout.strip() or None


def begin_session(
    settings: Mapping[str, Any], session: ExitStack | None
) -> tuple[Mapping[str, Any], RemoteStudies | None, Callable[[str], None]]:
    """Claim the study, if it has a name yet, and fetch it if it is at an address.

    Args:
        settings: as the user gave them.
        session: what ends with the session; None for a plan, which claims nothing.

    Returns:
        The settings for working in a local folder, the studies at the address, and what claims a study of some name.

    Raises:
        UserError: the study to resume does not exist, another session works on it, or its folder holds links.
    """
    address = str(settings.get("out", ""))
    config = study_config({name: value for name, value in settings.items() if name != "out" or not is_uri(address)})
    check_paths(config)
    if config.resume and config.name is None:
        raise UserError("--resume needs the --name of the study to carry on; give the folder's name under --out.")
    remote = RemoteStudies(address, for_plan=session is None) if is_uri(address) else None
    progress = Progress(verbose=config.verbose)

    def claim(name: str) -> None:
        if session is not None:
            claim_study(config.out.absolute() if remote is None else remote.address, name, progress, session)

    if remote is not None:
        return remote.begin(dict(settings), claim), remote, claim
    if config.name is not None:
        if config.resume:
            StudyRecord.read(config.out / config.name)  # there must be one
            check_plain_files(config.out / config.name)
        folder = study_folder(config, config.name)
        claim(config.name)
        study_folder(config, config.name)  # another session may have begun and ended between
        if config.resume and session is not None:
            remove_unfinished_files(folder)
    return settings, remote, claim


def prepare_study(settings: Mapping[str, Any], session: ExitStack | None = None) -> Study:
    """Prepare a new study, or one to resume.

    Args:
        settings: as the user gave them.
        session: the study is claimed until this ends; None claims nothing, for a plan.

    Raises:
        UserError: a setting is unusable, data or weights cannot be read, the study cannot be resumed, or another
            session works on it.
    """
    began, started = time.time(), time.monotonic()
    settings, remote, claim = begin_session(settings, session)
    name = settings.get("name")
    config, record, asked = resolve_settings(settings, f"{remote.address}/{name}" if remote is not None else None)
    check_trackers(config)
    storage = None if config.storage is None else open_storage(config.storage)
    progress = Progress(verbose=config.verbose)
    trials = plan_trials(config, record)
    checked, notes = trials.checked, (*trials.notes, *asked)
    task = prepare(
        config.data,
        config.model,
        config.weights,
        image_size=config.image_size,
        seed=config.seed,
        cache=config.cache or config.out.absolute() / SHARED_CACHE,
        progress=progress.bar,
        **{name: getattr(config, name) for name in DATA_OPTIONS},
    )
    check_layers(task, checked)
    folder = study_folder(config, config.name or claim_new_name(config, task, remote, claim))
    mirror = None if remote is None else remote.mirror(folder.name)
    tables = StudyTables(folder, config.metric)
    if config.resume:
        check_same_study(record, folder, task, checked)
        _, tables = read_study(folder)
        notes += foreign_owner_note(folder)
    scheduler = AshaScheduler(
        metric=config.metric,
        max_epochs=config.max_epochs,
        grace_period=config.grace_period,
        reduction_factor=config.reduction_factor,
        num_val=len(task.dataset.val),
        group_of=rung_groups(checked),
    )

    def add_trial(number: int, proposal: Proposal) -> None:
        study.add_trial(number, proposal)

    searcher = OptunaSearcher(
        checked,
        metric=config.metric,
        sampler=config.sampler,
        seed=config.seed,
        max_epochs=config.max_epochs,
        num_trials=trials.num_trials,
        on_proposal=add_trial,
        name=folder.name,
        storage=storage,
        study_id=record.study_id,
    )
    restore(tables, scheduler, searcher, config.max_epochs)
    study = Study(
        config=config,
        folder=folder,
        out=str(folder.parent) if remote is None else remote.address,
        mirror=mirror,
        record=record,
        tables=tables,
        task=task,
        checked=checked,
        num_trials=trials.num_trials,
        notes=notes,
        scheduler=scheduler,
        searcher=searcher,
        recorder=Recorder(tables, scheduler, progress, trials.num_trials, mirror),
        progress=progress,
        reporter=ReportWriter(folder, progress.say),
        budget=TimeBudget(
            config.time_budget_s,
            spent=seconds_spent(record, tables),
            began=began,
            before=time.monotonic() - started,
        ),
    )
    return study


def open_study(study: Study) -> None:
    """Create the study's folder and write its record, before anything is computed.

    Raises:
        UserError: the folder is not writable.
    """
    try:
        study.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{study.folder} cannot be made ({error.strerror}); give another --out.") from error
    settings = settings_for_json(study.config, study.folder) | {"out": study.out}
    study.record.begin(
        study_identity(study.task, study.checked),
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
