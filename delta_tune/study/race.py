"""Which configuration the final runs are of: the best few train on the same folds, as long as it is not clear."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from delta_tune.config import FIRST_MODEL, METRICS, Metric, TrialConfig
from delta_tune.results.image_scores import CLASS_METRICS, Scores
from delta_tune.results.statistics import standard_error
from delta_tune.results.tables import StudyTables

MOST_RACERS = 3
ROUNDS = 2
"""Folds on which all racers run, unless the data tell them apart before."""
CLEAR = 1.96
"""Standard errors by which a racer must be behind the leader to be dropped: 95 % of a normal distribution."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FoldRun:
    """One run: a trial's configuration, trained on all but one fold."""

    trial: int
    fold: int


class Race:
    """Says which run comes next, and learns how each ended.

    All racers run on the first folds, in rounds. One that is clearly behind the leader on the images that both have
    predicted, image by image, runs no further. Then the leader alone runs on the folds that are left.

    Args:
        racers: numbers of trials, the favourite first.
        folds: of each the leader's run is wanted.
    """

    def __init__(self, racers: Sequence[int], folds: int) -> None:
        self.racers, self._folds = tuple(racers), folds
        self._rounds = min(ROUNDS, folds) if len(racers) > 1 else 0
        self.alive = list(racers)
        self.scores: dict[FoldRun, Scores | None] = {}
        """Of each run that ended: a score of each image of its fold; None if it failed."""
        self.begun: set[FoldRun] = set()
        """Runs that `upcoming` returned."""

    def upcoming(self) -> FoldRun | None:
        """The next run; None if there is none, or none before another has ended."""
        for fold in range(self._rounds):
            for trial in self.alive:
                if (run := FoldRun(trial=trial, fold=fold)) not in self.begun:
                    self.begun.add(run)
                    return run
        if any(run.fold < self._rounds and run.trial in self.alive for run in self.begun - self.scores.keys()):
            return None  # another may lead after it
        for fold in range(self._folds):
            if (run := FoldRun(trial=self.leader, fold=fold)) not in self.begun:
                self.begun.add(run)
                return run
        return None

    def ended(self, run: FoldRun, scores: Scores | None) -> None:
        """Note how a run ended, and drop who is clearly behind.

        Args:
            run: one that `upcoming` returned.
            scores: of the images of its fold, higher is better; None if it failed.
        """
        self.scores[run] = scores
        if scores is None:
            self.alive = [trial for trial in self.alive if trial != run.trial] or self.alive
        leader = self.leader
        self.alive = [trial for trial in self.alive if trial == leader or not self._is_behind(trial, leader)]

    @property
    def leader(self) -> int:
        """The best of those that are alive, on the folds that all of them have run; the favourite at first."""
        shared = [fold for fold in range(self._rounds) if all(self._has(trial, fold) for trial in self.alive)]
        if not shared:
            return self.alive[0]
        return max(self.alive, key=lambda trial: float(np.mean(self._of(trial, shared))))  # the first of equal ones

    def compared(self, trial: int, other: int) -> tuple[float, float, int]:
        """Mean difference of two trials' scores, image by image, its standard error, and the number of images."""
        folds = [fold for fold in range(self._folds) if self._has(trial, fold) and self._has(other, fold)]
        if not folds:
            return 0.0, math.inf, 0
        gap = self._of(trial, folds) - self._of(other, folds)
        error = float(np.std(gap, ddof=1) / math.sqrt(len(gap))) if len(gap) > 1 else math.inf
        return float(np.mean(gap)), error, len(gap)

    def _is_behind(self, trial: int, leader: int) -> bool:
        gap, error, images = self.compared(trial, leader)
        return images > 0 and gap < 0 and gap + CLEAR * error < 0

    def _has(self, trial: int, fold: int) -> bool:
        return self.scores.get(FoldRun(trial=trial, fold=fold)) is not None

    def _of(self, trial: int, folds: Sequence[int]) -> Scores:
        found = [self.scores[FoldRun(trial=trial, fold=fold)] for fold in folds]
        return np.concatenate([scores for scores in found if scores is not None])


def finalists(tables: StudyTables, num_val: int) -> list[int]:
    """The trials that may race, the favourite first, and among them the best of plain L2 as a control.

    They are judged by their last epoch, for that is what a final run ends with. The validation split cannot tell
    those apart whose accuracy is within its standard error of the best one's: of these the one with the lowest loss
    is the favourite (`benchmarks/selection.py`), and the next ones may race. If the metric is a loss, it decides
    alone. If it counts all classes alike, a loss tells only among trials that treat unequal classes like the best one:
    the others aim at other probabilities. The first model is no fine-tuning: it races only if it is the best, and then
    as the favourite.
    """
    rows = {number: tables.epochs[number][-1] for number in tables.ranked()}
    ranked = sorted(rows, key=lambda number: (tables.is_sampled(number), *tables.rank_of(rows[number]), number))
    if not ranked:
        return []
    best, methods = ranked[0], {number: tables.trials[number]["config.regularizer"] for number in ranked}
    close = [
        number
        for number in ranked
        if number == best
        or (methods[number] != FIRST_MODEL and _is_close(tables.metric, rows[best], rows[number], num_val))
    ]
    if methods[best] != FIRST_MODEL:
        aims = {number: _aim(tables.config(number)) if tables.metric in CLASS_METRICS else () for number in close}
        close.sort(key=lambda n: (tables.is_sampled(n), aims[n] != aims[best], rows[n]["val_loss"], n))
    controls = [number for number in (*close, *ranked) if tables.is_baseline(number)][:1]
    chosen = dict.fromkeys([close[0], *controls, *close])
    return sorted(list(chosen)[:MOST_RACERS], key=[*close, *ranked].index)


def _aim(config: TrialConfig) -> tuple[Any, ...]:
    """For which shares of the classes a configuration trains."""
    return config.class_weights, config.sampling, config.logit_adjustment


def _is_close(metric: Metric, best: dict[str, float], other: dict[str, float], num_val: int) -> bool:
    if METRICS[metric] == "min":
        return True
    return best[metric] - other[metric] <= standard_error(best[metric], num_val)


def race_sentences(race: Race, name: Callable[[int], str], metric: Metric) -> list[str]:
    """What the race says of each rival of the leader.

    Args:
        race: that has ended.
        name: returns a trial in words.
        metric: of the study.
    """
    lines, leader = [], race.leader
    for rival in race.racers:
        gap, error, images = race.compared(leader, rival)
        if rival == leader or images < 2:
            continue
        low, high = gap - CLEAR * error, gap + CLEAR * error
        if metric == "val_loss":
            difference = f"loss {-gap:+.3f} [{-high:.3f}, {-low:.3f}]"
        else:
            difference = f"{100 * gap:+.1f} points [{100 * low:.1f}, {100 * high:.1f}]"
        lines.append(
            f"Race: {name(leader)} against {name(rival)} on {images} images that neither was trained on: "
            f"{difference}, {'ahead' if low > 0 else 'not told apart'}."
        )
    return lines
