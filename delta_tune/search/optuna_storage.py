"""The Optuna storage for optuna-dashboard; the study's tables remain authoritative."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

import optuna
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from sqlalchemy.exc import SQLAlchemyError

from delta_tune.config import UserError, refuse_secret


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


def remove_stale_studies(storage: BaseStorage, names: Iterable[str], *, resume: bool) -> None:
    """Remove studies that a resume will fill again, and those of a study that never started.

    Raises:
        UserError: another study of that name has trials there.
    """
    there = set(optuna.get_all_study_names(storage))
    for name in names:
        if name not in there:
            continue
        study = optuna.load_study(study_name=name, storage=storage)
        if study.trials and not resume:
            raise UserError(f"The storage already has a study {name!r} with trials; give another --name.")
        optuna.delete_study(study_name=name, storage=storage)
