"""Assign examples to splits: stratified, seeded, by index, before any image is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from delta_tune.config import UserError
from delta_tune.data.stratify import cut, lowest_of_labels, units_of
from delta_tune.labels.kinds import Labels, kind_of

Indices = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


def cut_splits(
    labels: Mapping[str, Labels],
    *,
    val_fraction: float,
    test_fraction: float,
    seed: int,
    groups: Indices | None = None,
) -> dict[str, Indices]:
    """Cut val and test from train if the data has none.

    Every class keeps an image in train. Where they are cut, val has one of every class with at least two images, and
    test of every class with one more, even if the fractions alone would give it none. Groups stay whole: with them, the
    same holds for classes of two and three groups. So it does for labels, of which an image may have several.

    Args:
        labels: split → int64 (N,), or (N, K) of 0 and 1, for the splits that exist.
        val_fraction: share of the original train, in (0, 1).
        test_fraction: share of the original train, in [0, 1).
        seed: ≥ 0.
        groups: int64 (N,) of train; None if each example is a group of its own.

    Returns:
        Split → ascending positions of its examples: in the split itself if it exists, else in train.

    Raises:
        UserError: a split would be empty.
    """
    chosen = {split: np.arange(len(found), dtype=np.int64) for split, found in labels.items()}
    for split, found in chosen.items():
        if not len(found):
            raise UserError(f"The split {split} has no images; add some, or remove the split to cut it from train.")
    train = labels["train"]
    test_part = 0.0 if "test" in labels else test_fraction
    val_part = 0.0 if "val" in labels else val_fraction
    if test_part + val_part >= 1:
        raise UserError(
            f"test_fraction + val_fraction < 1 must hold, but got {test_part!r} + {val_part!r}; leave some "
            f"images for train."
        )
    if train.ndim == 1 and groups is None:
        is_test, is_val = _assign(train.astype(np.int64, copy=False), test_part, val_part, seed)
    else:
        is_test, is_val = _assign_units(train, test_part, val_part, seed, groups)
    assigned = {"test": is_test, "val": is_val}
    chosen["train"] = np.flatnonzero(~assigned["test"] & ~assigned["val"])
    for split, part in (("test", test_part), ("val", val_part)):
        if part:
            chosen[split] = np.flatnonzero(assigned[split])
    return chosen


def _assign(train: Indices, test_part: float, val_part: float, seed: int) -> tuple[Mask, Mask]:
    """Which images of train become test and val; a part of 0 takes none."""
    quantile, rank = _quantiles(train, np.random.default_rng([seed, 0]))
    sizes = np.bincount(train)
    before_last = rank < sizes[train] - 1  # every class keeps one training image
    is_test = (quantile < test_part) & before_last
    is_val = (quantile >= test_part) & (quantile < test_part + val_part) & before_last
    for split, part, taken in (("test", test_part, is_test), ("val", val_part, is_val)):
        if part and not taken.any():
            raise UserError(
                f"{split}_fraction {part!r} of {len(train)} training images leaves none for {split}; "
                f"raise it, or give the data a {split} split."
            )
    # In each class, test has the lowest ranks and val the next ones. Both get one where the class is large enough.
    min_val = (sizes >= 2) * int(val_part > 0)
    min_test = (sizes >= 2 + min_val) * int(test_part > 0)
    num_test = np.maximum(np.bincount(train[is_test], minlength=len(sizes)), min_test)
    num_test = np.clip(num_test, 0, np.maximum(sizes - 1 - min_val, 0))
    num_val = np.maximum(np.bincount(train[is_val], minlength=len(sizes)), min_val)
    num_val = np.clip(num_val, 0, np.maximum(sizes - 1 - num_test, 0))
    if test_part and not num_test.any():
        raise UserError(
            "No class has the three images that train, val and test need; add images, or leave --test-fraction out."
        )
    is_test = rank < num_test[train]
    return is_test, ~is_test & (rank < (num_test + num_val)[train])


def _assign_units(
    train: Labels, test_part: float, val_part: float, seed: int, groups: Indices | None
) -> tuple[Mask, Mask]:
    """As `_assign`, of groups and of several labels an image."""
    units = units_of(train, groups)
    shares = (1 - test_part - val_part, val_part, test_part)
    part = np.array(cut(units, shares, np.random.default_rng([seed, 0])))[units.of]
    for split, share, where in (("test", test_part, 2), ("val", val_part, 1)):
        if share and not (part == where).any():
            if groups is None:
                why, advice = "each image has a label that no other image has, and stays in train", ""
            elif len(units.sizes) == 1:
                why, advice = "all training images are one group", ", or leave the column of groups out"
            else:
                why = "there are too few groups of each class: one of them stays in train"
                advice = ", or leave the column of groups out"
            raise UserError(f"No {split} split can be cut: {why}; give the data a {split} split{advice}.")
    return part == 2, part == 1


def class_notes(labels: Mapping[str, Labels], classes: Sequence[str]) -> list[str]:
    """Name the classes that val or test lacks, and say what that means for the metrics.

    Args:
        labels: split → labels of its images.
        classes: names.
    """
    notes = []
    for split in ("val", "test"):
        if split not in labels:
            continue
        kind = kind_of(labels[split])
        present = set(np.flatnonzero(kind.counts(labels[split], len(classes))).tolist())
        lacking = [repr(name) for label, name in enumerate(classes) if label not in present]
        if not lacking:
            continue
        which = (
            f"the class {lacking[0]}" if len(lacking) == 1 else f"{len(lacking)} classes ({format_list(lacking, 5)})"
        )
        if len(present) > 1 or kind.name == "multilabel":
            effect = f"balanced accuracy and macro F1 there average over the other {len(present)} classes"
        else:
            effect = f"a network that always answers {classes[min(present)]!r} has 100 % there, by every metric"
        notes.append(f"{split} has no image of {which}: {effect}.")
    return notes


def size_notes(chosen: Mapping[str, Indices], fractions: Mapping[str, float]) -> list[str]:
    """Say that a split is clearly larger than its fraction, because every class with enough images is in it.

    Args:
        chosen: result of `cut_splits`.
        fractions: share of the original train, for each split that was cut from it.
    """
    num_images = len(chosen["train"]) + sum(len(chosen[split]) for split in fractions)
    asked = {split: round(fraction * num_images) for split, fraction in fractions.items()}
    return [
        f"{split} has {len(chosen[split])} images instead of {count}, so that every class with enough images is in it."
        for split, count in asked.items()
        if len(chosen[split]) > max(1.1 * count, count + 1)
    ]


def training_subset(labels: Labels, *, fraction: float | None, per_class: int | None, seed: int) -> Indices:
    """Ascending positions of a part of the training examples, at least one per class.

    With the same seed and examples, a smaller part is a subset of a larger one. An example with several labels counts
    for the rarest of them.

    Args:
        labels: int64 (N,), or (N, K) of 0 and 1.
        fraction: share of each class, in (0, 1]; or
        per_class: number per class, or all of a class that has fewer.
        seed: ≥ 0.
    """
    quantile, rank = _quantiles(kind_of(labels).strata(labels), np.random.default_rng([seed, 1]))
    least = lowest_of_labels(labels, rank) if labels.ndim == 2 else np.empty(0, dtype=np.int64)
    if per_class is not None:
        return np.union1d(np.flatnonzero(rank < per_class), least)
    assert fraction is not None
    return np.union1d(np.flatnonzero((quantile < fraction) | (rank == 0)), least)


def _quantiles(labels: Indices, random: np.random.Generator) -> tuple[npt.NDArray[np.float64], Indices]:
    """For each example its random quantile in (0, 1) within its class, and its rank in the class from 0.

    The n examples of a class have quantiles (rank + offset) / n; the offsets of the classes are spread evenly over
    (0, 1). So the examples below quantile f are floor or ceil(f·n) of each class and about f·N of all N, and the set
    only grows with f.
    """
    quantile = np.empty(len(labels))
    rank = np.empty(len(labels), dtype=np.int64)
    classes = np.unique(labels)
    offsets = (random.permutation(len(classes)) + 0.5) / len(classes)
    by_class = np.split(np.argsort(labels, kind="stable"), np.cumsum(np.bincount(labels))[:-1])
    for label, offset in zip(classes, offsets, strict=True):
        members = by_class[label]
        rank[members] = random.permutation(len(members))
        quantile[members] = (rank[members] + offset) / len(members)
    return quantile, rank


def format_list(items: Sequence[str], most: int) -> str:
    """The first `most` items, and how many more there are."""
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(items[:most]) + more
