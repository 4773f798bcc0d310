"""Studies of one trial after another behind the project's rungs, and what each number of trials names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from delta_tune.config import TrialConfig
from delta_tune.search.asha import AshaScheduler
from selection_parts.arms import Arm, Indices
from selection_parts.pool import Floats, Pool

MOST_TRIALS = 32
Stops = Callable[[list[float], int, int], bool]
"""(best epochs' scores of the trials that ran to their end, trials that ended, validation photos) → enough."""


@dataclass(frozen=True, kw_only=True)
class Rungs:
    """How trials are stopped; as the project does where nothing is asked for."""

    grace: int = 1
    factor: float = 4
    tolerant: bool = True
    """Whether a trial within a standard error of the cut goes on."""


OURS = Rungs()


@dataclass(frozen=True, kw_only=True)
class Run:
    """A study's trials in the order in which they ran."""

    order: Indices
    full: NDArray[np.bool_]
    """Which ran to their end."""
    epochs: Indices
    """Trained until each one's end, by all."""

    def scores(self, arm: Arm, test: Floats, budgets: Sequence[int]) -> list[float]:
        """Test score of the named one after so many epochs of all trials."""
        ended = np.searchsorted(self.epochs, budgets, side="right")
        by_trials = {trials: score_of(test, self.named(arm, trials)) for trials in set(ended.tolist())}
        return [by_trials[trials] for trials in ended.tolist()]

    def named(self, arm: Arm, trials: int) -> int | None:
        """The configuration that the rule names after so many trials; None if none ran to its end."""
        complete = self.order[:trials][self.full[:trials]]
        return int(arm.pick(complete[None])[0]) if len(complete) else None


def run_of(pool: Pool, order: Indices, rungs: Rungs | None = OURS) -> Run:
    """Run these configurations one at a time; without rungs at full length."""
    epochs = pool.accuracy.shape[1]
    if rungs is None:
        every = np.full(len(order), epochs)
        return Run(order=order, full=every == epochs, epochs=every.cumsum())
    scheduler = AshaScheduler(
        metric="val_accuracy",
        max_epochs=epochs,
        grace_period=rungs.grace,
        reduction_factor=rungs.factor,
        num_val=pool.num_val if rungs.tolerant else None,
    )

    def length(number: int, index: int) -> int:
        config = TrialConfig.from_record({"regularizer": pool.methods[index]})
        for epoch, score in enumerate(pool.accuracy[index].tolist(), 1):
            if scheduler.replay(config, number, [{"epoch": epoch, "val_accuracy": score}]):
                return epoch
        return epochs

    # A rung stops a trial before its last epoch only.
    lengths = np.array([length(number, index) for number, index in enumerate(order.tolist())])
    return Run(order=order, full=lengths == epochs, epochs=lengths.cumsum())


def trials_until(pool: Pool, run: Run, stops: Stops) -> int:
    """The number of trials after which the rule has enough; all of them if it never has."""
    scores = pool.score.max(1)[run.order]
    for trials in range(1, len(run.order)):
        if stops(scores[:trials][run.full[:trials]].tolist(), trials, pool.num_val):
            return trials
    return len(run.order)


@dataclass(frozen=True, kw_only=True)
class Enough:
    """What a stopping rule does, as means over studies."""

    trials: float
    share: float
    """Of the epochs of all trials."""
    loss: float
    """Points of test score below the winner of all trials."""
    error: float
    """Its standard error over the studies alone; not over configurations."""


def judge(pool: Pool, runs: list[Run], arm: Arm, stops: Stops | int) -> Enough:
    """A stopping rule, or a fixed number of trials, on these studies."""
    counts = [min(stops, len(run.order)) if isinstance(stops, int) else trials_until(pool, run, stops) for run in runs]
    losses = []
    for run, trials in zip(runs, counts, strict=True):
        ours, all_ = run.named(arm, trials), run.named(arm, len(run.order))
        losses.append(100 * (score_of(pool.test, all_) - score_of(pool.test, ours)))
    share = sum(run.epochs[n - 1] for run, n in zip(runs, counts, strict=True)) / sum(run.epochs[-1] for run in runs)
    error = float(np.std(losses, ddof=1)) / len(losses) ** 0.5
    return Enough(trials=float(np.mean(counts)), share=float(share), loss=float(np.mean(losses)), error=error)


def score_of(test: Floats, named: int | None) -> float:
    """Of the named one; of none, the worst."""
    return float(test.min() if named is None else test[named])


def runs_of(
    pool: Pool, count: int, rungs: Rungs | None = OURS, most: int | None = MOST_TRIALS, *, starts: bool = False
) -> list[Run]:
    """Studies of one trial at a time.

    Args:
        pool: the configurations.
        count: of studies.
        rungs: None for trials of full length.
        most: different trials of each; all there are, if they are fewer or it is None.
        starts: whether the spaces' starting points come first, in their order; if not, the order is random.
    """
    rng = np.random.default_rng(2)  # whatever the rungs, the same orders
    runs = []
    for _ in range(count):
        order = rng.permutation(len(pool))
        if starts:
            order = np.concatenate([np.flatnonzero(pool.starts), order[~pool.starts[order]]])
        runs.append(run_of(pool, order[:most], rungs))
    return runs
