"""Log trials as Weights & Biases runs; imported only if asked for, because it needs wandb."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray.air.integrations.wandb import WandbLoggerCallback
from ray.exceptions import RayError

from delta_tune.config import mask_secrets
from delta_tune.search.messages import EachEpoch

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


class WandbRuns(EachEpoch, WandbLoggerCallback):  # type: ignore[misc]
    """Ray's callback: one run per trial, grouped by study.

    The key is passed to wandb as a setting: Ray would make it an environment variable and log it in plain text.

    Args:
        project: the wandb project.
        folder: the study's folder: its name is the group's, and wandb's files are written there.
        say: prints one sentence if logging fails; the study continues without Weights & Biases.
    """

    def __init__(self, project: str, folder: Path, say: Callable[[str], None] = print) -> None:
        # The processes that send may lack this one's variables, on a Ray that was joined
        options: dict[str, Any] = {"mode": os.environ["WANDB_MODE"]} if "WANDB_MODE" in os.environ else {}
        if KEY in os.environ:
            options["settings"] = {"api_key": os.environ[KEY]}
        super().__init__(project=project, group=folder.name, excludes=list(EXCLUDED), dir=str(folder), **options)

        self._say, self._lost = say, False

    def log_trial_start(self, trial: Any) -> None:
        """As Ray's, with the variable hidden from it."""
        key = os.environ.pop(KEY, None)
        try:
            self._send(lambda: super(WandbRuns, self).log_trial_start(trial))
        finally:
            if key is not None:
                os.environ[KEY] = key

    def log_trial_result(self, iteration: int, trial: Any, result: dict[str, Any]) -> None:
        """As Ray's."""
        self._send(lambda: super(WandbRuns, self).log_trial_result(iteration, trial, result))

    def log_trial_end(self, trial: Any, failed: bool = False) -> None:
        """As Ray's."""
        self._send(lambda: super(WandbRuns, self).log_trial_end(trial, failed))

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        """As Ray's."""
        self._send(lambda: super(WandbRuns, self).on_experiment_end(trials, **info))

    def _send(self, request: Callable[[], object]) -> None:
        """Call Ray's callback; what it raises ends the logging, not the study."""
        if self._lost:
            return
        try:
            request()
        except (RayError, OSError, ValueError) as error:
            self._lost = True
            reason = mask_secrets((str(error).strip().splitlines() or [type(error).__name__])[0])
            self._say(f"Weights & Biases takes no more results ({reason}); the study goes on without it.")

    def __getstate__(self) -> dict[str, Any]:
        """Without the key: Tune pickles its callbacks into the study's folder."""
        return self.__dict__ | {
            "kwargs": {name: value for name, value in self.kwargs.items() if name != "settings"},
            "_say": print,
        }
