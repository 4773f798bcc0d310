"""ASHA, asynchronous successive halving (arXiv 1810.05934): its rule, and the Tune scheduler that applies it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from delta_tune.config import METRICS, Metric, TrialConfig
from delta_tune.search.messages import TrialAssignment, TrialOutcome, reported_epochs


def rung_epochs(max_epochs: int, grace_period: int, reduction_factor: float) -> list[int]:
    """The epochs at which a trial may be stopped: the first from grace · factor^k on, below `max_epochs`."""
    rungs, epoch = [], float(grace_period)
    while math.ceil(epoch) < max_epochs:
        rungs.append(math.ceil(epoch))
        epoch *= reduction_factor
    return list(dict.fromkeys(rungs))


def passes_rung(value: float, earlier: Sequence[float], reduction_factor: float, num_val: int | None = None) -> bool:
    """Whether a trial goes on after a rung, by Tune's rule: among the best 1/`reduction_factor` of the earlier ones.

    Args:
        value: the trial's score at the rung; larger is better.
        earlier: scores of the trials that were there before it, stopped or not.
        reduction_factor: > 1.
        num_val: images that an accuracy is the mean of. A trial less than one standard error below the cut goes on:
            once the losers are gone, good trials differ by less than a small validation set can show, and every rung
            would stop the best of them by chance. None cuts exactly.
    """
    if not earlier:
        return True
    cut = float(np.nanpercentile(earlier, (1 - 1 / reduction_factor) * 100))
    if num_val is not None:
        cut -= math.sqrt(max(0.0, cut * (1 - cut)) / num_val)
    return not value < cut


class AshaScheduler(FIFOScheduler):  # type: ignore[misc]
    """ASHA on `epoch`, with rungs that a resume rebuilds.

    Args:
        num_val: as in `passes_rung`; it does not apply to a loss.
        group_of: configuration → name of the group that shares rungs; by default all trials do. If methods or networks
            are compared, each has rungs of its own: they learn at different speeds, and common rungs would stop the
            slow ones.
    """

    def __init__(
        self,
        *,
        metric: Metric,
        max_epochs: int,
        grace_period: int,
        reduction_factor: float,
        num_val: int | None = None,
        group_of: Callable[[TrialConfig], str] | None = None,
    ) -> None:
        super().__init__()
        self._group_of = group_of or (lambda config: "all")
        self._compared: Metric = metric
        self._max_epochs, self._reduction_factor = max_epochs, reduction_factor
        self._num_val = num_val if metric == "val_accuracy" else None
        self.rungs = rung_epochs(max_epochs, grace_period, reduction_factor)
        """The epochs after which a trial may be stopped."""
        self._scores: dict[tuple[str, int], dict[int, float]] = {}  # of each group's rungs: trial → score, best largest
        self.pruned: set[str] = set()
        """Tune ids of trials that were stopped at a rung."""
        self.live: dict[str, Any] = {}
        """Tune's unfinished trials by id."""

    @property
    def metric(self) -> str:
        """The metric that is compared; Tune checks that results have it."""
        return self._compared

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Called by Tune after each report: continue or stop the trial."""
        if TrialOutcome.from_result(result) is not None:
            return str(TrialScheduler.STOP)
        assignment = TrialAssignment.from_config(trial.config)
        stops = self.replay(assignment.config, assignment.number, reported_epochs(result))
        if result["epoch"] >= self._max_epochs:
            return str(TrialScheduler.STOP)
        if not stops:
            return str(TrialScheduler.CONTINUE)
        self.pruned.add(trial.trial_id)
        return str(TrialScheduler.STOP)

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Called by Tune when a trial is proposed."""
        self.live[trial.trial_id] = trial

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """Called by Tune when a trial ends."""
        self.live.pop(trial.trial_id, None)

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        """Called by Tune when a trial fails."""
        self.live.pop(trial.trial_id, None)

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        """Called by Tune when a waiting trial is removed."""
        self.live.pop(trial.trial_id, None)

    def replay(self, config: TrialConfig, number: int, rows: Iterable[Mapping[str, Any]]) -> bool:
        """Enter epochs of a trial into its rungs, in the order in which they were reported.

        Returns:
            Whether a rung stops the trial. If these are epochs of an earlier session, it may have ended before it wrote
            that down.
        """
        return any(not self._goes_on(number, config, row) for row in rows if row["epoch"] < self._max_epochs)

    def _goes_on(self, number: int, config: TrialConfig, row: Mapping[str, Any]) -> bool:
        """Compare the trial at the rung that it has reached; once, also if it is resumed or repeats an epoch."""
        rung = next((epoch for epoch in reversed(self.rungs) if epoch <= row["epoch"]), None)
        if rung is None or not config.method.has_rungs:
            return True
        scores = self._scores.setdefault((self._group_of(config), rung), {})
        if number in scores:
            return True
        score = row[self._compared] if METRICS[self._compared] == "max" else -row[self._compared]
        goes_on = passes_rung(score, list(scores.values()), self._reduction_factor, self._num_val)
        scores[number] = score
        return goes_on
