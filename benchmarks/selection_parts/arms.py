"""The rules that name one of the trials that were run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from selection_parts.pool import Floats, Pool

Indices = NDArray[np.int64]
TODAY, TODAY_BEST, LAST = "a", "a*", "b"
NAMES = {
    "a": "a  today",
    "a*": "a* its best epoch",
    "b": "b  last",
    "c": "c  near",
    "d": "d  nll",
    "e": "e  near+T",
    "f": "f  mean3",
    "g": "g  near3",
}


@dataclass(frozen=True, kw_only=True)
class Arm:
    """A rule as what it knows of each configuration."""

    score: Floats
    """(N,), larger is better."""
    loss: Floats
    """(N,), decides among the best, or among those near the best; smaller is better."""
    near: int | None = None
    """Validation photos: those within one standard error of the best score are near. None: equals only."""

    def pick(self, drawn: Indices) -> Indices:
        """The configuration named in each study: (S, n) → (S,). Of equals the one that was drawn first."""
        scores = self.score[drawn]
        best = scores.max(1, keepdims=True)
        cut = best if self.near is None else best - np.sqrt(best * (1 - best) / self.near)
        named = np.where(scores >= cut, self.loss[drawn], np.inf).argmin(1)
        return np.asarray(drawn[np.arange(len(drawn)), named])


def arms_of(pool: Pool) -> dict[str, Arm]:
    """The arms that this set's recording allows; with one epoch only those of the last."""
    score, loss, last = pool.score, pool.loss, pool.score[:, -1]
    arms = {
        "b": Arm(score=last, loss=loss[:, -1]),
        "c": Arm(score=last, loss=loss[:, -1], near=pool.num_val),
    }
    if pool.logits is not None:
        arms |= {"d": Arm(score=-pool.nll, loss=pool.nll), "e": Arm(score=last, loss=pool.nll, near=pool.num_val)}
    if score.shape[1] > 1:
        best = score.argmax(1)  # the first of equals, as a trial keeps it
        arms["a"] = Arm(score=score.max(1), loss=loss[np.arange(len(pool)), best])
        mean = score[:, -3:].mean(1)
        arms["f"] = Arm(score=mean, loss=loss[:, -1])
        arms["g"] = Arm(score=mean, loss=loss[:, -3:].mean(1), near=pool.num_val)
    return dict(sorted(arms.items()))


def decision(gains: Mapping[str, Mapping[str, float]], least: float = 0.1, most_lost: float = 0.3) -> str:
    """The arm to take.

    Args:
        gains: set → arm → points that it gains over today's on that set; an arm may lack a set.
        least: points of mean over its sets that an arm has to gain.
        most_lost: points of loss on a set that strike it out.
    """
    by_arm: dict[str, dict[str, float]] = {}
    for name, found in gains.items():
        for arm, gain in found.items():
            by_arm.setdefault(arm, {})[name] = gain
    means = {arm: float(np.mean(list(found.values()))) for arm, found in by_arm.items()}
    left = {arm for arm in by_arm if means[arm] >= least and min(by_arm[arm].values()) > -most_lost}
    wins = dict.fromkeys(left, 0)
    for found in gains.values():
        if here := {arm: gain for arm, gain in found.items() if arm in left}:
            wins[max(here, key=lambda arm: here[arm])] += 1
    return max(sorted(left), key=lambda arm: (wins[arm], means[arm]), default=TODAY)
