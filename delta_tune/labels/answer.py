"""What a row of probabilities says of an image. Needs no torch, for the server has none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Answer:
    """The classes that an image shows, by their numbers."""

    best: int
    """The most probable class; of equal ones the first."""
    probability: float
    """Of `best`."""
    there: tuple[int, ...]
    """With several labels an image, those whose probability is at least their threshold, the most probable first; else
    `best` alone."""
    unsure: bool
    """Whether `probability` is below the least that was asked for; where none of several labels is there, whether
    1 - `probability` is."""


def answer_of(row: np.ndarray, thresholds: Sequence[float] | None, least: float) -> Answer:
    """The answer of an image's probabilities.

    Args:
        row: float32 (K,).
        thresholds: with several labels an image, from which probability on each is there, (K,); else None.
        least: the lowest probability that is sure, in [0, 1].
    """
    best = int(row.argmax())
    probability, there = float(row[best]), (best,)
    if thresholds is not None:
        reached = row >= np.asarray(thresholds, dtype=row.dtype)
        there = tuple(number for number in np.argsort(-row, kind="stable").tolist() if reached[number])
    return Answer(best, probability, there, unsure=(probability if there else 1 - probability) < least)
