"""Claim a study for this session: its folder, or its place at an address."""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack
from pathlib import Path

from delta_tune.console.progress import Progress
from delta_tune.results.layout import LOCK, LOCKS
from delta_tune.results.lock import StudyLock

EXIT_STATUS = 2


def claim_study(out: Path | str, name: str, progress: Progress, session: ExitStack) -> None:
    """Claim the study `name` in `out` until the session ends.

    Args:
        out: a folder, or an address.
        name: the study's name.
        progress: prints to the user.
        session: what ends with this session.

    Raises:
        StudyInUseError: another session works on the study.
        UserError: the place cannot be written to.
    """
    place = str(out / name / LOCK) if isinstance(out, Path) else f"{out}/{LOCKS}/{name}"
    lock = StudyLock(place, f"{out}/{name}")
    lock.acquire(progress.say)

    def stop() -> None:
        """End this process without writing another byte: its study is another session's now."""
        progress.close()
        sys.stdout.flush()
        message = (
            f"The study stopped: this session's claim on {out}/{name} is gone. Another session took the study over "
            f"while this one stood still, or its folder was moved."
        )
        print(f"launch.py: {message}", file=sys.stderr, flush=True)
        os._exit(EXIT_STATUS)

    session.enter_context(lock.kept(stop))
