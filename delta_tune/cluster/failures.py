"""External failures that stop a study: a full or read-only disk, a full object store, a Ray that is gone."""

from __future__ import annotations

import errno
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ray.exceptions import ObjectStoreFullError, OutOfDiskError, RayTaskError

from delta_tune.background import run_every
from delta_tune.cluster.assigned_gpu import place_in_words
from delta_tune.cluster.connection import RayMonitor
from delta_tune.config import UserError, visible
from delta_tune.console.escape import resume_command
from delta_tune.models.device_errors import FaultKind, find_device_fault
from delta_tune.results.layout import STUDY_FILE

ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)
HEAD_CHECK_S = 2.0
ADVICE: dict[FaultKind, str] = {
    "GPU memory": "a smaller batch_size or --image-size needs less, and a larger --gpus-per-trial gives more",
    "host memory": "a smaller batch_size or --image-size needs less, and a smaller --max-concurrent-trials leaves more",
}
LOOK_AT = "`nvidia-smi` and the node's kernel log may say why"
STORE_ERRORS = (ObjectStoreFullError, OutOfDiskError)


class ExternalFailure(Exception):
    """A trial or the search hit an external failure; the message names the cause."""


class BrokenGpuError(ExternalFailure):
    """The context of a GPU is broken; in a new process the same work may succeed."""


class TooLittleMemoryError(ExternalFailure):
    """The memory of a GPU or of a node is too small."""


def out_of_memory_text(text: str, kind: FaultKind = "GPU memory") -> str:
    """What a user is told of too little memory: the error and what helps."""
    cause = "the GPU's memory is too small" if kind == "GPU memory" else "the node's memory is too small"
    return f"{cause} ({text}); {ADVICE[kind]}"


def device_cause(error: BaseException | None) -> str | None:
    """In words, what a GPU, or too little memory, has to do with `error`; None if nothing."""
    fault = find_device_fault(error)
    if fault is None:
        return None
    if fault.kind == "GPU":
        return f"a GPU cannot be used any more ({fault.text}); {LOOK_AT}"
    return out_of_memory_text(fault.text, fault.kind)


@contextmanager
def device_faults_named(doing: str) -> Iterator[None]:
    """For work in Ray's processes: raise faults of the GPU, and too little memory, as sentences.

    Args:
        doing: what the block does, as the beginning of the sentence.

    Raises:
        BrokenGpuError: a new process may succeed (`retry_exceptions` of Ray's tasks).
        TooLittleMemoryError: of the GPU or the node.
    """
    try:
        yield
    except Exception as error:
        if (cause := device_cause(error)) is None:
            raise
        fault = find_device_fault(error)
        kind = BrokenGpuError if fault is not None and fault.kind == "GPU" else TooLittleMemoryError
        raise kind(f"{doing} on {place_in_words()}: {cause}") from None


def external_cause(error: BaseException | None) -> str | None:
    """The external cause behind `error` in words; None if there is none."""
    return _external_cause(error, set())


def _external_cause(error: BaseException | None, seen: set[int]) -> str | None:
    """Of an error none of whose causes has been seen: one from another process may be raised from that process's."""
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, RayTaskError) and (cause := _external_cause(error.cause, seen)) is not None:
            return cause  # its own text is the whole traceback of the other process
        if isinstance(error, ExternalFailure):
            return str(error)
        if isinstance(error, STORE_ERRORS):
            return f"Ray's object store has no room left ({type(error).__name__})"
        number = getattr(error, "errno", None)
        if number is None and isinstance(error, Exception):
            # safetensors, and Ray for an error raised in another process, give the number only in the text.
            match = re.search(r"(?:os error |\[Errno )(\d+)", str(error))
            number = int(match.group(1)) if match else None
        if number in ERRNOS:
            where = getattr(error, "filename", None)
            return os.strerror(number) + (f" ({where})" if where else "")
        error = error.__cause__ or error.__context__
    return None


@contextmanager
def as_user_error(folder: Path, out: str) -> Iterator[None]:
    """Turn an external failure inside the block into a `UserError` that says what to do.

    Args:
        folder: the study's folder.
        out: its parent as the user named it: a folder or an address.

    Raises:
        KeyboardInterrupt: the user interrupted; if the study has begun, the message has the command to continue.
    """
    try:
        yield
    except UserError:
        raise
    except KeyboardInterrupt:
        if not (folder / STUDY_FILE).exists():
            raise
        raise KeyboardInterrupt(f"interrupted; continue with: {resume_command(folder.name, out)}") from None
    except Exception as error:
        cause = external_cause(error) or device_cause(error)
        if cause is None:
            raise
        raise UserError(_stopped(cause, folder, out)) from error


@contextmanager
def exit_if_head_dies(
    folder: Path,
    out: str,
    before_end: Callable[[], None] = lambda: None,
    at_end: Callable[[], None] = lambda: None,
) -> Iterator[None]:
    """End this process with status 2 and one sentence if Ray's head or its node here dies while the block runs.

    Ray itself ends the process with status 1 and no explanation, a minute after the head's death or some ten seconds
    after the node's. Until then its calls block, including those of Tune's own clean-up, so no exception would reach
    us.

    Args:
        folder: the study's folder.
        out: its parent as the user named it: a folder or an address.
        before_end: called before the sentence is printed.
        at_end: called afterwards, to save what can be saved.
    """
    monitor = RayMonitor()

    def look() -> None:
        if (cause := monitor.failure()) is None:
            return
        try:
            before_end()
            sys.stdout.flush()
            print(f"launch.py: {visible(_stopped(cause, folder, out))}", file=sys.stderr, flush=True)
            at_end()
            sys.stdout.flush()
        finally:
            os._exit(2)

    with run_every(HEAD_CHECK_S, look):
        yield


def _stopped(cause: str, folder: Path, out: str) -> str:
    if not (folder / STUDY_FILE).exists():
        return f"The study did not begin: {cause}; nothing is saved yet, so run it again once the cause is fixed."
    return (
        f"The study stopped: {cause}. Everything finished is saved in {out}/{folder.name}; once the cause is "
        f"fixed, continue with: {resume_command(folder.name, out)}"
    )
