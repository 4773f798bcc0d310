"""`--time-budget`: what the search may use, and what is kept for confirmation, final model and the end."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from delta_tune.config import StudyConfig, TrialConfig
from delta_tune.console.format import format_count, format_duration
from delta_tune.data.dataset import Dataset
from delta_tune.results.tables import StudyTables
from delta_tune.spaces.l2_baseline import Groups


def final_takes_val(config: StudyConfig) -> bool:
    """Whether the final model is retrained with validation: not if train was made small on purpose."""
    return config.train_fraction is None and config.train_per_class is None


FOLDS = 10
"""Of train and val, one of which each final run holds out."""
MOST_CHECKED = 1000
"""Images on which the mean of the final runs' weights is compared with them."""
LEAST_RUNS = 2
"""Final runs whose weights have a mean."""


def fold_growth(dataset: Dataset) -> float:
    """Training images of a final run / of a trial."""
    train, val = len(dataset.train), len(dataset.val)
    return (1 - 1 / FOLDS) * (train + val) / train


def final_training_growth(config: StudyConfig, dataset: Dataset, slots: int, runs: int = LEAST_RUNS) -> float:
    """Training time of the final model / of a trial: of so many final runs, or of one run on all images."""
    if not final_takes_val(config):
        return 1.0
    if config.final_runs:
        return math.ceil(runs / slots) * fold_growth(dataset)
    return (len(dataset.train) + len(dataset.val)) / len(dataset.train)


LARGEST_SHARE = 0.5
"""Largest share of the budget for confirmation and final model; repetitions are cut to fit."""
SLACK = 0.05
"""Share of the final model's time that may exceed the budget."""
END_S = 5.0
"""CPU seconds that the end of a study takes at least: the model's pictures, the report, the end of Ray."""
START_S = 5.0
"""CPU seconds from the proposal of the first trials to their first step: their processes start."""
LOOK_AT_BUDGET_S = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class PostSearchBudget:
    """Estimated time after the search.

    Attributes:
        repetitions: repetitions of the confirmation; 0 if fewer than two fit.
        confirmation: seconds of the confirmation.
        final: seconds of the final model.
        runs: final runs; 0 if the final model is the search's, or trained once.
    """

    repetitions: int = 0
    runs: int = 0
    confirmation: float = 0.0
    final: float = 0.0

    @property
    def total(self) -> float:
        """Seconds of both."""
        return self.confirmation + self.final


class TimeBudget:
    """The budget of a study over all its sessions, in seconds. Steps of the system's clock do not change it.

    Args:
        total: the budget; None for no limit.
        spent: seconds of earlier sessions.
        began: when this session began, in seconds since 1970: the times in the tables are compared with it.
        before: seconds that this session has already taken.
        end: seconds that are kept for the end.
    """

    def __init__(
        self, total: float | None, *, spent: float, began: float, before: float = 0.0, end: float = 0.0
    ) -> None:
        self.total, self._spent, self.began, self.end = total, spent, began, end
        self._began = time.monotonic() - before

    @property
    def session(self) -> float:
        """Seconds of this session so far."""
        return time.monotonic() - self._began

    @property
    def used(self) -> float:
        """Seconds of all sessions so far."""
        return self._spent + self.session

    @property
    def left(self) -> float:
        """Seconds left before those that are kept for the end; negative if overrun."""
        return math.inf if self.total is None else self.total - self.end - self.used

    def has_time_for(self, seconds: float) -> bool:
        """Whether `seconds` are left, within `SLACK`."""
        return self.left >= (1 - SLACK) * seconds

    def search_is_over(self) -> str:
        """A sentence on why no trial starts."""
        return (
            f"What the search has left of the time budget of {self._total} is too short for another trial; a larger "
            f"--time-budget goes on."
        )

    def reserved_after_search(self, reserved: PostSearchBudget, confirm: int) -> str:
        """A sentence on what is reserved for confirmation and final model, or for the final runs.

        Args:
            reserved: the reservation.
            confirm: repetitions that the user asked for.
        """
        if not reserved.repetitions and not reserved.runs:
            return self.too_short()
        if not confirm:
            return (
                f"Of the {self._total}, {format_duration(reserved.final)} are kept for "
                f"{format_count(reserved.runs, 'final run')}."
            )
        return (
            f"Of the {self._total}, {format_duration(reserved.confirmation)} are kept for a confirmation with "
            f"{reserved.repetitions} of {confirm} seeds and {format_duration(reserved.final)} for the final model."
        )

    def too_short(self) -> str:
        """A sentence on a budget that has no room for a confirmation, or for final runs."""
        return f"The {self._total} are too short to train anew after the search, which has all of them."

    def too_short_to_confirm(self, repetitions: int, confirm: int) -> str:
        """A sentence on what is cut.

        Args:
            repetitions: repetitions that fit.
            confirm: repetitions that the user asked for.
        """
        enough = f"for {repetitions} seeds instead of {confirm}, no more" if repetitions else ""
        return (
            f"The {format_duration(max(0.0, self.left))} left of the time budget are enough "
            f"{enough or 'neither to confirm nor to retrain'}."
        )

    @property
    def _total(self) -> str:
        assert self.total is not None
        return format_duration(self.total)


def mean_epoch_seconds(tables: StudyTables, groups: Groups, backbone: str | None = None) -> dict[str, float]:
    """Group → mean seconds per epoch, with scoring, of its slowest method; empty before the first epoch.

    Args:
        tables: of the search.
        groups: what is compared.
        backbone: of this network; None for the slowest.
    """
    took: dict[tuple[str, str, str | None], list[float]] = {}
    for number, group in groups(tables).items():
        method, network = tables.trials[number]["config.regularizer"], tables.backbone(number)
        if backbone in (None, network):
            epochs = tables.epochs[number]
            took.setdefault((group, method, network), []).extend(r["seconds"] + r["eval_seconds"] for r in epochs)
    found: dict[str, float] = {}
    for (group, *_), seconds in took.items():
        if seconds:
            found[group] = max(found.get(group, 0.0), sum(seconds) / len(seconds))
    return found


def scoring_seconds(tables: StudyTables, num_val: int) -> float:
    """Seconds per image of a pass without gradients, by the trials of the slowest method and network.

    0 before the first epoch.
    """
    took: dict[tuple[str, str | None], list[float]] = {}
    for number, row in tables.searched.items():
        kind = row["config.regularizer"], tables.backbone(number)
        took.setdefault(kind, []).extend(each["eval_seconds"] for each in tables.epochs[number])
    return max((sum(seconds) / len(seconds) for seconds in took.values() if seconds), default=0.0) / num_val


def images_to_measure(configs: Sequence[TrialConfig], dataset: Dataset) -> int:
    """How many images of a new split, or of the final training set, the frozen source reads before runs on it."""
    reads = any(
        each.needs_fitted_head
        or each.method.uses_attention
        or each.effective_co_tuning > 0
        or (each.uses_behavior and each.behavior_scale == "relative")
        for each in configs
    )
    return reads * (len(dataset.train) + len(dataset.val))


def plan_post_search(
    within: float,
    *,
    repetitions: int,
    epoch_seconds: Mapping[str, float],
    max_epochs: int,
    slots: int,
    growth: float,
    split_seconds: float = 0.0,
    split_growth: float = 1.0,
) -> PostSearchBudget:
    """Estimate confirmation and final model, with as many repetitions as fit.

    Args:
        within: seconds they may take.
        repetitions: repetitions asked for.
        epoch_seconds: group → seconds per epoch.
        max_epochs: epochs of a run.
        slots: concurrent runs.
        growth: training images of the final model / of a trial.
        split_seconds: seconds to measure what runs on a new split or on the final training set need.
        split_growth: training images of a repetition / of a trial.
    """
    if not epoch_seconds:
        return PostSearchBudget(repetitions=repetitions)
    slowest = max(epoch_seconds.values())
    final = split_seconds + max_epochs * slowest * growth
    for count in range(repetitions, 1, -1):
        # With several concurrent runs, the last one to start runs alone at the end.
        tail = slowest if slots > 1 else 0.0
        epochs = max_epochs * split_growth
        confirmation = count * split_seconds + epochs * (count * sum(epoch_seconds.values()) / slots + tail)
        if confirmation + final <= within:
            return PostSearchBudget(repetitions=count, confirmation=confirmation, final=final)
    return PostSearchBudget()


def plan_final_runs(
    within: float,
    *,
    runs: int,
    epoch_seconds: float,
    max_epochs: int,
    slots: int,
    growth: float,
    measuring: float = 0.0,
) -> PostSearchBudget:
    """Estimate the final runs, as many as fit.

    Args:
        within: seconds they may take.
        runs: asked for.
        epoch_seconds: of a trial, with scoring.
        max_epochs: of a run.
        slots: concurrent runs.
        growth: training images of a run / of a trial.
        measuring: seconds in which each run measures what it needs of its images.
    """
    for count in range(runs, LEAST_RUNS - 1, -1):
        seconds = math.ceil(count / slots) * (max_epochs * epoch_seconds * growth + measuring)
        if seconds <= within:
            return PostSearchBudget(runs=count, final=seconds)
    return PostSearchBudget()


def cached_for(seconds: float, ask: Callable[[], float]) -> Callable[[], float]:
    """Call `ask` at most once every `seconds`, and count its answer down in between.

    A slow `ask` is called less often, so that it takes at most a twentieth of the time.
    """
    due, answered_at, answer = -math.inf, 0.0, 0.0

    def answered() -> float:
        nonlocal due, answered_at, answer
        now = time.monotonic()
        if now >= due:
            answer, answered_at = ask(), now
            due = now + max(seconds, 20 * (time.monotonic() - now))
        return answer - (time.monotonic() - answered_at)

    return answered
