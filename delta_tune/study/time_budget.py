"""`--time-budget`: how much of it the search may use, and what is kept for the confirmation and the final model."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from delta_tune.config import StudyConfig
from delta_tune.console.format import format_duration
from delta_tune.results.tables import StudyTables
from delta_tune.spaces.l2_baseline import Groups
from delta_tune.training.task import Task


def final_takes_val(config: StudyConfig) -> bool:
    """Whether a confirmed configuration is retrained with validation: not where train was made small on purpose."""
    return config.train_fraction is None and config.train_per_class is None


def final_training_growth(config: StudyConfig, task: Task) -> float:
    """Images of the final training / images of a trial's."""
    train, val = len(task.dataset.train), len(task.dataset.val)
    return (train + val) / train if final_takes_val(config) else 1.0


LARGEST_SHARE = 0.5
"""Part of the budget that confirmation and final model may keep from the search; beyond it repetitions are cut."""
SLACK = 0.05
"""Part of the time for the final model that may lie beyond the budget."""
LOOK_AT_BUDGET_S = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class PostSearchBudget:
    """What comes after the search, as measured epochs tell it.

    Attributes:
        repetitions: of the confirmation; 0 where not even two fit.
        confirmation: seconds.
        final: seconds of the final model.
    """

    repetitions: int = 0
    confirmation: float = 0.0
    final: float = 0.0

    @property
    def total(self) -> float:
        """Seconds of both."""
        return self.confirmation + self.final


class TimeBudget:
    """Wall clock of a study over all its sessions, in seconds, and what the user is told of it.

    Args:
        total: None for no end.
        spent: by earlier sessions.
        began: when this session began, in seconds since 1970.
    """

    def __init__(self, total: float | None, *, spent: float, began: float) -> None:
        self.total, self._spent, self.began = total, spent, began

    @property
    def used(self) -> float:
        """Seconds that all sessions took so far."""
        return self._spent + time.time() - self.began

    @property
    def left(self) -> float:
        """Seconds that are left; below 0 where it was overrun."""
        return math.inf if self.total is None else self.total - self.used

    def has_time_for(self, seconds: float) -> bool:
        """Whether so much is left, give or take `SLACK`."""
        return self.left >= (1 - SLACK) * seconds

    def search_is_over(self) -> str:
        """Why no trial starts."""
        return f"The search's part of the time budget of {self._total} is spent; a larger --time-budget goes on."

    def reserved_after_search(self, reserved: PostSearchBudget, confirm: int) -> str:
        """What is kept for the confirmation and the final model.

        Args:
            reserved: for them.
            confirm: repetitions that the user asked for.
        """
        if not reserved.repetitions:
            return f"The {self._total} are too short to confirm and retrain: the search has all of them."
        return (
            f"Of the {self._total}, {format_duration(reserved.confirmation)} are kept for a confirmation with "
            f"{reserved.repetitions} of {confirm} seeds and {format_duration(reserved.final)} for the final model."
        )

    def too_short_to_confirm(self, repetitions: int, confirm: int) -> str:
        """What is cut.

        Args:
            repetitions: that fit.
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


def mean_epoch_seconds(tables: StudyTables, groups: Groups) -> dict[str, float]:
    """Group → mean wall clock of an epoch with its scoring, of its slowest method; empty where none has ended."""
    took: dict[tuple[str, str], list[float]] = {}
    for number, group in groups(tables).items():
        method = tables.trials[number]["config.regularizer"]
        took.setdefault((group, method), []).extend(r["seconds"] + r["eval_seconds"] for r in tables.epochs[number])
    found: dict[str, float] = {}
    for (group, _), seconds in took.items():
        if seconds:
            found[group] = max(found.get(group, 0.0), sum(seconds) / len(seconds))
    return found


def plan_post_search(
    within: float,
    *,
    repetitions: int,
    epoch_seconds: Mapping[str, float],
    max_epochs: int,
    slots: int,
    growth: float,
    split_seconds: float = 0.0,
) -> PostSearchBudget:
    """What confirmation and final model will take, with as many repetitions as fit.

    Args:
        within: seconds that they may take.
        repetitions: asked for.
        epoch_seconds: of each group that is compared.
        max_epochs: of a run.
        slots: runs at a time.
        growth: images of the final training / images of a run's.
        split_seconds: to measure the attention of a fresh split, or of the final training set.
    """
    if not epoch_seconds:
        return PostSearchBudget(repetitions=repetitions)
    slowest = max(epoch_seconds.values())
    final = split_seconds + max_epochs * slowest * growth
    for count in range(repetitions, 1, -1):
        # The last run to start is alone at the end where several run at a time.
        tail = slowest if slots > 1 else 0.0
        confirmation = count * split_seconds + max_epochs * (count * sum(epoch_seconds.values()) / slots + tail)
        if confirmation + final <= within:
            return PostSearchBudget(repetitions=count, confirmation=confirmation, final=final)
    return PostSearchBudget()


def cached_for(seconds: float, ask: Callable[[], float]) -> Callable[[], float]:
    """`ask`, looked up anew at most once in so many seconds and counted down in between.

    Where it takes long it is asked less often, so that it takes no more than a twentieth of the time.
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
