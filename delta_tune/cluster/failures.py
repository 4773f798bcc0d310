"""Causes that stop a study and are no configuration's fault: a full or read-only disk, a full object store, no Ray."""

from __future__ import annotations

import errno
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ray.exceptions import ObjectStoreFullError, OutOfDiskError

from delta_tune.background import run_every
from delta_tune.cluster.connection import HeadMonitor
from delta_tune.config import UserError

ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)
LOOK_AT_HEAD_S = 2.0
STORE_ERRORS = (ObjectStoreFullError, OutOfDiskError)


class ExternalFailure(Exception):
    """A trial, or the search, met such a cause; the message is its reason in words."""


def external_cause(error: BaseException | None) -> str | None:
    """The cause in words if there is one behind `error`, else None."""
    while error is not None:
        if isinstance(error, ExternalFailure):
            return str(error)
        if isinstance(error, STORE_ERRORS):
            return f"Ray's object store has no room left ({type(error).__name__})"
        number = getattr(error, "errno", None)
        if number is None and isinstance(error, Exception):
            # safetensors tells the number in words alone, as does Ray of what was raised in another process.
            told = re.search(r"(?:os error |\[Errno )(\d+)", str(error))
            number = int(told.group(1)) if told else None
        if number in ERRNOS:
            where = getattr(error, "filename", None)
            return os.strerror(number) + (f" ({where})" if where else "")
        error = error.__cause__ or error.__context__
    return None


@contextmanager
def as_user_error(folder: Path, out: str) -> Iterator[None]:
    """Within it such a cause becomes a `UserError` with what is to be done.

    Args:
        folder: of the study.
        out: what holds it, as the user knows it.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        cause = external_cause(error)
        if cause is None:
            raise
        raise UserError(_stopped(cause, folder, out)) from error


@contextmanager
def exit_if_head_dies(folder: Path, out: str, before_end: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Within it the loss of Ray's head is told in a sentence and ends this process with status 2.

    Ray ends it anyway, with status 1 and without our word, once it has waited for a minute; until then its calls
    block, those that Tune would clean up with too, so that no exception comes through.

    Args:
        folder: of the study.
        out: what holds it, as the user knows it.
        before_end: what is done before that.
    """
    head = HeadMonitor()

    def look() -> None:
        if head.patience() <= 0:
            said = _stopped("Ray's head is gone", folder, out)
            before_end()
            sys.stdout.flush()
            print(f"launch.py: {said}", file=sys.stderr, flush=True)
            os._exit(2)

    with run_every(LOOK_AT_HEAD_S, look):
        yield


def _stopped(cause: str, folder: Path, out: str) -> str:
    return (
        f"The study stopped: {cause}. Everything that is finished is kept in {out}/{folder.name}; once the cause "
        f"is gone, carry on with: python launch.py --resume --name {folder.name} --out {out}"
    )
