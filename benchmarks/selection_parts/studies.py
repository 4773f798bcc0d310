"""Simulated studies: draws of configurations, what each arm loses, and bootstrap intervals over configurations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from selection_parts.arms import TODAY, TODAY_BEST, Arm, Indices
from selection_parts.pool import Floats

POOLS = 200
Arms = Mapping[str, Arm]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a rule does on a set, in points of the test score."""

    score: float
    """Mean of the named ones."""
    loss: float
    """Mean against the oracle."""
    gain: float
    """Mean difference to the arm that is compared with."""
    gains: Floats
    """The same in each bootstrap pool."""

    @property
    def interval(self) -> tuple[float, float]:
        """The middle 95 %."""
        low, high = np.percentile(self.gains, [2.5, 97.5])
        return float(low), float(high)


def draws(rng: np.random.Generator, weights: Indices, count: int, n: int) -> Indices:
    """`count` draws of `n` configurations without replacement.

    Args:
        rng: where from.
        weights: (N,), how often the pool has each configuration; n have to be there. One that is there twice is drawn
            first with twice the probability, but never twice: a study repeats nothing.
        count: number of draws.
        n: configurations of each.
    """
    with np.errstate(divide="ignore"):
        # The n that ring first, each at a rate of its weight (Efraimidis and Spirakis)
        return (rng.standard_exponential((count, len(weights))) / weights).argpartition(n - 1, axis=1)[:, :n]


def resampled(rng: np.random.Generator, size: int, least: int) -> Indices:
    """How often each of `size` configurations is in a bootstrap pool, drawn again until `least` of them are there."""
    while True:
        weights = np.bincount(rng.integers(size, size=size), minlength=size)
        if (weights > 0).sum() >= least:
            return weights


def scores_of(judges: Sequence[Arms], test: Floats, best_test: Floats | None, drawn: Indices) -> dict[str, float]:
    """Mean test score of the named ones of each arm and of the `oracle`.

    Args:
        judges: the arms, as validation sets see them that take the studies in turn.
        test: (N,).
        best_test: (N,), what today's arm delivers, told as `a*`.
        drawn: (S, n).
    """
    parts = [drawn[turn :: len(judges)] for turn in range(len(judges))]
    by_arm = {}
    for name in judges[0]:
        named = np.concatenate([judge[name].pick(part) for judge, part in zip(judges, parts, strict=True)])
        by_arm[name] = float(test[named].mean())
        if name == TODAY and best_test is not None:
            by_arm[TODAY_BEST] = float(best_test[named].mean())
    return by_arm | {"oracle": float(test[drawn].max(1).mean())}


def simulate(
    judges: Sequence[Arms],
    test: Floats,
    best_test: Floats | None,
    n: int,
    *,
    studies: int,
    pools: int = POOLS,
    seed: int = 0,
    against: str = TODAY,
) -> dict[str, Outcome]:
    """Each arm's outcome over the same studies of `n` configurations; `against` is the arm that gains are over."""
    rng = np.random.default_rng([seed, n])
    size = len(test)
    found = scores_of(judges, test, best_test, draws(rng, np.ones(size, np.int64), studies, n))
    samples = [
        scores_of(judges, test, best_test, draws(rng, resampled(rng, size, n), studies, n)) for _ in range(pools)
    ]
    oracle = found.pop("oracle")
    return {
        name: Outcome(
            score=100 * score,
            loss=100 * (oracle - score),
            gain=100 * (score - found[against]),
            gains=np.array([100 * (each[name] - each[against]) for each in samples]),
        )
        for name, score in found.items()
    }
