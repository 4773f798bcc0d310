"""Log trials as Weights & Biases runs; imported only if asked for, because it needs wandb."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ray.air.integrations.wandb import WandbLoggerCallback

KEY = "WANDB_API_KEY"
# Keys of Tune or of the study, which are neither metrics nor hyperparameters.
EXCLUDED = (
    *(
        "number",
        "gpus",
        "task",
        "avoid",
        "gpu",
        "notice",
        "node",
        "began",
        "ended",
        "timestamp",
        "time_since_restore",
        "time_this_iter_s",
    ),
    *("iterations_since_restore", "checkpoint_dir_name", "hostname", "node_ip", "pid"),
)


class WandbRuns(WandbLoggerCallback):  # type: ignore[misc]
    """Ray's callback: one run per trial, grouped by study.

    The key is passed to wandb as a setting: Ray would make it an environment variable and log it in plain text.

    Args:
        project: the wandb project.
        folder: the study's folder: its name is the group's, and wandb's files are written there.
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
