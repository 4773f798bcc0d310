"""Splits: disjoint, stratified, seeded, nested."""

from itertools import pairwise

import numpy as np
import pytest

from delta_tune.config import UserError
from delta_tune.data.splits import cut_splits, training_subset


def labels_of(*counts, seed=0):
    """Shuffled labels with so many of each class."""
    return np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))


def test_cut_splits_divides_train_without_overlap():
    chosen = cut_splits({"train": labels_of(30, 20, 11)}, val_fraction=0.2, test_fraction=0.3, seed=0)
    assert sorted(np.concatenate(list(chosen.values())).tolist()) == list(range(61))
    for indices in chosen.values():
        assert np.all(np.diff(indices) > 0)


def test_cut_splits_is_stratified():
    labels = labels_of(50, 20, 10)
    chosen = cut_splits({"train": labels}, val_fraction=0.2, test_fraction=0.3, seed=3)
    assert np.bincount(labels[chosen["test"]]).tolist() == [15, 6, 3]
    assert np.bincount(labels[chosen["val"]]).tolist() == [10, 4, 2]


def test_cut_splits_meets_the_fraction_over_many_small_classes():
    labels = labels_of(*[3] * 100)
    chosen = cut_splits({"train": labels}, val_fraction=0.2, test_fraction=0, seed=0)
    assert len(chosen["val"]) == 60
    assert np.bincount(labels[chosen["val"]]).max() == 1


def test_cut_splits_depends_on_the_seed_alone():
    cuts = [cut_splits({"train": labels_of(30, 30)}, val_fraction=0.2, test_fraction=0, seed=s) for s in (0, 0, 1)]
    assert np.array_equal(cuts[0]["val"], cuts[1]["val"])
    assert not np.array_equal(cuts[0]["val"], cuts[2]["val"])


def test_cut_splits_keeps_one_training_image_of_each_class():
    labels = labels_of(*[1] * 10, 2, 50)
    chosen = cut_splits({"train": labels}, val_fraction=0.5, test_fraction=0.45, seed=0)
    assert np.bincount(labels[chosen["train"]], minlength=12).min() == 1


def test_cut_splits_leaves_given_splits_whole():
    given = {"train": labels_of(10, 10), "val": labels_of(3, 2), "test": labels_of(2, 2)}
    chosen = cut_splits(given, val_fraction=0.2, test_fraction=0.3, seed=0)
    assert {split: len(indices) for split, indices in chosen.items()} == {"train": 20, "val": 5, "test": 4}


def test_cut_splits_refuses_a_fraction_that_leaves_none():
    with pytest.raises(UserError, match=r"val_fraction 0\.01 of 6 training images leaves none for val"):
        cut_splits({"train": labels_of(3, 3)}, val_fraction=0.01, test_fraction=0, seed=0)


def test_cut_splits_refuses_fractions_that_leave_no_train():
    with pytest.raises(UserError, match=r"test_fraction \+ val_fraction < 1"):
        cut_splits({"train": labels_of(3, 3)}, val_fraction=0.5, test_fraction=0.5, seed=0)


def test_cut_splits_refuses_an_empty_split():
    with pytest.raises(UserError, match="split val has no images"):
        cut_splits({"train": labels_of(3, 3), "val": labels_of()}, val_fraction=0.5, test_fraction=0, seed=0)


def test_training_subset_is_nested():
    labels = labels_of(40, 7, 3, 1, 24)
    parts = [
        set(training_subset(labels, fraction=fraction, per_class=None, seed=5).tolist())
        for fraction in np.linspace(0.01, 1, 60)
    ]
    assert all(smaller <= larger for smaller, larger in pairwise(parts))
    assert len(parts[-1]) == 75
    several = [set(training_subset(labels, fraction=None, per_class=n, seed=5).tolist()) for n in (1, 5, 10, 50)]
    assert all(smaller <= larger for smaller, larger in pairwise(several))


def test_training_subset_takes_the_fraction_of_each_class():
    labels = labels_of(100, 40, 20)
    part = training_subset(labels, fraction=0.15, per_class=None, seed=0)
    assert np.bincount(labels[part]).tolist() == [15, 6, 3]


def test_training_subset_keeps_one_of_each_class():
    labels = labels_of(*[2] * 30)
    assert np.bincount(labels[training_subset(labels, fraction=0.001, per_class=None, seed=0)]).tolist() == [1] * 30


def test_training_subset_takes_so_many_per_class_or_all():
    labels = labels_of(12, 3, 5)
    assert np.bincount(labels[training_subset(labels, fraction=None, per_class=5, seed=0)]).tolist() == [5, 3, 5]
