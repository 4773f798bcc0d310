"""Messages that Tune carries between the study and its workers: a trial's assignment, and the outcome of a bad end.

A report has the columns of the last epoch, `node` and `began` of the trial, and as `epochs` the columns of each epoch
since the last report, with the time when it `ended`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from delta_tune.config import TrialConfig

OutcomeKind = Literal["diverged", "failed", "out of memory", "GPU lost", "blocked"]
RUNS_AGAIN: tuple[OutcomeKind, ...] = ("out of memory", "GPU lost")
"""Ends after which a trial is proposed again under its number."""
AVOID = "avoid"
"""Key of `TrialAssignment.avoid` in Tune's configuration."""
NOTICE = "notice"
"""Key of an epoch's report: a sentence for the user."""
_WORKER_DIED = "the worker died"
_BROKEN_TWICE = "it broke its GPU's context twice"


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialAssignment:
    """What a worker has to run: the content of Tune's configuration of a trial."""

    number: int
    """Number of the trial, from 0 in the order of proposals."""
    hyperparameters: Mapping[str, Any]
    """`TrialConfig.record()` of its configuration."""
    task: int = 0
    """Index of the task that it runs on, among the tasks of the run."""
    gpus: float = 0.0
    """Number of GPUs, or a fraction of one."""
    avoid: str = ""
    """Ray's ids of nodes that it must not run on, with commas: a GPU of theirs was lost."""

    @property
    def config(self) -> TrialConfig:
        """The hyperparameters, checked and typed."""
        return TrialConfig.from_record(self.hyperparameters)

    def to_config(self) -> dict[str, Any]:
        """As Tune's configuration of the trial."""
        own = {"number": self.number, "gpus": self.gpus, "task": self.task, AVOID: self.avoid}
        return {**own, **self.hyperparameters}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> TrialAssignment:
        """The inverse of `to_config`."""
        hyperparameters = dict(config)
        own = {name: hyperparameters.pop(name) for name in ("number", "gpus", "task")}
        return cls(**own, avoid=hyperparameters.pop(AVOID, ""), hyperparameters=hyperparameters)


def reported_epochs(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The epochs that a result of Tune's holds, in order: each as a result of its own."""
    own = {name: value for name, value in result.items() if name not in ("epochs", "outcome", "error")}
    if "epochs" not in result:
        return [] if "outcome" in result else [own]
    return [own | row for row in result["epochs"]]


class EachEpoch:
    """Mixed into a logger callback of Tune's: it is told of each epoch of a report, with the epoch as iteration."""

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """A trial reported."""
        for row in reported_epochs(result):
            told = row | {"training_iteration": row["epoch"]}
            super().on_trial_result(iteration, trials, trial, told, **info)  # type: ignore[misc]


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialOutcome:
    """How a trial ended badly: the worker's last report of it. A trial that ends well has none."""

    kind: OutcomeKind
    """`diverged` and `failed` are the configuration's fault.

    `out of memory`: the trial's part of a GPU was too small, and it runs again with twice as much.
    `GPU lost`: its GPU computes nothing any more, and it runs again on another node.
    `blocked`: an external cause such as a full disk; the whole run stops.
    """
    error: str

    def to_result(self, last: Mapping[str, Any]) -> dict[str, Any]:
        """As a result for Tune, beside the columns of the last epoch."""
        return {**last, "outcome": self.kind, "error": self.error}

    @classmethod
    def from_result(cls, result: Mapping[str, Any]) -> TrialOutcome | None:
        """The outcome that a result of Tune's holds; None if it is an epoch."""
        if "outcome" not in result:
            return None
        return cls(kind=result["outcome"], error=result["error"])


def worker_death(cause: str) -> str:
    """The error of a trial whose worker or node died: not the fault of its configuration."""
    return f"{_WORKER_DIED}: {cause}"


def broken_twice(cause: str) -> str:
    """The error of a trial that broke the GPU's context in two processes, one after the other."""
    return f"{_BROKEN_TWICE}: {cause}"


def is_broken_twice(error: str) -> bool:
    """Whether `broken_twice` made this error."""
    return error.startswith(_BROKEN_TWICE)


def is_worker_death(error: str) -> bool:
    """Whether `worker_death` made this error."""
    return error.startswith(_WORKER_DIED)
