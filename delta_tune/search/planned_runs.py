"""A Tune searcher that proposes a fixed list of runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from ray.tune.search import Searcher

from delta_tune.cluster.gpu_sharing import doubled_share
from delta_tune.config import METRICS, Metric, TrialConfig
from delta_tune.search.messages import RUNS_AGAIN, TrialAssignment, TrialOutcome


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """One configuration on one split."""

    number: int
    config: TrialConfig
    repetition: int
    gpus: float
    task: int = 0
    """Index of the task that it runs on, among the tasks of all runs."""


class PlannedRuns(Searcher):  # type: ignore[misc]
    """Proposes a fixed list of runs in order; one that ran out of a GPU's memory, or lost its GPU, runs again."""

    def __init__(self, runs: list[Run], metric: Metric, on_proposal: Callable[[Run], None]) -> None:
        super().__init__(metric=metric, mode=METRICS[metric])
        self._left, self._on_proposal = list(runs), on_proposal
        self._running: dict[str, Run] = {}

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The Tune configuration of the next run, or Tune's signal that there are no more."""
        if not self._left:
            on_gpus = any(run.gpus > 0 for run in self._running.values())
            return None if on_gpus else str(Searcher.FINISHED)
        run = self._left.pop(0)
        self._running[trial_id] = run
        self._on_proposal(run)
        assignment = TrialAssignment(
            number=run.number, gpus=run.gpus, task=run.task, hyperparameters=run.config.record()
        )
        return assignment.to_config()

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Called by Tune when a run ends."""
        run, outcome = self._running.pop(trial_id), TrialOutcome.from_result(result or {})
        if outcome is not None and outcome.kind in RUNS_AGAIN:
            gpus = doubled_share(run.gpus) if outcome.kind == "out of memory" else run.gpus
            self._left.insert(0, replace(run, gpus=gpus))

    def __getstate__(self) -> dict[str, Any]:
        """Empty: Tune pickles its settings at the start of a run, but a resume uses the study's tables."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Does nothing: a resumed confirmation is rebuilt from its tables."""

    def restore(self, checkpoint_path: str) -> None:
        """Does nothing, like `save`."""
