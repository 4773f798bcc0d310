"""Groups stay whole and every part has its share of every label, beside scikit-learn's split of groups."""

import numpy as np
import pytest
from sklearn.model_selection import StratifiedGroupKFold

from delta_tune.config import UserError
from delta_tune.data.splits import class_notes, cut_splits, training_subset
from delta_tune.data.stratify import cut, divide, folds_of_units, lowest_of_labels, units_of


def drawn(seed, *, images=600, classes=5, groups=60):
    """Skewed labels, and groups of unequal sizes that lean to one class."""
    rng = np.random.default_rng(seed)
    group = rng.choice(groups, images, p=rng.dirichlet(np.full(groups, 2.0)))
    leaning = rng.integers(classes, size=groups)
    own = rng.choice(classes, images, p=np.arange(classes, 0, -1) / sum(range(classes + 1)))
    return np.where(rng.random(images) < 0.6, leaning[group], own), group


def several(seed, *, images=400, labels=8):
    """Rows with several labels, of which the last ones are rare."""
    rng = np.random.default_rng(seed)
    return (rng.random((images, labels)) < np.geomspace(0.5, 0.02, labels)).astype(np.float32)


def check_whole(groups, *parts):
    for number, one in enumerate(parts):
        for other in parts[number + 1 :]:
            assert not set(groups[one].tolist()) & set(groups[other].tolist())


@pytest.mark.parametrize("seed", range(5))
def test_cut_splits_keeps_groups_whole_and_each_image_once(seed):
    labels, groups = drawn(seed)
    chosen = cut_splits({"train": labels}, val_fraction=0.2, test_fraction=0.2, seed=seed, groups=groups)
    check_whole(groups, *chosen.values())
    assert sorted(np.concatenate(list(chosen.values())).tolist()) == list(range(len(labels)))
    for split in ("val", "test"):
        assert abs(len(chosen[split]) / len(labels) - 0.2) < 0.05
        shares = np.bincount(labels[chosen[split]], minlength=5) / np.bincount(labels)
        assert abs(shares - 0.2).max() < 0.12


@pytest.mark.parametrize("seed", range(5))
def test_folds_of_groups_are_about_as_even_as_those_of_scikit_learn(seed):
    labels, groups = drawn(seed)
    folds = folds_of_units(units_of(labels, groups), 5, np.random.default_rng(seed))
    assert all(len(set(folds[groups == group].tolist())) == 1 for group in set(groups.tolist()))
    theirs = np.empty(len(labels), dtype=int)
    splitter = StratifiedGroupKFold(5, shuffle=True, random_state=seed)
    for number, (_, held_out) in enumerate(splitter.split(labels, labels, groups)):
        theirs[held_out] = number

    def unevenness(fold_of):
        counts = np.stack([np.bincount(labels[fold_of == fold], minlength=5) for fold in range(5)])
        return (counts / counts.sum(axis=0)).std(axis=0).mean()

    assert unevenness(folds) <= unevenness(theirs) + 0.01


@pytest.mark.parametrize("seed", range(5))
def test_several_labels_have_their_share_of_each_to_within_two_images(seed):
    labels = several(seed)
    chosen = cut_splits({"train": labels}, val_fraction=0.25, test_fraction=0, seed=seed)["val"]
    assert abs(len(chosen) - 100) <= 2
    difference = abs(labels[chosen].sum(axis=0) - 0.25 * labels.sum(axis=0))
    random = np.random.default_rng(seed).permutation(len(labels))[: len(chosen)]
    by_chance = abs(labels[random].sum(axis=0) - 0.25 * labels.sum(axis=0))
    assert difference.max() <= 2
    assert difference.sum() < 0.5 * by_chance.sum()


def test_several_labels_and_groups_together():
    labels, groups = several(0), np.arange(400) // 4
    chosen = cut_splits({"train": labels}, val_fraction=0.25, test_fraction=0, seed=0, groups=groups)
    check_whole(groups, *chosen.values())
    assert abs(labels[chosen["val"]].sum(axis=0) / labels.sum(axis=0) - 0.25).max() < 0.15


def test_each_label_is_in_train_and_val_where_two_groups_have_it():
    labels = np.repeat(np.arange(6), [40, 40, 40, 2, 3, 1])
    groups = np.concatenate([np.arange(120) // 4, [100, 101], [200, 201, 202], [300]])
    chosen = cut_splits({"train": labels}, val_fraction=0.05, test_fraction=0.05, seed=1, groups=groups)
    found = {split: set(labels[indices].tolist()) for split, indices in chosen.items()}
    assert found["train"] == set(range(6))
    assert found["val"] == set(range(5))
    assert found["test"] == {0, 1, 2, 4}


def test_a_class_of_one_group_stays_in_train():
    labels = np.array([0] * 8 + [1] * 8)
    groups = np.array([0] * 8 + [1, 1, 2, 2, 3, 3, 4, 4])
    chosen = cut_splits({"train": labels}, val_fraction=0.5, test_fraction=0, seed=0, groups=groups)
    assert set(labels[chosen["val"]].tolist()) == {1}
    assert set(range(8)) <= set(chosen["train"].tolist())


@pytest.mark.parametrize(
    ("labels", "groups", "message"),
    [
        ([0, 1, 0, 1], [7, 7, 7, 7], "No val split can be cut: all training images are one group"),
        ([0, 0, 1, 1], [1, 1, 2, 2], "there are too few groups of each class"),
    ],
)
def test_groups_that_leave_nothing_for_val_are_refused(labels, groups, message):
    with pytest.raises(UserError, match=message):
        cut_splits({"train": np.array(labels)}, val_fraction=0.5, test_fraction=0, seed=0, groups=np.array(groups))


def test_cut_of_groups_depends_on_the_seed_alone():
    labels, groups = drawn(0)
    cuts = [
        cut_splits({"train": labels}, val_fraction=0.2, test_fraction=0, seed=seed, groups=groups)["val"].tolist()
        for seed in (0, 0, 1)
    ]
    assert cuts[0] == cuts[1] != cuts[2]


def test_images_without_a_label_are_spread_too():
    labels = np.zeros((100, 3), dtype=np.float32)
    labels[:40, 0] = labels[20:60, 1] = 1
    labels[50:54, 2] = 1
    chosen = cut_splits({"train": labels}, val_fraction=0.25, test_fraction=0, seed=0)["val"]
    assert len(chosen) == 25
    assert (chosen >= 60).sum() == pytest.approx(10, abs=2)


def test_divide_puts_fixed_units_where_they_belong():
    units = units_of(np.array([0, 0, 1, 1, 0, 1]), np.array([5, 5, 6, 6, 7, 8]))
    part = divide(units, [0.5, 0.5], np.random.default_rng(0), {0: 1, 1: -1})
    assert part[:2] == [1, -1]
    assert set(part[2:]) <= {0, 1}


def test_units_count_labels():
    units = units_of(np.array([[1, 0, 1], [0, 0, 1], [0, 0, 0], [1, 0, 0]], dtype=np.float32), np.array([9, 9, 4, 4]))
    assert units.of.tolist() == [1, 1, 0, 0]
    assert (units.sizes, units.labels) == ([2, 2], [[(0, 1)], [(0, 1), (2, 2)]])
    assert (units.holders, units.alone) == ({0: [0, 1], 2: [1]}, [1])


def test_cut_of_many_classes_takes_seconds():
    labels = np.random.default_rng(0).integers(0, 3000, 30_000)
    part = cut(units_of(labels, np.arange(30_000) // 2), (0.8, 0.2, 0), np.random.default_rng(0))
    assert set(part) == {0, 1}


def test_training_subset_of_several_labels_is_nested_and_has_every_label():
    labels = several(3)
    small, large = (training_subset(labels, fraction=part, per_class=None, seed=0) for part in (0.05, 0.4))
    assert set(small.tolist()) < set(large.tolist())
    assert labels[small].any(axis=0).all()
    assert len(large) == pytest.approx(160, rel=0.1)
    few = training_subset(labels, fraction=None, per_class=2, seed=0)
    assert (labels[few].sum(axis=0) >= 2).all()


def test_lowest_of_labels():
    labels = np.array([[1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0], [1, 1, 1, 0]], dtype=np.float32)
    assert lowest_of_labels(labels, np.array([1, 0, 0, 2])).tolist() == [0, 1, 3]


def test_class_notes_know_several_labels():
    labels = {"train": np.ones((2, 3), dtype=np.float32), "val": np.array([[1, 0, 0], [0, 1, 0]], dtype=np.float32)}
    (note,) = class_notes(labels, ("a", "b", "c"))
    assert note.startswith("val has no image of the class 'c'")
