"""Splits: disjoint, stratified, seeded, nested."""

from itertools import pairwise

import numpy as np
import pytest
from helpers.fuzz import cases
from hypothesis import given
from hypothesis import strategies as st

from delta_tune.config import UserError
from delta_tune.data.splits import class_notes, cut_splits, size_notes, training_subset


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
    labels = labels_of(*[7] * 100)
    chosen = cut_splits({"train": labels}, val_fraction=0.2, test_fraction=0, seed=0)
    assert len(chosen["val"]) == 140
    assert np.bincount(labels[chosen["val"]]).max() == 2


def test_cut_splits_gives_a_rare_class_to_val_and_test():
    labels = labels_of(197, 3)
    chosen = cut_splits({"train": labels}, val_fraction=0.01, test_fraction=0.01, seed=3)
    assert {split: np.bincount(labels[found]).tolist() for split, found in chosen.items()} == {
        "train": [193, 1],
        "val": [2, 1],
        "test": [2, 1],
    }


def test_cut_splits_gives_two_images_of_a_class_to_train_and_val():
    for seed in range(10):
        labels = labels_of(98, 2)
        chosen = cut_splits({"train": labels}, val_fraction=0.1, test_fraction=0.3, seed=seed)
        assert [np.bincount(labels[chosen[s]], minlength=2)[1] for s in ("train", "val", "test")] == [1, 1, 0]


def test_cut_splits_takes_from_a_large_val_what_test_needs():
    labels = labels_of(3, 3, 3)
    chosen = cut_splits({"train": labels}, val_fraction=0.8, test_fraction=0.15, seed=0)
    assert [len(chosen[split]) for split in ("train", "val", "test")] == [3, 3, 3]


def test_cut_splits_refuses_a_test_split_of_classes_of_two():
    with pytest.raises(UserError, match="No class has the three images that train, val and test need"):
        cut_splits({"train": labels_of(2, 2)}, val_fraction=0.3, test_fraction=0.3, seed=0)


def old_cut(train, val_fraction, test_fraction, seed):
    """The rule before rare classes were given to val: quantiles alone."""
    random = np.random.default_rng([seed, 0])
    classes = np.unique(train)
    offsets = (random.permutation(len(classes)) + 0.5) / len(classes)
    split = np.full(len(train), "train", dtype=object)
    for label, offset in zip(classes, offsets, strict=True):
        members = np.flatnonzero(train == label)
        rank = random.permutation(len(members))
        quantile = (rank + offset) / len(members)
        free = rank < len(members) - 1
        split[members[free & (quantile < test_fraction + val_fraction)]] = "val"
        split[members[free & (quantile < test_fraction)]] = "test"
    return split


@cases(200)
@given(
    counts=st.lists(st.one_of(st.integers(1, 4), st.integers(1, 80)), min_size=2, max_size=12),
    fractions=st.tuples(st.floats(0.01, 0.6), st.one_of(st.just(0.0), st.floats(0.01, 0.39))),
    seed=st.integers(0, 2**32),
)
def test_cut_splits_holds_its_promises_for_any_numbers(counts, fractions, seed):
    labels, (val_fraction, test_fraction) = labels_of(*counts), fractions
    try:
        chosen = cut_splits({"train": labels}, val_fraction=val_fraction, test_fraction=test_fraction, seed=seed)
    except UserError:
        asked = min(part for part in (val_fraction, test_fraction or 1.0))
        assert asked * len(labels) < 1 or max(counts) < 3 or asked * max(counts) < 1
        return
    assert sorted(np.concatenate(list(chosen.values())).tolist()) == list(range(len(labels)))
    sizes = np.array(counts)
    found = {split: np.bincount(labels[indices], minlength=len(counts)) for split, indices in chosen.items()}
    assert found["train"].min() >= 1
    assert found["val"][sizes >= 2].all()
    if test_fraction:
        assert found["test"][sizes >= 3].all()
    for split, part in (("val", val_fraction), ("test", test_fraction)):
        if part:  # floor or ceiling of the fraction, one at least, and what the others leave
            assert (found[split] <= np.maximum(np.ceil(part * sizes) + 1, 1)).all()
    before = old_cut(labels, val_fraction, test_fraction, seed)
    lacking = [
        c
        for c in range(len(counts))
        if not np.isin(["val"] + ["test"] * bool(test_fraction), before[labels == c]).all()
    ]
    for split, indices in chosen.items():
        of_others = [i for i in indices.tolist() if labels[i] not in lacking]
        assert of_others == [i for i in np.flatnonzero(before == split).tolist() if labels[i] not in lacking]


def test_class_notes_name_what_is_missing():
    labels = {"train": labels_of(3, 3, 3), "val": np.array([0, 1, 1]), "test": np.array([2])}
    in_val, in_test = class_notes(labels, ("a", "b", "c"))
    assert in_val == (
        "val has no image of the class 'c': balanced accuracy and macro F1 there average over the other 2 classes."
    )
    assert in_test == (
        "test has no image of 2 classes ('a', 'b'): a network that always answers 'c' has 100 % there, by every metric."
    )


def test_class_notes_are_silent_where_nothing_is_missing():
    assert class_notes({"train": labels_of(3, 3), "val": np.array([0, 1])}, ("a", "b")) == []


def test_size_notes_tell_of_a_split_that_is_larger_than_asked():
    labels = labels_of(*[3] * 50)
    chosen = cut_splits({"train": labels}, val_fraction=0.1, test_fraction=0, seed=0)
    assert size_notes(chosen, {"val": 0.1}) == [
        "val has 50 images instead of 15, so that every class with enough images is in it."
    ]
    chosen = cut_splits({"train": labels_of(50, 50)}, val_fraction=0.1, test_fraction=0, seed=0)
    assert size_notes(chosen, {"val": 0.1}) == []


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
