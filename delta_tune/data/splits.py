"""Assign examples to splits: stratified, seeded, by index, before any image is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from delta_tune.config import UserError

Indices = npt.NDArray[np.int64]


def cut_splits(
    labels: Mapping[str, Indices], *, val_fraction: float, test_fraction: float, seed: int
) -> dict[str, Indices]:
    """Cut val and test from train if the data has none.

    Args:
        labels: split → int64 (N,), for the splits that exist.
        val_fraction: share of the original train, in (0, 1).
        test_fraction: share of the original train, in [0, 1).
        seed: ≥ 0.

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
    quantile, rank = _quantiles(train, np.random.default_rng([seed, 0]))
    last = rank == np.bincount(train)[train] - 1  # every class keeps one training image
    is_test = (quantile < test_part) & ~last
    is_val = (quantile >= test_part) & (quantile < test_part + val_part) & ~last
    chosen["train"] = np.flatnonzero(~is_test & ~is_val)
    for split, part, taken in (("test", test_part, is_test), ("val", val_part, is_val)):
        if part:
            chosen[split] = np.flatnonzero(taken)
            if not taken.any():
                raise UserError(
                    f"{split}_fraction {part!r} of {len(train)} training images leaves none for {split}; "
                    f"raise it, or give the data a {split} split."
                )
    return chosen


def training_subset(labels: Indices, *, fraction: float | None, per_class: int | None, seed: int) -> Indices:
    """Ascending positions of a part of the training examples, at least one per class.

    With the same seed and examples, a smaller part is a subset of a larger one.

    Args:
        labels: int64 (N,).
        fraction: share of each class, in (0, 1]; or
        per_class: number per class, or all of a class that has fewer.
        seed: ≥ 0.
    """
    quantile, rank = _quantiles(labels, np.random.default_rng([seed, 1]))
    if per_class is not None:
        return np.flatnonzero(rank < per_class)
    assert fraction is not None
    return np.flatnonzero((quantile < fraction) | (rank == 0))


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
