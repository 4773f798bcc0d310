"""The progress bar of commands."""

from __future__ import annotations

import sys
from typing import Any


def bar_on_stderr() -> Any:
    """Progress on standard error: standard output may be JSON."""
    from rich.console import Console

    from delta_tune.console.progress import Progress

    return Progress(console=Console(file=sys.stderr, highlight=False, soft_wrap=True)).bar
