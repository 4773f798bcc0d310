"""The command lines: `launch.py` and `python -m delta_tune`."""

from delta_tune.cli.launch import main

__all__ = ["main"]
