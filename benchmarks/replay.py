"""A study replayed on recorded learning curves: the real searchers and schedulers, with trials that cost nothing.

Time is counted in epochs and every epoch takes as long as any other; of several that end at the same time the order is
drawn. What a searcher proposes is replaced by the nearest recorded configuration that the replay has not used, and the
searcher is told the coordinates of that one: it is asked a second time, with them as a starting point, after Optuna has
been told that the first trial FAILed, which its samplers ignore. Told the recorded score at its own coordinates
it would learn from pairs that no real study ever sees.
A configuration that diverged ends after its last recorded epoch, for every method.
"""

from __future__ import annotations

import copy
import heapq
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, Protocol

import numpy as np
import optuna
import pyarrow.parquet as pq
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from ray.tune.schedulers import AsyncHyperBandScheduler, TrialScheduler
from ray.tune.search.optuna import OptunaSearch

from delta_tune.config import Metric
from delta_tune.search.asha import AshaScheduler
from delta_tune.search.messages import TrialAssignment, TrialOutcome
from delta_tune.search.optuna_search import OptunaSearcher, Unfinished
from delta_tune.spaces.space import Proposal, Space
from delta_tune.spaces.validation import CheckedSpace, random_answers


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One recorded configuration."""

    params: dict[str, Any]
    rows: tuple[dict[str, Any], ...]
    """Of each epoch: `epoch`, `val_accuracy`, `val_loss`."""
    final: float
    """Mean test accuracy of the last three epochs; 0 where it diverged."""
    diverged: bool


def read_curves(file: Path) -> tuple[Curve, ...]:
    """The configurations of a table of `record_curves.py`, by number."""
    by_number: dict[int, list[dict[str, Any]]] = {}
    for row in pq.ParquetFile(file).read().to_pylist():
        by_number.setdefault(row["number"], []).append(row)
    curves = []
    for _, rows in sorted(by_number.items()):
        rows.sort(key=lambda row: row["epoch"])
        tests = [row["test_accuracy"] for row in rows if row["test_accuracy"] is not None]
        diverged = rows[0]["state"] != "completed"
        told = tuple({k: row[k] for k in ("epoch", "val_accuracy", "val_loss")} for row in rows if row["epoch"] > 0)
        final = 0.0 if diverged else float(np.mean(tests))
        curves.append(Curve(params=json.loads(rows[0]["params"]), rows=told, final=final, diverged=diverged))
    return tuple(curves)


class Nearest:
    """The nearest configuration that is not used yet.

    A categorical that differs counts 1, a number its difference as a part of its range (in the logarithm where the
    space has it so), a hyperparameter that only one of the two has 1.
    """

    def __init__(self, space: Space, params: Sequence[Mapping[str, Any]]) -> None:
        self._space = space
        coordinates = [self._coordinates(each) for each in params]
        self._names = sorted({name for each in coordinates for name in each})
        self._categorical = np.array([any(isinstance(c.get(n), str) for c in coordinates) for n in self._names])
        self._codes: dict[Any, float] = {}
        self._table = np.array([self._row(each) for each in coordinates])
        self.free = np.ones(len(params), bool)

    def take(self, params: Mapping[str, Any]) -> int:
        """Index of the nearest free configuration, which is free no more; of equal ones the first."""
        wanted = self._row(self._coordinates(params))
        gap = np.abs(self._table - wanted)
        gap[:, self._categorical] = gap[:, self._categorical] != 0  # NaN, where one lacks it, is not 0 either
        lacks = np.isnan(self._table), np.isnan(wanted)
        gap = np.where(lacks[0] & lacks[1], 0.0, np.where(lacks[0] | lacks[1], 1.0, gap))
        index = int(np.argmin(np.where(self.free, gap.sum(1), np.inf)))
        self.free[index] = False
        return index

    def copy(self, free: NDArray[np.bool_] | None = None) -> Nearest:
        """The same configurations, all of them free or those given."""
        twin = copy.copy(self)
        twin.free = np.ones_like(self.free) if free is None else free.copy()
        return twin

    def _coordinates(self, params: Mapping[str, Any]) -> dict[str, Any]:
        distributions = proposal_at(self._space, params).distributions
        return {name: unit(each, params[name]) for name, each in distributions.items()}

    def _row(self, coordinates: Mapping[str, Any]) -> list[float]:
        return [
            self._codes.setdefault(value, float(len(self._codes))) if isinstance(value, str) else value
            for value in (coordinates.get(name, math.nan) for name in self._names)
        ]


def proposal_at(space: Space, params: Mapping[str, Any]) -> Proposal:
    """What the space gives at these coordinates."""
    return space.propose(lambda name, _: params[name])


def unit(distribution: BaseDistribution, value: Any) -> float | str:
    """A number's place in its range, from 0 to 1; a category's text."""
    if isinstance(distribution, CategoricalDistribution):
        return repr(value)
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    low, high = float(distribution.low), float(distribution.high)
    if distribution.log:
        return math.log(value / low) / math.log(high / low)
    return float((value - low) / (high - low))


class Method(Protocol):
    """A way to search, driven as Tune's controller drives its searcher and scheduler."""

    def ask(self, trial_id: str) -> dict[str, Any]:
        """Coordinates of the next trial."""

    def run(self, trial_id: str, params: dict[str, Any]) -> None:
        """These recorded coordinates are run in their place."""

    def goes_on(self, trial_id: str, row: Mapping[str, Any]) -> bool:
        """Whether the trial goes on after this epoch."""

    def diverged(self, trial_id: str, row: Mapping[str, Any]) -> None:
        """The trial is over; the row is that of its last finite epoch."""


class RandomSearch:
    """Uniform draws, at full length or with Tune's ASHA as it comes."""

    def __init__(self, space: Space, seed: int, scheduler: AsyncHyperBandScheduler | None) -> None:
        self._space, self._scheduler = space, scheduler
        self._answer = random_answers(np.random.default_rng(seed))
        self._trials: dict[str, SimpleNamespace] = {}

    def ask(self, trial_id: str) -> dict[str, Any]:
        return self._space.propose(self._answer).params

    def run(self, trial_id: str, params: dict[str, Any]) -> None:
        self._trials[trial_id] = SimpleNamespace(trial_id=trial_id)
        if self._scheduler:
            self._scheduler.on_trial_add(None, self._trials[trial_id])

    def goes_on(self, trial_id: str, row: Mapping[str, Any]) -> bool:
        if not self._scheduler:
            return True
        result = {"training_iteration": row["epoch"], **row}
        return bool(self._scheduler.on_trial_result(None, self._trials[trial_id], result) != TrialScheduler.STOP)

    def diverged(self, trial_id: str, row: Mapping[str, Any]) -> None:
        pass


def usual_asha(max_epochs: int) -> AsyncHyperBandScheduler:
    """ASHA as people use it: Tune's defaults, which stop after one epoch and keep a quarter."""
    return AsyncHyperBandScheduler(time_attr="training_iteration", metric="val_accuracy", mode="max", max_t=max_epochs)


class UsualSearch:
    """OptunaSearch and ASHA as people use them: the space function, the metric, the mode, and Tune's defaults."""

    def __init__(self, space: Space, seed: int, max_epochs: int) -> None:
        self._search = OptunaSearch(space=space.function, metric="val_accuracy", mode="max", seed=seed)
        self._scheduler = usual_asha(max_epochs)
        self._trials: dict[str, SimpleNamespace] = {}

    def ask(self, trial_id: str) -> dict[str, Any]:
        self._search.suggest(trial_id)
        return dict(self._search._ot_trials[trial_id].params)

    def run(self, trial_id: str, params: dict[str, Any]) -> None:
        study = self._search._ot_study
        study.tell(self._search._ot_trials.pop(trial_id), state=optuna.trial.TrialState.FAIL)
        study.enqueue_trial(params)
        self._search.suggest(trial_id)
        self._trials[trial_id] = SimpleNamespace(trial_id=trial_id)
        self._scheduler.on_trial_add(None, self._trials[trial_id])

    def goes_on(self, trial_id: str, row: Mapping[str, Any]) -> bool:
        result = {"training_iteration": row["epoch"], **row}
        if self._scheduler.on_trial_result(None, self._trials[trial_id], result) != TrialScheduler.STOP:
            self._search.on_trial_result(trial_id, result)
            return True
        self._scheduler.on_trial_complete(None, self._trials[trial_id], result)
        self._search.on_trial_complete(trial_id, result)
        return False

    def diverged(self, trial_id: str, row: Mapping[str, Any]) -> None:
        self._search.on_trial_complete(trial_id, error=True)  # a script that ends with an exception


@dataclass(frozen=True, kw_only=True)
class Ours:
    """How our search is set; what the defaults of a study are is to be decided from these."""

    grace_period: int = 1
    reduction_factor: float = 4
    rung_metric: Metric = "val_accuracy"
    by_method: bool = False
    """Rungs for each regularizer, or one set for all."""
    num_val: int | None = 170
    """Validation photos of the recording: how far below the cut a trial still goes on; None: not at all."""
    sampler: Literal["tpe", "random"] = "tpe"
    starts: bool = True
    balanced: bool = False
    schedule: str | None = None
    """The only one that is searched."""


class OurSearch:
    """`OptunaSearcher` and `AshaScheduler`."""

    def __init__(self, checked: CheckedSpace, seed: int, max_epochs: int, ours: Ours) -> None:
        self._last: tuple[int, Proposal] | None = None
        self._fixed, self._ours = checked.space.fixed, ours
        self._search = OptunaSearcher(
            checked,
            metric="val_accuracy",
            sampler=ours.sampler,
            seed=seed,
            max_epochs=max_epochs,
            num_trials=10**6,
            on_proposal=self._proposed,
        )
        self._scheduler = AshaScheduler(
            metric=ours.rung_metric,
            max_epochs=max_epochs,
            grace_period=ours.grace_period,
            reduction_factor=ours.reduction_factor,
            num_val=ours.num_val,
            group_of=(lambda config: config.regularizer) if ours.by_method else None,
        )
        self._trials: dict[str, SimpleNamespace] = {}

    def _proposed(self, number: int, proposal: Proposal) -> None:
        self._last = number, proposal

    def ask(self, trial_id: str) -> dict[str, Any]:
        self._search.suggest(trial_id)
        assert self._last is not None
        proposal = self._last[1]  # a balanced regularizer is fixed within each of its studies
        return {**self._fixed, "regularizer": proposal.config.regularizer, **proposal.params}

    def run(self, trial_id: str, params: dict[str, Any]) -> None:
        assert self._last is not None
        number, proposal = self._last
        # A balanced method's own study has no place for a configuration of another.
        if not self._ours.balanced or params["regularizer"] == proposal.config.regularizer:
            self._search.on_trial_complete(trial_id, error=True)
            self._search.run_again(Unfinished(number=number, params=params, values={}))
            self._search.suggest(trial_id)
        assignment = TrialAssignment(number=number, hyperparameters={"regularizer": params["regularizer"]})
        self._trials[trial_id] = SimpleNamespace(trial_id=trial_id, config=assignment.to_config())

    def goes_on(self, trial_id: str, row: Mapping[str, Any]) -> bool:
        if self._scheduler.on_trial_result(None, self._trials[trial_id], dict(row)) != TrialScheduler.STOP:
            self._search.on_trial_result(trial_id, dict(row))
            return True
        self._search.on_trial_complete(trial_id, dict(row))
        return False

    def diverged(self, trial_id: str, row: Mapping[str, Any]) -> None:
        self._search.on_trial_complete(trial_id, TrialOutcome(kind="diverged", error="recorded").to_result(row))


@dataclass(frozen=True, kw_only=True)
class Finish:
    """A trial that ran to its last epoch."""

    index: int
    epochs: int
    """Trained until then, over all slots."""
    time: int
    """In epochs."""


@dataclass(frozen=True, kw_only=True)
class Replay:
    """What a replayed study did."""

    finishes: tuple[Finish, ...]
    started: tuple[int, ...]
    """Indices of the configurations, in the order in which they were begun."""
    epochs: int
    most_at_once: int


def replay(
    method: Method,
    curves: Sequence[Curve],
    nearest: Nearest,
    slots: int,
    seed: int,
    enough: Callable[[int, Sequence[Finish]], bool],
) -> Replay:
    """Run a study, `slots` trials at a time, until it is `enough` (epochs, finishes) or no configuration is free."""
    rng = np.random.default_rng([1, seed])
    running: list[tuple[int, float, str, int, int]] = []  # ends at, order among equals, id, index, epochs done then
    finishes: list[Finish] = []
    started: list[int] = []
    epochs = most = 0

    def start(now: int) -> None:
        while nearest.free.any():
            trial_id = str(len(started))
            index = nearest.take(method.ask(trial_id))
            started.append(index)
            method.run(trial_id, curves[index].params)
            if curves[index].rows:
                heapq.heappush(running, (now + 1, rng.random(), trial_id, index, 1))
                return
            method.diverged(trial_id, {"epoch": 0, "val_accuracy": math.nan, "val_loss": math.nan})

    for _ in range(slots):
        start(0)
    while running:
        most = max(most, len(running))
        now, _, trial_id, index, done = heapq.heappop(running)
        epochs += 1
        curve = curves[index]
        last = done == len(curve.rows)
        goes_on = method.goes_on(trial_id, curve.rows[done - 1])
        if goes_on and last and curve.diverged:
            method.diverged(trial_id, curve.rows[done - 1])
        if last and not curve.diverged:
            finishes.append(Finish(index=index, epochs=epochs, time=now))
        if enough(epochs, finishes):
            break
        if goes_on and not last:
            heapq.heappush(running, (now + 1, rng.random(), trial_id, index, done + 1))
        else:
            start(now)
    return Replay(finishes=tuple(finishes), started=tuple(started), epochs=epochs, most_at_once=most)
