"""Find the study's place, claim it for this session, and fetch what lies at an address."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import Any

from delta_tune.config import StudyConfig, UserError, study_config
from delta_tune.console.escape import folder_name
from delta_tune.console.progress import Progress
from delta_tune.filesystem.uris import is_uri
from delta_tune.results.layout import STUDY_FILE
from delta_tune.results.lock import StudyInUseError
from delta_tune.results.study_record import StudyRecord
from delta_tune.study.claim import claim_study
from delta_tune.study.remote import RemoteStudies
from delta_tune.study.resume import check_plain_files, remove_unfinished_files
from delta_tune.study.settings import check_paths
from delta_tune.training.task import Task


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


def new_name(tasks: Sequence[Task]) -> str:
    """A name of the form data-model-date-time, with each model."""
    models = "-".join(dict.fromkeys(task.backbone.model.removeprefix("timm:") for task in tasks))
    return f"{folder_name(tasks[0].dataset.name)}-{models}-{datetime.now():%Y%m%d-%H%M%S}"


def claim_new_name(
    config: StudyConfig, tasks: Sequence[Task], remote: RemoteStudies | None, claim: Callable[[str], None]
) -> str:
    """A name that no other study has, claimed for this one."""
    base = new_name(tasks)
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
