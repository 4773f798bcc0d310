"""Optuna behind Ray Tune: which configuration comes next, and what Optuna learns from each trial's end."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import BaseStorage
from optuna.trial import TrialState
from ray.tune.search import Searcher

from delta_tune.cluster.gpu_sharing import doubled_share
from delta_tune.config import METRICS, Metric, Sampler, TrialConfig
from delta_tune.results.study_schema import MAX_TRIALS
from delta_tune.search.messages import RUNS_AGAIN, TrialAssignment, TrialOutcome, reported_epochs
from delta_tune.search.optuna_storage import create_study, remove_stale_studies
from delta_tune.search.samplers import make_sampler, space_for
from delta_tune.search.turns import Turns
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


class ComingAttention(Protocol):
    """Attention that may be missing when the first trials start."""

    @property
    def is_under_way(self) -> bool:
        """Whether it is measured while trials run; else after them."""

    @property
    def most_held(self) -> int:
        """How many proposals may wait for it, made without knowing how the trials end that run meanwhile."""

    def has_come(self) -> bool:
        """Whether no trial has to wait any more; called before each proposal."""

    def runs_as(self, number: int, config: TrialConfig) -> TrialConfig:
        """The configuration that a trial runs with which was proposed with `config`, once it need not wait."""


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """What Optuna proposes for a trial."""

    number: int
    trial: optuna.Trial
    proposal: Proposal
    values: dict[int, float]
    """Epoch → metric, for epochs of earlier sessions."""

    @property
    def uses_attention(self) -> bool:
        return self.proposal.config.method.uses_attention


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
    """Proposes a study's trials: unfinished ones, the starting points, then what Optuna samples.

    If the space balances a hyperparameter, its choices take turns and each has an Optuna study of its own: one method's
    best learning rate says little about another's, and each gets the same number of trials. So do several networks.

    Trials that need attention are put aside while it is missing, and those after them go first.

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
        num_trials: int | None,
        on_proposal: Callable[[int, Proposal], None],
        name: str = "study",
        storage: BaseStorage | None = None,
        study_id: str | None = None,
        first: int = 0,
        backbones: Sequence[str] = (),
    ) -> None:
        super().__init__(metric=metric, mode=METRICS[metric])
        self.checked = checked = space_for(sampler, checked)
        self._backbones = tuple(backbones)
        """Labels of the study's networks, in the order of the run's tasks."""
        self._turns = Turns(checked, first, MAX_TRIALS if num_trials is None else first + num_trials)
        self._spaces: dict[Any, Space] = {}
        self.studies: dict[Any, optuna.Study] = {}
        """Optuna's, by what takes turns; the key is None if nothing does."""
        names = {choice: "-".join((name, *map(str, own.values()))) for choice, own in self._turns.values.items()}
        if storage is not None:
            remove_stale_studies(storage, names.values(), study_id)
        for choice, own in self._turns.values.items():
            self._spaces[choice] = checked.space.with_fixed(**own) if own else checked.space
            self.studies[choice] = create_study(
                storage,
                names[choice],
                study_id,
                direction="maximize" if self.mode == "max" else "minimize",
                sampler=make_sampler(sampler, seed, 0),
                pruner=optuna.pruners.NopPruner(),  # ASHA stops trials, in Tune
            )
        self._sampler, self._seed, self._max_epochs = sampler, seed, max_epochs
        self._first, self._on_proposal = first, on_proposal
        self.gpus_per_trial = 0.0
        """GPUs per trial when it first runs."""
        self._gpus_of: dict[int, float] = {}
        """GPUs of trials that ran out of memory."""
        self._running: dict[str, _Running] = {}
        self._unfinished: list[Unfinished] = []
        self.attention: ComingAttention | None = None
        """What trials may have to wait for; None if they have nothing to wait for."""
        self._held: deque[_Asked] = deque()
        """Proposals that wait for attention."""
        self._has_proposed = False

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
        had = {number: params for number, params, *_ in finished} | {each.number: each.params for each in unfinished}
        self._turns.restore(had, choice_of or {})
        for number, params, state, values in finished:
            self._add_finished(number, params, state, values)
        for trial in unfinished:
            self.run_again(trial)

    def run_again(self, trial: Unfinished) -> None:
        """Propose this trial before new ones."""
        self._unfinished.append(trial)

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The Tune configuration of the next trial, or Tune's signal that there are no more."""
        asked = self._next_trial()
        if asked is None:
            # A trial on a GPU may run again later, with a larger share or on another node
            on_gpus = any(running.gpus > 0 for running in self._running.values())
            return None if on_gpus or (self.waits and self._running) else str(Searcher.FINISHED)
        self._has_proposed = True
        number, proposal = asked.number, asked.proposal
        if self.attention is not None:
            config, proposed = self.attention.runs_as(number, proposal.config), proposal.config.regularizer
            params = proposal.params | ({} if config.regularizer == proposed else {"regularizer": proposed})
            proposal = replace(proposal, config=config, params=params)
        gpus = self._gpus_of.get(number, self.gpus_per_trial)
        study = self.studies[self._turns.choice(number)]
        running = _Running(number=number, params=proposal.params, gpus=gpus, study=study, trial=asked.trial)
        for epoch, value in asked.values.items():
            running.report(epoch, value)
        self._running[trial_id] = running
        self._on_proposal(number, proposal)
        backbone = proposal.config.backbone
        assignment = TrialAssignment(
            number=number,
            gpus=gpus,
            task=self._backbones.index(backbone) if backbone in self._backbones else 0,
            hyperparameters=proposal.config.record(),
        )
        return assignment.to_config()

    @property
    def waits(self) -> bool:
        """Whether trials were put aside."""
        return bool(self._unfinished or self._held or self._turns.skipped)

    def _next_trial(self) -> _Asked | None:
        """What runs next; None if nothing is left, or all that is left waits for attention."""
        attention = self.attention is None or self.attention.has_come()
        for left in self._unfinished:
            if attention or not self._proposal(left.number, left.params).config.method.uses_attention:
                self._unfinished.remove(left)
                return self._ask(left.number, left.params, left.values)
        if attention and self._held:
            return self._held.popleft()
        while attention or self._may_go_ahead():
            number = next(self._turns.upcoming(attention=attention, skip=self._may_skip()), None)
            if number is None:
                return None
            asked = self._ask(number, self._turns.point(number))
            if attention or not asked.uses_attention:
                return asked
            self._held.append(asked)
        return None

    def _may_skip(self) -> bool:
        """Whether trials may go before one that waits for attention: one trial, if it is to be measured after that."""
        return self.attention is None or self.attention.is_under_way or not self._has_proposed

    def _may_go_ahead(self) -> bool:
        """Whether another trial may be proposed although some wait for attention."""
        assert self.attention is not None, "nothing waits"
        return len(self._held) < self.attention.most_held and (self._may_skip() or not self.waits)

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

    def _ask(self, number: int, point: Mapping[str, Any] | None, values: Mapping[int, float] | None = None) -> _Asked:
        """What Optuna proposes for trial `number`, using the coordinates that `point` gives."""
        study = self.studies[self._turns.choice(number)]
        study.sampler = make_sampler(self._sampler, self._seed, number - self._first)
        if point is not None:
            study.enqueue_trial(dict(point))
        trial = study.ask()
        proposal = self._spaces[self._turns.choice(number)].propose(optuna_answer(trial))
        trial.set_user_attr(NUMBER, number)
        return _Asked(number=number, trial=trial, proposal=proposal, values=dict(values or {}))

    def _proposal(self, number: int, params: Mapping[str, Any]) -> Proposal:
        """The proposal with these coordinates."""
        return self._spaces[self._turns.choice(number)].propose(lambda name, _: params[name])

    def _add_finished(self, number: int, params: Mapping[str, Any], state: str, values: Mapping[int, float]) -> None:
        """Tell Optuna of a trial that ended in an earlier session; the arguments are those of `restore_trials`."""
        proposal = self._proposal(number, params)
        self.studies[self._turns.choice(number)].add_trial(
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
