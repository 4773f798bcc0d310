"""Optuna behind Ray Tune: which configuration comes next, and what Optuna is told of each trial's end."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import BaseStorage
from optuna.trial import TrialState
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from delta_tune.cluster.gpu_sharing import doubled_share
from delta_tune.config import METRICS, Metric, Sampler
from delta_tune.search.messages import GPUS, NUMBER, OUT_OF_MEMORY, OUTCOME, TASK
from delta_tune.search.optuna_storage import remove_stale_studies, silence_optuna
from delta_tune.search.samplers import make_sampler
from delta_tune.spaces.space import Answer, Proposal, Space
from delta_tune.spaces.validation import CheckedSpace

INFEASIBLE = "trains"
"""Name of the constraint that diverged and failed configurations violate (Optuna ranks them last and learns)."""


LOST = "lost"
"""State of a trial that failed through no fault of its configuration."""


class TruthfulOptunaSearch(OptunaSearch):  # type: ignore[misc]
    """OptunaSearch that is told how trials really ended.

    As it comes, early-stopped trials are told as complete with their low-fidelity score, non-finite ones stay running
    for ever, and the step is Tune's iteration. Here stopped trials are PRUNED with all their intermediate values,
    diverged and failed configurations violate a constraint, FAIL is left to causes outside the configuration, the step
    is the epoch and the final value the best epoch's.
    """

    def __init__(
        self,
        space: Space,
        *,
        metric: Metric,
        sampler: Sampler,
        seed: int,
        max_epochs: int,
        name: str | None = None,
        storage: BaseStorage | None = None,
    ) -> None:
        self.proposal: Proposal | None = None
        self._searched, self._kind, self._seed_of_study, self._max_epochs = space, sampler, seed, max_epochs
        self._values: dict[str, dict[int, float]] = {}
        with silence_optuna():
            super().__init__(
                space=self._define,
                metric=metric,
                mode=METRICS[metric],
                sampler=make_sampler(sampler, seed, 0),
                study_name=name,
                storage=storage,
            )

    def suggest_numbered(
        self, trial_id: str, number: int, point: Mapping[str, Any] | None, values: Mapping[int, float]
    ) -> Proposal:
        """The configuration of trial `number`, with the coordinates of `point` where it has them.

        `values` (epoch → metric) is what the trial reported in an earlier session.
        """
        self._ot_study.sampler = make_sampler(self._kind, self._seed_of_study, number)
        if point is not None:
            self._ot_study.enqueue_trial(dict(point))
        self.suggest(trial_id)
        self._ot_trials[trial_id].set_user_attr(NUMBER, number)
        self._values[trial_id] = {}
        for epoch, value in values.items():
            self._report(trial_id, epoch, value)
        assert self.proposal is not None
        return self.proposal

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Tune's word of an epoch that did not end its trial."""
        if OUTCOME not in result:
            self._report(trial_id, result["epoch"], result[self.metric])

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tune's word that a trial is over; the result that ended it comes here alone."""
        trial, values = self._ot_trials.pop(trial_id), self._values[trial_id]
        if error or not result:
            self._ot_study.tell(trial, state=TrialState.FAIL)
        elif OUTCOME in result:
            trial.set_constraint(INFEASIBLE, 1.0)
            self._ot_study.tell(trial, state=TrialState.PRUNED)
        else:
            self._report(trial_id, result["epoch"], result[self.metric], trial)
            if result["epoch"] >= self._max_epochs:
                self._ot_study.tell(trial, self._best(values))
            else:
                self._ot_study.tell(trial, state=TrialState.PRUNED)
        del self._values[trial_id]

    def add_finished(self, number: int, proposal: Proposal, state: str, values: Mapping[int, float]) -> None:
        """Tell Optuna of a trial that ended in an earlier session.

        Args:
            number: the study's own.
            proposal: the trial's configuration, replayed from the tables.
            state: as in `trials.parquet`, or `LOST`.
            values: epoch → the metric.
        """
        bad = state in ("diverged", "failed")
        complete = state == "completed"
        self._ot_study.add_trial(
            optuna.trial.create_trial(
                state={"completed": TrialState.COMPLETE, LOST: TrialState.FAIL}.get(state, TrialState.PRUNED),
                value=self._best(values) if complete else None,
                params=proposal.params,
                distributions=proposal.distributions,
                intermediate_values=dict(values),
                constraints={INFEASIBLE: 1.0} if bad else None,
                user_attrs={NUMBER: number},
            )
        )

    def replay(self, params: Mapping[str, Any]) -> Proposal:
        """The configuration at these coordinates."""
        return self._searched.propose(lambda name, _: params[name])

    def _report(self, trial_id: str, epoch: int, value: float, trial: optuna.Trial | None = None) -> None:
        if epoch not in self._values[trial_id]:  # it comes again where a worker died after it
            (trial or self._ot_trials[trial_id]).report(value, epoch)
            self._values[trial_id][epoch] = value

    def _best(self, values: Mapping[int, float]) -> float:
        return max(values.values()) if self.mode == "max" else min(values.values())

    def _define(self, trial: Any) -> dict[str, Any]:
        self.proposal = self._searched.propose(optuna_answer(trial))
        return {}


@dataclass(frozen=True, kw_only=True)
class Unfinished:
    """A trial that an earlier session left running."""

    number: int
    params: dict[str, Any]
    values: dict[int, float]
    """Epoch → metric, of the epochs that are done."""


class StudySearch(Searcher):  # type: ignore[misc]
    """The order of a study's trials: unfinished ones, the library default, START, then sampled.

    Where the space balances a hyperparameter, its choices take turns and each has an Optuna study of its own: what is
    learnt of one method's learning rate says little of another's, and each gets the same number of trials.
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
        resume: bool = False,
    ) -> None:
        super().__init__(metric=metric, mode=METRICS[metric])
        self.checked = checked
        grid = sampler == "grid"
        space, balance = checked.space, None if grid else checked.space.balance
        self._choices: tuple[Any, ...] = (None,) if balance is None else checked.choices
        self._points: dict[Any, deque[dict[str, Any]]] = {}
        self._searches: dict[Any, TruthfulOptunaSearch] = {}
        names = {choice: name if balance is None else f"{name}-{choice}" for choice in self._choices}
        if storage is not None:
            remove_stale_studies(storage, names.values(), resume=resume)
        for choice in self._choices:
            own = space if balance is None else space.with_fixed(**{balance: choice})
            self._searches[choice] = TruthfulOptunaSearch(
                own,
                metric=metric,
                sampler=sampler,
                seed=seed,
                max_epochs=max_epochs,
                name=names[choice],
                storage=storage,
            )
            self._points[choice] = deque(
                {k: v for k, v in point.items() if k != balance}
                for point in (checked.grid if grid else checked.points)
                if balance is None or point.get(balance, choice) == choice
            )
        self._balance, self._num_trials, self._on_proposal = balance, num_trials, on_proposal
        self.gpus_per_trial = 0.0
        """Each trial's part of a GPU, the first time it runs."""
        self._choice_of: dict[int, Any] = {}
        self._had: Counter[Any] = Counter()
        self._running: dict[str, tuple[Unfinished, float]] = {}
        self._more: dict[int, float] = {}
        self._unfinished: deque[Unfinished] = deque()
        self._next = 0
        self._of_trial: dict[str, TruthfulOptunaSearch] = {}

    def restore_trials(
        self,
        finished: Iterable[tuple[int, dict[str, Any], str, dict[int, float]]],
        unfinished: Iterable[Unfinished],
        choice_of: Mapping[int, Any] | None = None,
    ) -> None:
        """Take up where an earlier session stopped.

        Args:
            finished: number, coordinates, state and epoch → metric of each trial that ended.
            unfinished: what is to be run first.
            choice_of: each trial's choice of the balanced hyperparameter, where they did not take turns from the first.
        """
        finished, unfinished = list(finished), list(unfinished)
        self._choice_of.update(choice_of or {})
        self._had = Counter(self._choice_of.values())
        for number in range(1 + max([n for n, *_ in finished] + [u.number for u in unfinished], default=-1)):
            self._choice(number)
        numbers = []
        for number, params, state, values in finished:
            search = self._searches[self._choice(number)]
            search.add_finished(number, search.replay(params), state, values)
            numbers.append(number)
        self._unfinished.extend(unfinished)
        numbers += [u.number for u in self._unfinished]
        self._next = max(numbers, default=-1) + 1
        for number in sorted(numbers):
            if self._points[self._choice(number)]:
                self._points[self._choice(number)].popleft()

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The Tune configuration of the next trial, or Tune's word for no more."""
        values: dict[int, float] = {}
        if self._unfinished:
            left = self._unfinished.popleft()
            number, point, values = left.number, left.params, left.values
        elif self._next >= self._num_trials:
            # A trial that shares a GPU may come back for more of it
            shared = any(0 < gpus < 1 for _, gpus in self._running.values())
            return None if shared else str(Searcher.FINISHED)
        else:
            number = self._next
            self._next += 1
            queue = self._points[self._choice(number)]
            point = queue.popleft() if queue else None  # type: ignore[assignment]
        search = self._searches[self._choice(number)]
        proposal = search.suggest_numbered(trial_id, number, point, values)
        self._of_trial[trial_id] = search
        gpus = self._more.get(number, self.gpus_per_trial)
        self._running[trial_id] = Unfinished(number=number, params=proposal.params, values=dict(values)), gpus
        self._on_proposal(number, proposal)
        return {NUMBER: number, GPUS: gpus, TASK: 0, **proposal.config.record()}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Handed to the trial's own search."""
        self._of_trial[trial_id].on_trial_result(trial_id, result)
        if OUTCOME not in result:
            self._running[trial_id][0].values[result["epoch"]] = result[self.metric]

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Handed to the trial's own search; a trial whose part of a GPU was too small is to run again with more."""
        trial, gpus = self._running.pop(trial_id)
        if result and result.get(OUTCOME) == OUT_OF_MEMORY:
            self._more[trial.number] = doubled_share(gpus)
            self._unfinished.append(trial)
            error = True  # to Optuna: no fault of the configuration
        self._of_trial.pop(trial_id).on_trial_complete(trial_id, result, error)

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its settings at the start of a run; ours has nothing to give it, see `save`."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Nothing: a resumed study is rebuilt from its tables, which needs no pickle."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing, as `save`."""

    def _choice(self, number: int) -> Any:
        """The choice of a trial; a new one gets that which has had the fewest so far, so that they take turns."""
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
