"""Which of several backbones a study goes on with: by what can be reached in the time there is. Arithmetic alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from delta_tune.results.image_scores import Scores
from delta_tune.study.race import CLEAR
from delta_tune.study.schedule import FULL_TRIALS, ROUNDS, SHORTEST

MOST_KEPT = 2
NEGLIGIBLE = 0.02
"""Nats an image: a difference that is no larger tells nothing of what training comes to, however sure it is."""
PASSES_OF_STEP = 3
"""Forward passes that the time of a training step's image is reckoned as: one and the gradients."""
SHARE = 0.5
"""Of a full trial, in forward passes, that screening all candidates takes at most."""
TYPICAL_IMAGES, PER_CLASS, LEAST_PER_CLASS, MOST_IMAGES = 600, 8, 4, 4000
"""Training images that a pass looks at: so many, or so many of each class, but no fewer of it, and no more in all."""
TIMED_EPOCHS = 3
"""Epochs in which `measure_speed` trains on few images, and scores them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Room:
    """The time there is for trials.

    Attributes:
        seconds: wall clock; infinite without a time budget.
        slots: trials at a time.
        epochs: of a full trial, as asked, or as its training images need.
        num_trials: number of trials; None if it is left to the time budget.
        notes: sentences for the plan.
    """

    seconds: float
    slots: int
    epochs: int
    num_trials: int | None = None
    notes: tuple[str, ...] = ()

    @property
    def least_epochs(self) -> int:
        """Epochs with less than which a trial tells little of what it would come to."""
        return min(self.epochs, SHORTEST)

    @property
    def full_trials(self) -> int:
        """Full trials that a search needs, as far as it has so many."""
        return min(self.num_trials or FULL_TRIALS, FULL_TRIALS)

    @property
    def rounds(self) -> float:
        """How often the time of a full trial must be there."""
        if self.num_trials is not None:
            return max(1.0, self.full_trials / self.slots)
        return max(ROUNDS, self.full_trials / self.slots)

    def epochs_in_time(self, epoch_seconds: float) -> int:
        """Epochs that all these trials can have, up to those of a full one."""
        if math.isinf(self.seconds):
            return self.epochs
        return min(self.epochs, math.floor(max(0.0, self.seconds) / (self.rounds * epoch_seconds)))


def timed_images(images: int, epochs: int, candidates: int, most: int) -> int:
    """Images on which a candidate's training step is timed: at most a quarter of what screening may take.

    Args:
        images: of train.
        epochs: of a full trial.
        candidates: how many there are.
        most: ≥ 1.
    """
    allowed = SHARE * PASSES_OF_STEP * epochs * images / candidates / 4
    return max(1, min(most, images, math.floor(allowed / (TIMED_EPOCHS * (PASSES_OF_STEP + 1)))))


def sampled_images(
    images: int, classes: int, epochs: int, candidates: int, seconds_an_image: float, seconds: float
) -> tuple[int, int]:
    """Images that each candidate's pass looks at, and of each class at least.

    Args:
        images: of train.
        classes: how many there are.
        epochs: of a full trial.
        candidates: how many there are.
        seconds_an_image: that all candidates' forward passes of an image take.
        seconds: that all passes may take.
    """
    most = math.floor(SHARE * PASSES_OF_STEP * epochs * images / candidates * 3 / 4)
    in_time = math.floor(seconds / seconds_an_image)
    wanted = max(TYPICAL_IMAGES, PER_CLASS * classes)
    least = min(LEAST_PER_CLASS, max(1, most // classes))
    return max(1, min(images, most, max(in_time, least * classes), wanted, MOST_IMAGES)), least


def keep(labels: Sequence[str], scores: Sequence[Scores], fit: Sequence[bool]) -> tuple[list[int], list[str]]:
    """Which candidates are kept, the best first, and for each candidate why it is kept or not.

    The best is the likeliest one; one whose full trials do not fit into the time must be clearly likelier, image by
    image, than each of those that do. A second is kept unless it is clearly less likely than the best.

    Args:
        labels: names of the candidates.
        scores: of each candidate the log-likelihood of each image, (N,), of the same images.
        fit: of each candidate whether its full trials fit into the time.
    """
    order = sorted(range(len(scores)), key=lambda number: -float(np.mean(scores[number])))
    best = order[0]
    if not fit[best]:
        close = (number for number in order if fit[number] and not is_behind(scores[number], scores[best]))
        best = next(close, best)
    rivals = [number for number in order if number != best and not is_behind(scores[number], scores[best])]
    rivals.sort(key=lambda number: not fit[number])
    kept = [best, *rivals[: MOST_KEPT - 1]]
    told = []
    for number in range(len(scores)):
        gap, error = compared(scores[number], scores[best])
        difference = f"{gap:+.3f} ± {error:.3f} an image"
        if number == best:
            told.append(
                "the best"
                if number == order[0]
                else f"not told apart from {labels[order[0]]}, whose full trials do not fit into the time"
            )
        elif number in kept:
            told.append(f"not told apart from the best ({difference})")
        elif number in rivals:
            told.append(f"not told apart from the best ({difference}), but two are enough")
        else:
            told.append(f"clearly less likely than the best ({difference})")
    return kept, told


def compared(scores: Scores, others: Scores) -> tuple[float, float]:
    """Mean difference image by image, and its standard error, infinite for one image."""
    gap = scores - others
    return float(gap.mean()), float(gap.std(ddof=1) / math.sqrt(len(gap))) if len(gap) > 1 else math.inf


def is_behind(scores: Scores, others: Scores) -> bool:
    """Whether the scores are lower by more than `NEGLIGIBLE`, noise aside."""
    gap, error = compared(scores, others)
    return gap + CLEAR * error < -NEGLIGIBLE
