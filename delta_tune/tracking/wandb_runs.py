"""Trials as Weights & Biases runs, by Ray's callback; needs wandb, so it is imported only where that is asked for."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ray.air.integrations.wandb import WandbLoggerCallback

KEY = "WANDB_API_KEY"
# Of a result and a configuration: what is Tune's or ours, and no figure or hyperparameter of the trial.
EXCLUDED = (
    *("number", "gpus", "task", "node", "began", "ended", "timestamp", "time_since_restore", "time_this_iter_s"),
    *("iterations_since_restore", "checkpoint_dir_name", "hostname", "node_ip", "pid"),
)


class WandbRuns(WandbLoggerCallback):  # type: ignore[misc]
    """Ray's callback: a run a trial, those of a study as a group.

    Args:
        project: of wandb.
        folder: of the study: its name is the group's, and wandb's own files come there.
    """

    def __init__(self, project: str, folder: Path) -> None:
        # The processes that send may lack this one's variables, on a Ray that was joined
        mode = {"mode": os.environ["WANDB_MODE"]} if "WANDB_MODE" in os.environ else {}
        super().__init__(project=project, group=folder.name, excludes=list(EXCLUDED), dir=str(folder), **mode)

    def _start_logging_actor(self, trial: Any, exclude_results: list[str], **options: Any) -> None:
        """As Ray's, but the key comes as an argument: Ray would make it a variable, and logs those in plain text."""
        key = os.environ.pop(KEY, None)
        try:
            secret = {} if key is None else {"settings": {"api_key": key}}
            super()._start_logging_actor(trial, exclude_results, **options, **secret)
        finally:
            if key is not None:
                os.environ[KEY] = key
