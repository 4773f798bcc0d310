"""ASHA behind Ray Tune: which trials go on."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from types import SimpleNamespace
from typing import Any

from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, TrialScheduler

from delta_tune.config import METHODS, METRICS, Metric
from delta_tune.search.messages import NUMBER, OUTCOME


class Rungs(FIFOScheduler):  # type: ignore[misc]
    """Tune's ASHA (arXiv 1810.05934) on `epoch`.

    Args:
        num_val: images that an accuracy is the mean of. A trial less than one standard error below the cut goes on:
            once the losers are gone, good trials differ by less than a small validation set can show, and every rung
            would stop the best of them by lot. None cuts as Tune does; so does a loss.
        group_of: method → name of those it shares rungs with; without it, all. Where methods are to be compared each
            has rungs of its own: they rise at different speeds, and a rung across them would stop the slow ones.
    """

    def __init__(
        self,
        *,
        metric: Metric,
        max_epochs: int,
        grace_period: int,
        reduction_factor: float,
        num_val: int | None = None,
        group_of: Callable[[str], str] | None = None,
    ) -> None:
        super().__init__()
        self._group_of = group_of or (lambda method: "all")
        self._metric, self._max_epochs = metric, max_epochs
        self._num_val = num_val if metric == "val_accuracy" else None
        self._settings = {
            "time_attr": "epoch",
            "metric": metric,
            "mode": METRICS[metric],
            "max_t": max_epochs,
            "grace_period": grace_period,
            "reduction_factor": reduction_factor,
        }
        self._rungs: dict[str, AsyncHyperBandScheduler] = {}
        self.pruned: set[str] = set()
        """Tune's ids of the trials that a rung stopped."""
        self.live: dict[str, Any] = {}
        """Tune's trials by id, from their proposal to the word of their end."""

    @property
    def metric(self) -> str:
        """What is compared; Tune checks that results have it."""
        return self._metric

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Tune's question after each epoch: go on, or stop."""
        if OUTCOME in result or result["epoch"] >= self._max_epochs:
            return str(TrialScheduler.STOP)
        decision = self._decide(trial.config[NUMBER], trial.config["regularizer"], result)
        if decision == TrialScheduler.STOP:
            self.pruned.add(trial.trial_id)
        return decision

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Tune's word of a trial that was proposed."""
        self.live[trial.trial_id] = trial

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """Tune's word of its end."""
        self.live.pop(trial.trial_id, None)

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        """Tune's word of its bad end."""
        self.live.pop(trial.trial_id, None)

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        """Tune's word of its end while it waited."""
        self.live.pop(trial.trial_id, None)

    def replay(self, regularizer: str, number: int, rows: Iterable[Mapping[str, Any]]) -> bool:
        """Enter epochs of a trial of an earlier session into its rungs, in the order in which they were reported.

        Returns:
            Whether the last of them was stopped at a rung: the earlier session may have ended before it wrote it down.
        """
        decision = str(TrialScheduler.CONTINUE)
        for row in rows:
            if row["epoch"] < self._max_epochs:
                decision = self._decide(number, regularizer, dict(row))
        return decision == str(TrialScheduler.STOP)

    def _decide(self, number: int, regularizer: str, result: dict[str, Any]) -> str:
        if not METHODS[regularizer].has_rungs:
            return str(TrialScheduler.CONTINUE)
        group = self._group_of(regularizer)
        if group not in self._rungs:
            self._rungs[group] = asha = AsyncHyperBandScheduler(**self._settings)
            for bracket in asha._brackets:
                bracket.cutoff = partial(_lenient, bracket.cutoff, self._num_val)
        rungs = self._rungs[group]
        trial = SimpleNamespace(trial_id=str(number))  # Tune's own id changes when a trial is resumed
        rungs.on_trial_add(None, trial)
        return str(rungs.on_trial_result(None, trial, result))


def _lenient(cutoff: Callable[[Any], float | None], num_val: int | None, recorded: Any) -> float | None:
    """Tune's cut, less the standard error of an accuracy like it."""
    cut = cutoff(recorded)
    if cut is None or num_val is None:
        return cut
    return cut - math.sqrt(max(0.0, cut * (1 - cut)) / num_val)


def rung_epochs(max_epochs: int, grace_period: int, reduction_factor: float) -> list[int]:
    """The epochs at which a trial may be stopped: the first from grace · factor^k on, below `max_epochs`."""
    rungs, epoch = [], float(grace_period)
    while math.ceil(epoch) < max_epochs:
        rungs.append(math.ceil(epoch))
        epoch *= reduction_factor
    return list(dict.fromkeys(rungs))
