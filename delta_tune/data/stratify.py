"""Divide examples that belong together, or that have several labels, so that each part has its share of every label."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush

import numpy as np
import numpy.typing as npt

from delta_tune.labels.kinds import Labels

Indices = npt.NDArray[np.int64]

_CLOSE = 1e-9
_PASSES = 10
_MOST_IMPROVED = 100_000
"""Units; among more of them, each weighs next to nothing."""
NOWHERE = -1


@dataclass(frozen=True, slots=True)
class Units:
    """What is never divided: the groups of the examples, or each example."""

    of: Indices
    """(N,): the unit of each example, 0 to U - 1."""
    sizes: list[int]
    """(U,): its examples."""
    labels: list[list[tuple[int, int]]]
    """(U,): its labels, and how many of its examples have each."""
    holders: dict[int, list[int]]
    """Label → the units that have it."""

    @property
    def alone(self) -> list[int]:
        """Units with a label that no other unit has."""
        return sorted({units[0] for units in self.holders.values() if len(units) == 1})


def units_of(labels: Labels, groups: Indices | None) -> Units:
    """The units of examples.

    Args:
        labels: of the examples.
        groups: (N,) equal numbers for what belongs together; None if nothing does.
    """
    count = len(labels)
    of = np.arange(count) if groups is None else np.unique(groups, return_inverse=True)[1].reshape(-1)
    sizes = np.bincount(of).tolist()
    rows, found = np.nonzero(labels) if labels.ndim == 2 else (np.arange(count), labels.astype(np.int64))
    pairs, counts = np.unique(np.stack([of[rows], found], axis=1), axis=0, return_counts=True)
    by_unit: list[list[tuple[int, int]]] = [[] for _ in sizes]
    holders: dict[int, list[int]] = {}
    for (unit, label), number in zip(pairs.tolist(), counts.tolist(), strict=True):
        by_unit[unit].append((label, number))
        holders.setdefault(label, []).append(unit)
    return Units(of=of.astype(np.int64), sizes=sizes, labels=by_unit, holders=holders)


def divide(units: Units, shares: Sequence[float], random: np.random.Generator, fixed: dict[int, int]) -> list[int]:
    """The part of each unit (U,), by iterative stratification (Sechidis et al. 2011, algorithm 1) of units.

    The label that the fewest units have comes first, and of its units the largest; each goes to the part that lacks the
    most examples of that label, or else the most examples.

    Args:
        units: of the examples.
        shares: of the examples that each part is to have, with sum 1.
        random: breaks ties.
        fixed: unit → its part, where that is given, or `NOWHERE`.
    """
    part = [NOWHERE] * len(units.sizes)
    kept = sum(units.sizes) - sum(units.sizes[unit] for unit, where in fixed.items() if where == NOWHERE)
    lacking = [share * kept for share in shares]
    totals = dict.fromkeys(units.holders, 0)
    for unit, found in enumerate(units.labels):
        for label, number in found if fixed.get(unit) != NOWHERE else ():
            totals[label] += number
    wanted = {label: [share * total for share in shares] for label, total in totals.items()}
    left = {label: len(holders) for label, holders in units.holders.items()}
    rarest = [(number, label) for label, number in left.items()]
    heapify(rarest)
    order = random.permutation(len(part)).tolist()
    rank = {unit: (-units.sizes[unit], place) for place, unit in enumerate(order)}
    open_units = set(order)

    def put(unit: int, where: int) -> None:
        open_units.discard(unit)
        part[unit] = where
        for label, number in units.labels[unit]:
            left[label] -= 1
            heappush(rarest, (left[label], label))
            if where != NOWHERE:
                wanted[label][where] -= number
        if where != NOWHERE:
            lacking[where] -= units.sizes[unit]

    for unit, where in fixed.items():
        put(unit, where)
    while rarest:
        number, label = heappop(rarest)
        if not number or number != left[label]:  # an earlier state of the label
            continue
        for unit in sorted(open_units.intersection(units.holders[label]), key=rank.__getitem__):
            put(unit, _drawn(_most(_most(range(len(shares)), wanted[label]), lacking), random))
    for unit in sorted(open_units, key=rank.__getitem__):
        put(unit, _drawn(_most(range(len(shares)), lacking), random))
    improve(units, part, shares, fixed)
    return part


def improve(units: Units, part: list[int], shares: Sequence[float], fixed: Collection[int]) -> None:
    """Move single units as long as that brings the parts nearer to their shares, a few passes at most.

    What is made small is the sum over all parts of the squared differences between the part's share of each label, and
    of all examples, and the share that it is to have.

    Args:
        units: of the examples.
        part: of each unit (U,), changed in place.
        shares: of the parts.
        fixed: units that stay where they are.
    """
    free = [unit for unit, where in enumerate(part) if where != NOWHERE and unit not in fixed]
    if len(free) > _MOST_IMPROVED:
        return
    kinds = [[*units.labels[unit], (-1, units.sizes[unit])] for unit in range(len(part))]  # -1 stands for the example
    totals: dict[int, int] = {}
    has: dict[tuple[int, int], int] = {}
    for unit, where in enumerate(part):
        for label, number in kinds[unit] if where != NOWHERE else ():
            totals[label] = totals.get(label, 0) + number
            has[where, label] = has.get((where, label), 0) + number
    for _ in range(_PASSES):
        moved = False
        for unit in free:
            here = part[unit]
            gains = []
            for there in range(len(shares)):
                gain = 0.0
                for label, number in kinds[unit] if there != here else ():
                    step, total = number / totals[label], totals[label]
                    too_many = has.get((here, label), 0) / total - shares[here]
                    lacking = shares[there] - has.get((there, label), 0) / total
                    gain += step * (too_many + lacking - step)
                gains.append(gain)
            best = max(range(len(shares)), key=gains.__getitem__)
            if gains[best] > _CLOSE:
                for label, number in kinds[unit]:
                    has[here, label] -= number
                    has[best, label] = has.get((best, label), 0) + number
                part[unit], moved = best, True
        if not moved:
            return


def _most(parts: Iterable[int], amounts: Sequence[float]) -> list[int]:
    """The parts with the largest amount."""
    candidates = list(parts)
    largest = max(amounts[part] for part in candidates)
    return [part for part in candidates if amounts[part] >= largest - _CLOSE]


def _drawn(parts: Sequence[int], random: np.random.Generator) -> int:
    return parts[0] if len(parts) == 1 else parts[int(random.integers(len(parts)))]


def cut(units: Units, shares: Sequence[float], random: np.random.Generator) -> list[int]:
    """The part of each unit (U,), the first being train: it has every label.

    Every further part with a share has each label of which enough units are there: of two units one is in the second
    part, of three one in the third, if the second has a share too.

    Args:
        units: of the examples.
        shares: of train and the others, with sum 1.
        random: of the draw.
    """
    part = divide(units, shares, random, dict.fromkeys(units.alone, 0))
    rarest_first = sorted(units.holders, key=lambda label: (len(units.holders[label]), label))
    for label in rarest_first:
        if not _units_in(units, part, label, 0):
            part[min(units.holders[label], key=lambda unit: (units.sizes[unit], unit))] = 0
    needed = 2
    for where in range(1, len(shares)):
        if not shares[where]:
            continue
        for label in rarest_first:
            if len(units.holders[label]) >= needed and not _units_in(units, part, label, where):
                _move(units, part, label, where)
        needed += 1
    return part


def _units_in(units: Units, part: Sequence[int], label: int, where: int) -> list[int]:
    return [unit for unit in units.holders[label] if part[unit] == where]


def _move(units: Units, part: list[int], label: int, where: int) -> None:
    """Move the smallest unit with a label to another part, if all labels stay where they are needed."""
    for unit in sorted(units.holders[label], key=lambda each: (units.sizes[each], each)):
        if all(len(_units_in(units, part, each, part[unit])) > 1 for each, _ in units.labels[unit]):
            part[unit] = where
            return


def folds_of_units(units: Units, folds: int, random: np.random.Generator) -> Indices:
    """The fold of each example (N,), or `NOWHERE` in a unit with a label that no other unit has.

    Args:
        units: of the examples.
        folds: ≥ 2.
        random: of the draw.
    """
    part = divide(units, [1 / folds] * folds, random, dict.fromkeys(units.alone, NOWHERE))
    return np.array(part, dtype=np.int64)[units.of]


def lowest_of_labels(labels: Labels, rank: Indices) -> Indices:
    """The example of the lowest rank that has each label that there is, ascending.

    Args:
        labels: (N, K) of 0 and 1.
        rank: (N,).
    """
    has = labels > 0
    ranks = np.where(has, rank[:, None], np.iinfo(np.int64).max)
    return np.unique(ranks[:, has.any(axis=0)].argmin(axis=0)).astype(np.int64)
