"""`study.log`: tracebacks of what failed outside of trials."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from delta_tune.config import UserError, mask_secrets
from delta_tune.results.layout import LOG_FILE, STUDY_FILE


def error_in_short(error: BaseException) -> str:
    """An error's type and the first line of its message."""
    error = getattr(error, "cause", None) or error  # that of a Ray task has the task's own
    first = next(iter(str(error).strip().splitlines()), "no cause is known")
    return f"{type(error).__name__}: {first}"


def log_traceback(file: Path, error: BaseException) -> str:
    """Append an error's traceback to `file`; return a sentence that says where it is."""
    text = mask_secrets("".join(traceback.format_exception(error)))
    try:
        with file.open("a", encoding="utf-8", errors="backslashreplace") as opened:
            opened.write(text)
    except OSError as unwritable:
        return f"Its traceback cannot be written to {file} ({unwritable.strerror})."
    return f"Its traceback is in {file}."


@contextmanager
def crash_logged(folder: Path, resume: str) -> Iterator[None]:
    """Log what nobody expected to fail in the block, and note at the exception what was kept and how to go on.

    Args:
        folder: the study's folder; nothing is logged before it has a study.
        resume: the command that carries the study on.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if (folder / STUDY_FILE).exists():
            where = log_traceback(folder / LOG_FILE, error)
            error.add_note(f"{where} Everything finished is saved in {folder}; continue with: {resume}")
        raise


@contextmanager
def may_fail(what: str, folder: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Run a last step of a study, without which its model and test score stand: say in one sentence if it fails.

    Args:
        what: what the step writes, as the sentence's subject.
        folder: the study's folder; its log gets the traceback.
        say: prints the sentence.
    """
    try:
        yield
    except Exception as error:  # whatever Arrow, Pillow, torch or the disk raise: the model matters more
        where = log_traceback(folder / LOG_FILE, error)
        say(f"{what} cannot be written ({error_in_short(error)}); the model and its scores are kept. {where}")
