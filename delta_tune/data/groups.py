"""Groups of images that no split may cut through: their numbers, and what is said about them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np

from delta_tune.console.format import format_count
from delta_tune.data.sources.base import Examples
from delta_tune.data.splits import format_list
from delta_tune.data.stratify import Indices, units_of
from delta_tune.labels.kinds import Labels


def number_groups(splits: Mapping[str, Examples]) -> dict[str, Indices]:
    """Split → a number for each example (N,), equal in all splits for one group; nothing if the data has no groups.

    An example without a group has a number of its own.
    """
    if all(examples.groups is None for examples in splits.values()):
        return {}
    numbers: dict[str, int] = {}
    found = {}
    alone = sum(len(examples.labels) for examples in splits.values())
    for split, examples in splits.items():
        row = []
        for group in examples.groups if examples.groups is not None else [""] * len(examples.labels):
            if group:
                row.append(numbers.setdefault(group, len(numbers)))
            else:
                row.append(alone)
                alone += 1
        found[split] = np.array(row, dtype=np.int64)
    return found


def group_notes(
    groups: Mapping[str, Indices],
    labels: Labels,
    classes: Sequence[str],
    chosen: Mapping[str, Indices],
    fractions: Mapping[str, float],
) -> list[str]:
    """Sentences on how many groups there are, and where they stand in the way of a split.

    Args:
        groups: split of the data → of its examples.
        labels: of train.
        classes: their names.
        chosen: split → positions of its examples, in the split itself or in train.
        fractions: share of the original train, for each split that was cut from it.
    """
    together = np.concatenate(list(groups.values()))
    in_groups = f"{format_count(len(together), 'image')} in {format_count(len(np.unique(together)), 'group')}"
    notes = [f"{in_groups}: no split that is cut divides one."]
    for one, other in combinations(groups, 2):
        if shared := len(np.intersect1d(groups[one], groups[other])):
            notes.append(
                f"{format_count(shared, 'group')} of {one} also in {other}, as the data has it: scores on {other} may "
                f"be too high."
            )
    holders = units_of(labels, groups["train"]).holders if fractions else {}
    if alone := [repr(classes[label]) for label in sorted(holders) if len(holders[label]) == 1]:
        notes.append(f"In one group only, which stays in train: {format_list(alone, 5)}.")
    for split, fraction in fractions.items():
        asked, got = round(fraction * len(groups["train"])), len(chosen[split])
        if abs(got - asked) > max(0.1 * asked, 1):
            notes.append(f"{split} has {got} images instead of {asked}, because groups stay whole.")
    return notes
