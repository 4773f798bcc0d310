"""Faults that end a trial's process: what it leaves in the trial's folder, and what the next process makes of it.

After a broken GPU context each later call in the process fails at once, so a process that went on would take and fail
one trial after the other. It ends instead; Tune starts the trial again in a new one, from its checkpoint.
"""

from __future__ import annotations

import os
import re
import traceback
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from delta_tune.cluster.assigned_gpu import place_in_words
from delta_tune.cluster.failures import LOOK_AT, out_of_memory_text
from delta_tune.models.device_errors import DeviceFault, FaultKind, device_failure
from delta_tune.results.layout import BROKEN_BEFORE_FILE, BROKEN_FILE, ERROR_FILE, traceback_file
from delta_tune.search.messages import OutcomeKind, broken_twice


class ProcessMustEndError(Exception):
    """The fault is noted in the trial's folder; the process must end now."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Note:
    """What a process wrote into its trial's folder before it ended."""

    kind: FaultKind
    text: str
    """The error and where it was met."""
    traceback: str

    @classmethod
    def read(cls, folder: Path) -> Note | None:
        """The note that an earlier process left; None if there is none."""
        with suppress(FileNotFoundError):
            content = (folder / BROKEN_FILE).read_text(encoding="utf-8", errors="replace")
            kind, _, rest = content.partition("\n")
            text, _, stack = rest.partition("\n")
            for known in get_args(FaultKind):
                if kind == known:
                    return cls(kind=known, text=text, traceback=stack)
        return None

    def write(self, folder: Path) -> None:
        """Write it where the next process looks."""
        folder.mkdir(parents=True, exist_ok=True)
        content = f"{self.kind}\n{self.text}\n{self.traceback}"
        (folder / BROKEN_FILE).write_text(content, encoding="utf-8", errors="backslashreplace")


def leave_note(folder: Path, fault: DeviceFault) -> None:
    """Note the fault whose exception is being handled."""
    text = re.sub(r"\s+", " ", f"{fault.text}, on {place_in_words()}")
    Note(kind=fault.kind, text=text, traceback=traceback.format_exc()).write(folder)


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What becomes of a trial whose last process ended itself: a bad end, or it goes on."""

    outcome: OutcomeKind | None
    sentence: str
    """Why it ends, or what happened for the user."""


def judge_note(folder: Path, number: int, *, device: str, gpus: float) -> Verdict | None:
    """What becomes of a trial, by the note of its last process; None if there is no note.

    Called in the new process. The note is gone afterwards, or kept as that of the epoch that is now repeated.
    """
    note, file, before = Note.read(folder), folder / BROKEN_FILE, folder / BROKEN_BEFORE_FILE
    if note is None:
        return None
    if note.kind == "GPU memory" and 0 < gpus < 1:
        file.unlink()
        return Verdict(outcome="out of memory", sentence=out_of_memory_text(note.text))
    if note.kind == "GPU" and (failure := device_failure(device)) is not None:
        file.unlink()
        sentence = f"{place_in_words()} cannot be used any more ({failure}; before that {note.text}); {LOOK_AT}"
        return Verdict(outcome="GPU lost", sentence=sentence)
    if note.kind == "GPU memory" or before.exists():
        (folder / ERROR_FILE).write_text(note.traceback, encoding="utf-8", errors="backslashreplace")
        file.unlink()
        where = f"traceback in {traceback_file(number)}"
        if note.kind == "GPU":
            return Verdict(outcome="failed", sentence=broken_twice(f"{note.text}; {where}"))
        return Verdict(outcome="failed", sentence=f"{out_of_memory_text(note.text, note.kind)} ({where})")
    file.replace(before)  # once may be the machine's fault
    return Verdict(outcome=None, sentence=f"Trial {number} goes on in a new process; its last one ended: {note.text}.")


def end_process() -> None:
    """End this process without clean-up, which would call into the broken context."""
    os._exit(1)
