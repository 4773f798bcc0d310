"""A home folder for processes that have none: containers run with users that the system does not know."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from pathlib import Path


def provide_home() -> None:
    """Set HOME to a new private folder, until this process ends, if there is no home: Ray cannot be imported without.

    A home that exists stays, whether it can be written to or not.
    """
    try:
        Path.home()
    except RuntimeError:
        home = tempfile.mkdtemp(prefix="delta-home-")
        os.environ["HOME"] = home
        atexit.register(_remove, home, os.getpid())


def _remove(home: str, owner: int) -> None:
    if os.getpid() == owner:  # not a fork of it
        shutil.rmtree(home, ignore_errors=True)
