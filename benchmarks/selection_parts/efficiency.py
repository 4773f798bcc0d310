"""Test accuracy of the named winner against epochs, by the rule that stops trials."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from selection_parts.arms import Arm
from selection_parts.pool import Floats, Pool
from selection_parts.sequence import MOST_TRIALS, OURS, Run, Rungs, runs_of

WAYS: dict[str, tuple[Rungs | None, bool]] = {
    "full length": (None, False),
    "ours": (OURS, False),
    "ours, starts first": (OURS, True),
    "ours, exact": (Rungs(tolerant=False), False),
    **{
        f"grace {grace}, factor {factor}": (Rungs(grace=grace, factor=factor), False)
        for grace in (1, 2, 3)
        for factor in (2, 3, 4)
        if (grace, factor) != (OURS.grace, OURS.factor)
    },
}
"""Name → rungs, and whether starting points come first."""


@dataclass(frozen=True, kw_only=True)
class Efficiency:
    """Means over studies."""

    area: float
    """Mean test score, in points, over the epochs that `MOST_TRIALS` have at full length."""
    by_trials: tuple[float, ...]
    """Test score after as many epochs as 2, 4, 8, … trials at full length have."""
    epochs: int | None
    """Until the score that full length has after `MOST_TRIALS` trials, or all of fewer; None: it was not reached."""


def efficiency(pool: Pool, arm: Arm, ways: list[str], studies: int) -> dict[str, Efficiency]:
    """Studies over all configurations of the set; `ways` begins with "full length"."""
    length = pool.accuracy.shape[1]
    most = min(MOST_TRIALS, len(pool))
    budgets = list(range(1, length * most + 1))
    target, found = np.inf, {}
    for name in ways:
        rungs, starts = WAYS[name]
        curve = mean_curve(runs_of(pool, studies, rungs, None, starts=starts), arm, pool, budgets)
        target = curve[-1] if name == "full length" else target
        reached = np.flatnonzero(curve >= target)
        found[name] = Efficiency(
            area=100 * float(curve.mean()),
            by_trials=tuple(100 * float(curve[length * trials - 1]) for trials in trials_shown(most)),
            epochs=budgets[reached[0]] if len(reached) else None,
        )
    return found


def trials_shown(most: int) -> list[int]:
    """2, 4, 8, … trials."""
    return [trials for trials in (2, 4, 8, 16, 32) if trials <= most]


def mean_curve(runs: list[Run], arm: Arm, pool: Pool, budgets: list[int]) -> Floats:
    """Mean test score of the named one after each number of epochs."""
    return np.mean([run.scores(arm, pool.test, budgets) for run in runs], axis=0)
