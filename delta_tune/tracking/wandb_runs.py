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
    """Ray's callback: one run per trial, those of a study as a group.

    The key goes to wandb as a setting: Ray would make it an environment variable of its processes, and logs those in
    plain text.

    Args:
        project: of wandb.
        folder: of the study: its name is the group's, and wandb's own files come there.
    """

    def __init__(self, project: str, folder: Path) -> None:
        # The processes that send may lack this one's variables, on a Ray that was joined
        options: dict[str, Any] = {"mode": os.environ["WANDB_MODE"]} if "WANDB_MODE" in os.environ else {}
        if KEY in os.environ:
            options["settings"] = {"api_key": os.environ[KEY]}
        super().__init__(project=project, group=folder.name, excludes=list(EXCLUDED), dir=str(folder), **options)

    def log_trial_start(self, trial: Any) -> None:
        """As Ray's, with the variable hidden from it."""
        key = os.environ.pop(KEY, None)
        try:
            super().log_trial_start(trial)
        finally:
            if key is not None:
                os.environ[KEY] = key

    def __getstate__(self) -> dict[str, Any]:
        """Without the key: Tune pickles its callbacks into the study's folder."""
        return self.__dict__ | {"kwargs": {name: value for name, value in self.kwargs.items() if name != "settings"}}
