"""The Optuna storage for optuna-dashboard; the study's tables remain authoritative."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import Any

import optuna
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from sqlalchemy.exc import SQLAlchemyError

from delta_tune.config import UserError, refuse_secret
from delta_tune.results.lock import Claim

STUDY_ID, STARTED_BY = "delta_tune.study_id", "delta_tune.started_by"
"""User attributes of Optuna's studies: the id of ours, and the process that created it."""


def open_storage(address: str) -> BaseStorage:
    """Open the storage at a database URL or in a journal file.

    Args:
        address: such as sqlite:///studies.db, postgresql://…, or a path.

    Raises:
        UserError: it cannot be opened, or the URL contains a password.
    """
    refuse_secret("storage", address)
    try:
        return RDBStorage(address) if "://" in address else JournalStorage(JournalFileBackend(address))
    except (SQLAlchemyError, ImportError, OSError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"--storage {address} cannot be opened ({reason}); give a database URL such as sqlite:///studies.db, "
            f"or the path of a journal file."
        ) from error


@contextlib.contextmanager
def silence_optuna() -> Iterator[None]:
    """Silence Optuna's message about a new study while the block runs."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(max(verbosity, optuna.logging.WARNING))
    try:
        yield
    finally:
        optuna.logging.set_verbosity(verbosity)


def remove_stale_studies(storage: BaseStorage, names: Iterable[str], study_id: str | None) -> None:
    """Remove studies that a resume will fill again, and those of a study that never started.

    Args:
        storage: Optuna's storage.
        names: of Optuna's studies.
        study_id: only studies that the study of this id filled are removed.

    Raises:
        UserError: another study of that name has trials there, or is about to start.
    """
    there = set(optuna.get_all_study_names(storage))
    for name in names:
        if name not in there:
            continue
        study = optuna.load_study(study_name=name, storage=storage)
        ours = study_id is not None and study.user_attrs.get(STUDY_ID) == study_id
        if not ours and study.trials:
            raise UserError(
                f"The storage already has a study {name!r} with trials that are not this study's; give another --name "
                f"or --storage, or delete it there."
            )
        starter = Claim.parse(str(study.user_attrs.get(STARTED_BY, "")).encode())
        if not ours and starter is not None and starter.lives(starter.place) is not False:
            raise UserError(
                f"The storage already has a study {name!r}, which {starter} is about to start; give another --name or "
                f"--storage, or delete it there."
            )
        optuna.delete_study(study_name=name, storage=storage)


def create_study(storage: BaseStorage | None, name: str, study_id: str | None, **options: Any) -> optuna.Study:
    """Create Optuna's study; in a storage it says whose it is.

    Args:
        storage: Optuna's storage; None for memory.
        name: of Optuna's study.
        study_id: id of our study.
        **options: of `optuna.create_study`.

    Raises:
        UserError: another session has just created a study of that name there.
    """
    with silence_optuna():
        try:
            study = optuna.create_study(study_name=name, storage=storage, **options)
        except optuna.exceptions.DuplicatedStudyError:
            raise UserError(
                f"The storage already has a study {name!r}, which has just been started; give another --name."
            ) from None
    if storage is not None:
        study.set_user_attr(STUDY_ID, study_id)
        study.set_user_attr(STARTED_BY, json.dumps(asdict(Claim.of_this_process(""))))
    return study
