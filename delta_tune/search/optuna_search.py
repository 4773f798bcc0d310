"""Optuna behind Ray Tune: which configuration comes next, and what Optuna learns from each trial's end."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import BaseStorage
from optuna.trial import TrialState
from ray.tune.search import Searcher

from delta_tune.cluster.gpu_sharing import doubled_share
from delta_tune.config import METRICS, Metric, Sampler
from delta_tune.search.messages import RUNS_AGAIN, TrialAssignment, TrialOutcome, reported_epochs
from delta_tune.search.optuna_storage import create_study, remove_stale_studies
from delta_tune.search.samplers import make_sampler, space_for
from delta_tune.spaces.space import Answer, Proposal, Space
from delta_tune.spaces.validation import CheckedSpace

INFEASIBLE = "trains"
"""Name of the constraint that diverged and failed configurations violate (Optuna ranks them last and learns)."""
NUMBER = "number"
"""User attribute of Optuna's trials: the study's own number of the trial."""
LOST = "lost"
"""State of a trial that failed through no fault of its configuration."""


@dataclass(frozen=True, kw_only=True)
class Unfinished:
    """A trial to run again under its number, such as one that an earlier session left running."""

    number: int
    params: dict[str, Any]
    values: dict[int, float]
    """Epoch → metric, for the finished epochs."""


@dataclass(kw_only=True)
class _Running:
    """A trial that was proposed and has not ended."""

    number: int
    params: dict[str, Any]
    gpus: float
    study: optuna.Study
    trial: optuna.Trial
    values: dict[int, float] = field(default_factory=dict)
    """Epoch → metric, as in the tables; Optuna has the first that was reported."""

    def report(self, epoch: int, value: float) -> None:
        """Give Optuna the metric of an epoch."""
        if epoch not in self.values:  # an epoch is repeated if the worker died after it
            self.trial.report(value, epoch)
        self.values[epoch] = value


class OptunaSearcher(Searcher):  # type: ignore[misc]
    """Proposes a study's trials: unfinished ones, the library default, START, then what Optuna samples.

    If the space balances a hyperparameter, its choices take turns and each has an Optuna study of its own: one method's
    best learning rate says little about another's, and each gets the same number of trials.

    Optuna is told how trials really ended: those that a rung stopped are PRUNED with all their intermediate values,
    diverged and failed configurations violate a constraint, FAIL is left to causes outside the configuration, the step
    is the epoch and the final value the best epoch's.
    """

    def __init__(
        self,
        checked: CheckedSpace,
        *,
        metric: Metric,
        sampler: Sampler,
        seed: int,
        max_epochs: int,
        num_trials: int,
        on_proposal: Callable[[int, Proposal], None],
        name: str = "study",
        storage: BaseStorage | None = None,
        study_id: str | None = None,
        first: int = 0,
    ) -> None:
        super().__init__(metric=metric, mode=METRICS[metric])
        self.checked = checked = space_for(sampler, checked)
        space, balance = checked.space, checked.space.balance
        self._choices: tuple[Any, ...] = (None,) if balance is None else checked.choices
        self._spaces: dict[Any, Space] = {}
        self._points: dict[Any, deque[dict[str, Any]]] = {}
        self.studies: dict[Any, optuna.Study] = {}
        """Optuna's, by choice of the balanced hyperparameter; the key is None if the space balances none."""
        names = {choice: name if balance is None else f"{name}-{choice}" for choice in self._choices}
        if storage is not None:
            remove_stale_studies(storage, names.values(), study_id)
        for choice in self._choices:
            self._spaces[choice] = space if balance is None else space.with_fixed(**{balance: choice})
            self._points[choice] = deque(
                {k: v for k, v in point.items() if k != balance}
                for point in checked.points
                if balance is None or point.get(balance, choice) == choice
            )
            self.studies[choice] = create_study(
                storage,
                names[choice],
                study_id,
                direction="maximize" if self.mode == "max" else "minimize",
                sampler=make_sampler(sampler, seed, 0),
                pruner=optuna.pruners.NopPruner(),  # ASHA stops trials, in Tune
            )
        self._sampler, self._seed, self._max_epochs = sampler, seed, max_epochs
        self._first, self._end, self._on_proposal = first, first + num_trials, on_proposal
        self.gpus_per_trial = 0.0
        """GPUs per trial when it first runs."""
        self._gpus_of: dict[int, float] = {}
        """GPUs of trials that ran out of memory."""
        self._choice_of: dict[int, Any] = {}
        self._had: Counter[Any] = Counter()
        self._running: dict[str, _Running] = {}
        self._unfinished: deque[Unfinished] = deque()
        self._next = first

    def restore_trials(
        self,
        finished: Iterable[tuple[int, dict[str, Any], str, dict[int, float]]],
        unfinished: Iterable[Unfinished],
        choice_of: Mapping[int, Any] | None = None,
    ) -> None:
        """Continue where an earlier session stopped.

        Args:
            finished: number, coordinates, state (as in `trials.parquet`, or `LOST`) and epoch → metric of each trial
                that ended.
            unfinished: trials to run first.
            choice_of: each trial's choice of the balanced hyperparameter, if they did not take turns from the start.
        """
        finished, unfinished = list(finished), list(unfinished)
        self._choice_of.update(choice_of or {})
        self._had = Counter(self._choice_of.values())
        numbers = [number for number, *_ in finished] + [trial.number for trial in unfinished]
        self._next = max(numbers, default=self._first - 1) + 1
        for number in range(self._first, self._next):
            self._choice(number)
        for number, params, state, values in finished:
            self._add_finished(number, params, state, values)
        for trial in unfinished:
            self.run_again(trial)
        for number in sorted(numbers):
            if self._points[self._choice(number)]:
                self._points[self._choice(number)].popleft()

    def run_again(self, trial: Unfinished) -> None:
        """Propose this trial before new ones."""
        self._unfinished.append(trial)

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The Tune configuration of the next trial, or Tune's signal that there are no more."""
        values: dict[int, float] = {}
        point: dict[str, Any] | None
        if self._unfinished:
            left = self._unfinished.popleft()
            number, point, values = left.number, left.params, left.values
        elif self._next >= self._end:
            # A trial on a GPU may run again later, with a larger share or on another node
            on_gpus = any(running.gpus > 0 for running in self._running.values())
            return None if on_gpus else str(Searcher.FINISHED)
        else:
            number = self._next
            self._next += 1
            points = self._points[self._choice(number)]
            point = points.popleft() if points else None
        trial, proposal = self._ask(number, point)
        gpus = self._gpus_of.get(number, self.gpus_per_trial)
        study = self.studies[self._choice(number)]
        running = _Running(number=number, params=proposal.params, gpus=gpus, study=study, trial=trial)
        for epoch, value in values.items():
            running.report(epoch, value)
        self._running[trial_id] = running
        self._on_proposal(number, proposal)
        return TrialAssignment(number=number, gpus=gpus, hyperparameters=proposal.config.record()).to_config()

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Called by Tune after a report that does not end the trial."""
        for row in reported_epochs(result):
            self._running[trial_id].report(row["epoch"], row[self.metric])

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Called by Tune when a trial ends; only this call has the last result."""
        running = self._running.pop(trial_id)
        study, trial = running.study, running.trial
        outcome = TrialOutcome.from_result(result or {})
        for row in reported_epochs(result) if result else ():
            running.report(row["epoch"], row[self.metric])
        if outcome is not None and outcome.kind in RUNS_AGAIN:
            if outcome.kind == "out of memory":
                self._gpus_of[running.number] = doubled_share(running.gpus)
            self.run_again(Unfinished(number=running.number, params=running.params, values=running.values))
            error = True  # to Optuna: no fault of the configuration
        if error or not result:
            study.tell(trial, state=TrialState.FAIL)
        elif outcome is not None:
            trial.set_constraint(INFEASIBLE, 1.0)
            study.tell(trial, state=TrialState.PRUNED)
        elif result["epoch"] >= self._max_epochs:
            study.tell(trial, self._best(running.values))
        else:
            study.tell(trial, state=TrialState.PRUNED)

    def __getstate__(self) -> dict[str, Any]:
        """Empty: Tune pickles its settings at the start of a run, but a resume uses the study's tables."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Does nothing: a resumed study is rebuilt from its tables."""

    def restore(self, checkpoint_path: str) -> None:
        """Does nothing, like `save`."""

    def _ask(self, number: int, point: Mapping[str, Any] | None) -> tuple[optuna.Trial, Proposal]:
        """Optuna's trial and the configuration of trial `number`, using the coordinates that `point` gives."""
        study = self.studies[self._choice(number)]
        study.sampler = make_sampler(self._sampler, self._seed, number - self._first)
        if point is not None:
            study.enqueue_trial(dict(point))
        trial = study.ask()
        proposal = self._spaces[self._choice(number)].propose(optuna_answer(trial))
        trial.set_user_attr(NUMBER, number)
        return trial, proposal

    def _add_finished(self, number: int, params: Mapping[str, Any], state: str, values: Mapping[int, float]) -> None:
        """Tell Optuna of a trial that ended in an earlier session; the arguments are those of `restore_trials`."""
        proposal = self._spaces[self._choice(number)].propose(lambda name, _: params[name])
        self.studies[self._choice(number)].add_trial(
            optuna.trial.create_trial(
                state={"completed": TrialState.COMPLETE, LOST: TrialState.FAIL}.get(state, TrialState.PRUNED),
                value=self._best(values) if state == "completed" else None,
                params=proposal.params,
                distributions=proposal.distributions,
                intermediate_values=dict(values),
                constraints={INFEASIBLE: 1.0} if state in ("diverged", "failed") else None,
                user_attrs={NUMBER: number},
            )
        )

    def _best(self, values: Mapping[int, float]) -> float:
        return max(values.values()) if self.mode == "max" else min(values.values())

    def _choice(self, number: int) -> Any:
        """The balanced choice of a trial; a new trial gets the choice with the fewest trials so far."""
        if number not in self._choice_of:
            self._choice_of[number] = min(self._choices, key=lambda choice: self._had[choice])
            self._had[self._choice_of[number]] += 1
        return self._choice_of[number]


def optuna_answer(trial: Any) -> Answer:
    """Answers from an Optuna trial's public `suggest_…` methods."""

    def answer(name: str, distribution: BaseDistribution) -> Any:
        if isinstance(distribution, CategoricalDistribution):
            return trial.suggest_categorical(name, distribution.choices)
        if isinstance(distribution, IntDistribution):
            return trial.suggest_int(
                name, distribution.low, distribution.high, step=distribution.step, log=distribution.log
            )
        assert isinstance(distribution, FloatDistribution)
        return trial.suggest_float(
            name, distribution.low, distribution.high, step=distribution.step, log=distribution.log
        )

    return answer
