from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from delta_tune.data.images import to_png
from delta_tune.data.resampling import (
    first_images,
    hold_out_folds,
    merge_val_into_train,
    pool_splits,
    resample_splits,
)
from delta_tune.data.stored_images import EncodedImages, pack_files


def contents(split):
    """Name, label and pixels of each image."""
    pixels = split.images.batch(np.arange(len(split)))
    return {name: (label, each.tobytes()) for name, label, each in zip(split.names, split.labels, pixels, strict=True)}


@pytest.fixture
def dataset(task):
    return task.dataset


def test_resampled_splits_hold_the_same_images_once(dataset):
    fresh = resample_splits(dataset, seed=3)
    before = contents(dataset.train) | contents(dataset.val)
    assert contents(fresh.train) | contents(fresh.val) == before
    assert not set(fresh.train.names) & set(fresh.val.names)
    assert fresh.test is dataset.test


def test_resampled_splits_have_their_sizes_in_each_class(dataset):
    fresh = resample_splits(dataset, seed=3)
    assert np.bincount(fresh.train.labels).tolist() == np.bincount(dataset.train.labels).tolist()
    assert np.bincount(fresh.val.labels).tolist() == np.bincount(dataset.val.labels).tolist()


def test_resampled_splits_follow_from_the_seed(dataset):
    assert resample_splits(dataset, seed=3).val.names == resample_splits(dataset, seed=3).val.names
    assert resample_splits(dataset, seed=3).val.names != resample_splits(dataset, seed=4).val.names
    assert resample_splits(dataset, seed=3).fingerprint != resample_splits(dataset, seed=4).fingerprint


def test_resampled_of_resampled_still_finds_its_images(dataset):
    twice = resample_splits(resample_splits(dataset, seed=1), seed=2)
    before = contents(dataset.train) | contents(dataset.val)
    assert contents(twice.train) | contents(twice.val) == before


def test_batches_of_a_pool_are_in_the_order_that_was_asked_for(dataset):
    train = resample_splits(dataset, seed=3).train
    order = np.random.default_rng(0).permutation(len(train))[:9]
    one_by_one = np.concatenate([train.images.batch(np.array([i])) for i in order])
    assert np.array_equal(train.images.batch(order), one_by_one)


def test_all_for_training_adds_val_to_train(dataset):
    whole = merge_val_into_train(dataset)
    assert contents(whole.train) == contents(dataset.train) | contents(dataset.val)
    assert contents(whole.val) == contents(dataset.val)


@pytest.mark.parametrize("kind", ["decoded", "encoded", "pooled"])
def test_first_images_are_the_same_and_hold_no_others(dataset, kind):
    if kind == "encoded":
        files = [to_png(pixels) for pixels in dataset.train.images.batch(np.arange(len(dataset.train)))]
        images = EncodedImages(pack_files(files), dataset.preprocessing)
        dataset = dataclasses.replace(dataset, train=dataclasses.replace(dataset.train, images=images))
    elif kind == "pooled":
        dataset = resample_splits(dataset, seed=3)
    few = first_images(dataset, 5)
    assert contents(few.train) == contents(dataset.train.first(5))
    assert (len(few.train.images), len(few.val.images), few.test) == (5, 5, None)
    assert few.fingerprint != dataset.fingerprint


def test_first_images_of_a_small_set_are_all(dataset):
    assert len(first_images(dataset, 1000).val) == len(dataset.val)


def test_each_image_is_held_out_once_and_trained_on_by_all_others(dataset):
    whole = contents(dataset.train) | contents(dataset.val)
    folds = hold_out_folds(dataset, 10, seed=3)
    assert len(folds) == 10
    assert sorted(name for fold in folds for name in fold.val.names) == sorted(whole)
    for fold in folds:
        assert contents(fold.train) | contents(fold.val) == whole
        assert not set(fold.train.names) & set(fold.val.names)
        assert fold.test is dataset.test


def test_folds_are_stratified_and_of_about_one_size(dataset):
    folds = hold_out_folds(dataset, 10, seed=3)
    counts = np.array([np.bincount(fold.val.labels, minlength=3) for fold in folds])
    assert counts.sum(0).tolist() == [18, 18, 18]
    assert counts.min() == 1
    assert counts.max() == 2
    assert set(counts.sum(1)) == {5, 6}


def test_folds_follow_from_the_seed(dataset):
    one, same, other = (hold_out_folds(dataset, 4, seed=seed) for seed in (3, 3, 4))
    assert [fold.val.names for fold in one] == [fold.val.names for fold in same]
    assert [fold.val.names for fold in one] != [fold.val.names for fold in other]
    assert len({fold.fingerprint for fold in (*one, *other)}) == 8


def test_only_image_of_a_class_is_never_held_out_and_empty_folds_are_left_away(dataset):
    few = dataclasses.replace(dataset, train=dataset.train.taken(range(11, 14)), val=dataset.val.taken(range(6, 7)))
    assert few.train.labels.tolist() + few.val.labels.tolist() == [0, 1, 1, 1]
    folds = hold_out_folds(few, 10, seed=0)
    assert [fold.val.labels.tolist() for fold in folds] == [[1], [1], [1]]
    for fold in folds:
        assert sorted(fold.train.labels) == [0, 1, 1]


def test_pooled_splits_hold_the_images_of_all_in_their_order(dataset):
    folds = hold_out_folds(dataset, 10, seed=3)
    pooled = pool_splits([folds[4].val, folds[1].val])
    assert pooled.names == folds[4].val.names + folds[1].val.names
    assert contents(pooled) == contents(folds[4].val) | contents(folds[1].val)


def with_groups(dataset, count):
    """The data set, whose images are in so many groups, some of them in train and val."""
    groups = np.random.default_rng(0).integers(0, count, len(dataset.train) + len(dataset.val))
    split = len(dataset.train)
    return dataclasses.replace(
        dataset,
        train=dataclasses.replace(dataset.train, groups=groups[:split]),
        val=dataclasses.replace(dataset.val, groups=groups[split:]),
    )


def groups_by_name(*splits):
    return {name: group for split in splits for name, group in zip(split.names, split.groups.tolist(), strict=True)}


def test_resampled_splits_keep_groups_whole(dataset):
    grouped = with_groups(dataset, 12)
    fresh = resample_splits(grouped, seed=3)
    assert groups_by_name(fresh.train, fresh.val) == groups_by_name(grouped.train, grouped.val)
    assert not set(fresh.train.groups.tolist()) & set(fresh.val.groups.tolist())


def test_folds_keep_groups_whole_and_hold_each_image_out_once(dataset):
    grouped = with_groups(dataset, 12)
    folds = hold_out_folds(grouped, 4, seed=0)
    assert len(folds) == 4
    for fold in folds:
        assert not set(fold.train.groups.tolist()) & set(fold.val.groups.tolist())
    held_out = [name for fold in folds for name in fold.val.names]
    assert sorted(held_out) == sorted((*dataset.train.names, *dataset.val.names))


def test_fewer_groups_than_folds_make_fewer_folds(dataset):
    assert 1 < len(hold_out_folds(with_groups(dataset, 3), 10, seed=0)) <= 3


def test_groups_stay_with_their_images(dataset):
    grouped = with_groups(dataset, 12)
    expected = groups_by_name(grouped.train, grouped.val)
    whole = merge_val_into_train(grouped).train
    for split in (whole, whole.first(5), whole.taken(range(2, 7)), pool_splits([grouped.val, grouped.train])):
        assert groups_by_name(split).items() <= expected.items()
