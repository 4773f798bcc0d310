"""What a time budget buys: epochs of a full trial and a number of trials. Arithmetic alone."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass

from delta_tune.search.asha import rung_epochs

TARGET_STEPS = 800
"""Steps after which more epochs hardly help: a small training set needs more epochs for them than a large one."""
SHORTEST, LONGEST = 3, 6
"""Range of the epochs that follow from it; a set with few steps an epoch has fewer than `TARGET_STEPS`."""
FULL_TRIALS, ROUNDS = 4, 2
"""Full trials that are to fit, and in how many rounds at least: later trials are to learn from earlier ones."""
MOST_TRIALS = 1000
"""Of the number that is expected."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Wishes:
    """What the user asks for.

    Attributes:
        max_epochs: epochs of a full trial; None leaves them to the budget.
        num_trials: number of trials; None leaves it to the budget.
        grace_period: the first rung, in epochs.
        grace_of: the epochs of a full trial that it belongs to; None keeps it whatever they are.
        reduction_factor: one in so many trials passes a rung.
        counted: share of the trials whose epochs take time.
    """

    max_epochs: int | None
    num_trials: int | None
    grace_period: int
    grace_of: int | None
    reduction_factor: float
    counted: float = 1.0

    def grace(self, epochs: int) -> int:
        """The first rung of trials of so many epochs."""
        return scaled_grace(self.grace_period, self.grace_of or epochs, epochs)


@dataclass(frozen=True, kw_only=True, slots=True)
class Means:
    """What there is to spend.

    Attributes:
        seconds: wall clock until everything but the end of the study must be done.
        epoch_seconds: of an epoch with its scoring.
        steps: of an epoch.
        slots: concurrent trials.
        confirming: seconds per epoch of the least confirmation and final model; 0 if none is asked for.
        for_confirming: seconds that those may take at most.
        measuring: seconds that those need before their first epochs.
        least_epochs: epochs with less than which they are not worth their time, ≥ 1.
    """

    seconds: float
    epoch_seconds: float
    steps: int
    slots: int
    confirming: float = 0.0
    for_confirming: float = 0.0
    measuring: float = 0.0
    least_epochs: int = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Schedule:
    """What a study with a time budget runs.

    Attributes:
        max_epochs: epochs of a full trial, ≥ 1.
        grace_period: the first rung of ASHA, in [1, max_epochs].
        num_trials: trials that are expected to end in time; 0 if there is no time for one epoch.
        confirms: whether there is time for a confirmation.
        epoch_seconds: of an epoch with its scoring.
    """

    max_epochs: int
    grace_period: int
    num_trials: int
    confirms: bool
    epoch_seconds: float


def choose_schedule(wishes: Wishes, means: Means) -> Schedule:
    """The longest schedule that fits, up to what was asked for or what the training set needs.

    Epochs are given up before the confirmation, and that before the last epoch.
    """
    longest = wishes.max_epochs or epochs_of_set(means.steps)
    seconds, room = means.seconds - means.for_confirming, means.for_confirming - means.measuring
    least = min(means.least_epochs, longest)
    confirms = 0 < means.confirming * least <= room and seconds >= means.epoch_seconds
    if confirms:
        most = min(longest, math.floor(room / means.confirming))
        confirms = min(most, max(1, epochs_that_fit(wishes, means, seconds))) >= least
    if confirms:
        longest = most
    else:
        seconds = means.seconds
    epochs = max(1, min(longest, epochs_that_fit(wishes, means, seconds)))
    return Schedule(
        max_epochs=epochs,
        grace_period=wishes.grace(epochs),
        num_trials=trials_that_fit(wishes, means, seconds, epochs),
        confirms=confirms,
        epoch_seconds=means.epoch_seconds,
    )


def epochs_of_set(steps: int) -> int:
    """Epochs of a full trial for a training set of so many steps, where time is no matter."""
    return min(max(math.ceil(TARGET_STEPS / steps), SHORTEST), LONGEST)


def epochs_of_steps(max_steps: int, steps: int) -> int:
    """Epochs of a full trial, the fewest that have `max_steps`, where an epoch has so many."""
    return math.ceil(max_steps / steps)


def scaled_grace(grace_period: int, grace_of: int, epochs: int) -> int:
    """The first rung of trials of so many epochs, in [1, epochs], in proportion to that of trials of `grace_of`."""
    return max(1, min(round(grace_period * epochs / grace_of), epochs))


def epochs_that_fit(wishes: Wishes, means: Means, seconds: float) -> int:
    """Epochs of a full trial such that the trials asked for end in time, or a few full ones; may be 0."""
    one = math.floor(max(0.0, seconds) / means.epoch_seconds)
    if wishes.num_trials is not None:
        trials, most = wishes.num_trials, max(one, 0)
        fits: Callable[[int], float] = lambda epochs: search_seconds(wishes, means, trials, epochs)  # noqa: E731
        return bisect_right(range(1, most + 1), seconds, key=fits)
    if wishes.max_epochs is not None:
        return one
    several = math.floor(one / max(ROUNDS, FULL_TRIALS / means.slots))
    return max(several, min(SHORTEST, one))


def trials_that_fit(wishes: Wishes, means: Means, seconds: float, epochs: int) -> int:
    """The number of trials that are expected to end in time, no more than asked for."""
    if seconds < means.epoch_seconds:
        return 0
    most = min(wishes.num_trials or MOST_TRIALS, MOST_TRIALS)
    fits: Callable[[int], float] = lambda trials: search_seconds(wishes, means, trials, epochs)  # noqa: E731
    return max(1, bisect_right(range(1, most + 1), seconds, key=fits))


def search_seconds(wishes: Wishes, means: Means, trials: int, epochs: int) -> float:
    """Wall clock that a search is expected to take: its epochs side by side, but no less than a full trial."""
    bought = expected_epochs(trials * wishes.counted, epochs, wishes.grace(epochs), wishes.reduction_factor)
    return means.epoch_seconds * max(float(epochs), bought / min(means.slots, trials))


def expected_epochs(trials: float, max_epochs: int, grace_period: int, reduction_factor: float) -> float:
    """Expected number of epochs of trials that are compared in the order in which they come to a rung."""
    ends = [*rung_epochs(max_epochs, grace_period, reduction_factor), max_epochs]
    total, start, running = 0.0, 0, trials
    for end in ends:
        total += running * (end - start)
        start, running = end, passing(running, reduction_factor)
    return total


def passing(trials: float, reduction_factor: float) -> float:
    """How many of so many trials pass a rung: the first does, of the next ones fewer, then 1 in `reduction_factor`."""
    early = min(trials, reduction_factor)
    whole = math.floor(early)
    passed = sum(1 / place for place in range(1, whole + 1))
    return passed + (early - whole) / (whole + 1) + (trials - early) / reduction_factor
