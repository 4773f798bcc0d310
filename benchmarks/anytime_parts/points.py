"""Which model one would have in hand at a moment, how good it is, and how sure the difference of two is."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

POINTS = (15, 30, 60, 120, 240, 480, 960)
"""Seconds from the command."""
EARLY = 240
"""Seconds: the points up to here are those that ours must lead."""

Right = npt.NDArray[np.float64]
"""1 for each test image that is classified correctly, else 0; (seeds, images)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Version:
    """A model that a run had."""

    seconds: float
    """From the command until the model could be used."""
    right: str
    """`1` for each test image, in order, that it classifies correctly, else `0`."""
    val_accuracy: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """One run of one arm: a line of the file of results."""

    data: str
    model: str
    image_size: int
    arm: str
    seed: int
    budget: int
    """Seconds that the run was given."""
    versions: tuple[Version, ...]
    """By time."""
    guess: str
    """As `Version.right`, if every test image is said to be of the most frequent class of train."""
    ended: float
    """Seconds from the command until its process had ended."""
    exit_status: int
    last_lines: tuple[str, ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)
    """Date, commit, versions, load, splits."""

    @property
    def key(self) -> tuple[str, str, int, str, int, int]:
        """What no two runs have alike."""
        return self.data, self.model, self.image_size, self.arm, self.seed, self.budget

    @classmethod
    def from_json(cls, line: dict[str, Any]) -> Run:
        versions = tuple(Version(**version) for version in line["versions"])
        return cls(**line | {"versions": versions, "last_lines": tuple(line["last_lines"])})


@dataclass(frozen=True, kw_only=True, slots=True)
class Column:
    """How the model of a point is found: in a run up to the last point, which was watched, or at a run's own end."""

    title: str
    arm: str
    by_budget: bool = False
    """Whether each point has a run with that budget."""


OURS = Column(title="ours", arm="ours")
EACH = Column(title="ours, a run for each", arm="ours", by_budget=True)
USUAL = Column(title="usual", arm="usual")
AUTOGLUON = Column(title="AutoGluon, a run for each", arm="autogluon", by_budget=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """A point of an arm, over its seeds."""

    right: Right
    models: int
    """Number of seeds with a model; the others count as a guess."""
    ended: float | None = None
    """Seconds until the latest of its runs had ended; only of runs that were given the point as their budget."""

    @property
    def accuracy(self) -> float:
        return float(self.right.mean())


def accuracy(right: str) -> float:
    """The share of ones."""
    return right.count("1") / len(right)


def model_at(versions: Iterable[Version], seconds: float) -> Version | None:
    """The newest model that existed then; None if there was none."""
    return max(
        (version for version in versions if version.seconds <= seconds),
        key=lambda version: version.seconds,
        default=None,
    )


def cell(runs: Iterable[Run], column: Column, point: int, until: int) -> Cell | None:
    """What a column has at a point; None if no run tells.

    Args:
        runs: of one data set.
        column: the arm, and how its model is found.
        point: seconds.
        until: the last of the points, which was the budget of runs that are watched.
    """
    budget = point if column.by_budget else until
    own = sorted((run for run in runs if (run.arm, run.budget) == (column.arm, budget)), key=lambda run: run.seed)
    if not own:
        return None
    if column.by_budget:
        found = [run.versions[-1] if run.versions else None for run in own]
    else:
        found = [model_at(run.versions, point) for run in own]
    rows = [run.guess if version is None else version.right for run, version in zip(own, found, strict=True)]
    return Cell(
        right=np.array([[float(digit) for digit in row] for row in rows]),
        models=sum(version is not None for version in found),
        ended=max(run.ended for run in own) if column.by_budget else None,
    )


def difference(ours: Right, other: Right) -> tuple[float, float]:
    """Accuracy of ours less the other's, and its standard error over the test images, both paired by image.

    Args:
        ours: (seeds, images).
        other: (seeds', images); seeds are averaged per image, so their number may differ.
    """
    by_image = ours.mean(0) - other.mean(0)
    return float(by_image.mean()), float(by_image.std() / math.sqrt(len(by_image)))


def leads(runs: Sequence[Run], other: Column, points: Sequence[int]) -> dict[int, tuple[float, float]]:
    """Point → difference of ours to another column and its standard error, where both have runs of the data set."""
    found = {}
    for point in points:
        ours, theirs = (cell(runs, column, point, points[-1]) for column in (OURS, other))
        if ours is not None and theirs is not None:
            found[point] = difference(ours.right, theirs.right)
    return found


def early_lead(by_data: Iterable[dict[int, tuple[float, float]]]) -> float | None:
    """Median over data sets and the points up to `EARLY` of `leads`; None without any."""
    found = [delta for each in by_data for point, (delta, _) in each.items() if point <= EARLY]
    return statistics.median(found) if found else None
