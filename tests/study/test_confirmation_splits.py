"""What a confirmation is made of: random splits as before, or folds that hold every image out once."""

import dataclasses

import numpy as np
import pytest

from delta_tune.config import StudyConfig, UserError
from delta_tune.data.resampling import resample_splits
from delta_tune.study.confirmation_splits import (
    check_confirmation,
    confirmation_data,
    fresh_seed,
    run_seed,
    split_growth,
    split_sizes,
)


@pytest.fixture
def dataset(task):
    return task.dataset


def with_groups(dataset, count):
    split = len(dataset.train)
    groups = np.arange(split + len(dataset.val)) % count
    return dataclasses.replace(
        dataset,
        train=dataclasses.replace(dataset.train, groups=groups[:split]),
        val=dataclasses.replace(dataset.val, groups=groups[split:]),
    )


def test_random_splits_are_those_of_earlier_versions(dataset):
    found = confirmation_data(dataset, "random", 3, seed=5)
    expected = [resample_splits(dataset, fresh_seed(5, each)) for each in range(3)]
    assert [each.val.names for each in found] == [each.val.names for each in expected]
    assert [run_seed(5, each, "random", 3) for each in range(3)] == [fresh_seed(5, each) for each in range(3)]


def test_folds_hold_every_image_out_once(dataset):
    folds = confirmation_data(dataset, "folds", 4, seed=0)
    held_out = [name for fold in folds for name in fold.val.names]
    assert len(folds) == 4
    first = confirmation_data(dataset, "folds", 4, seed=0, count=2)
    assert [fold.val.names for fold in first] == [fold.val.names for fold in folds[:2]]
    assert sorted(held_out) == sorted((*dataset.train.names, *dataset.val.names))
    train, val = split_sizes(dataset, "folds", 4)
    assert np.mean([len(fold.train) for fold in folds]) == pytest.approx(train)
    assert np.mean([len(fold.val) for fold in folds]) == pytest.approx(val)


def test_runs_on_folds_have_other_seeds_for_each_number_of_folds():
    seeds = {run_seed(0, each, "folds", planned) for planned in (2, 5, 1000) for each in range(planned)}
    assert len(seeds) == 1007
    assert not seeds & {run_seed(0, each, "random", 1000) for each in range(1000)}


def test_more_folds_than_groups_are_refused_before_the_search(dataset):
    config = StudyConfig(confirm=6, confirm_splits="folds")
    assert check_confirmation(config, with_groups(dataset, 6)) is None
    with pytest.raises(UserError, match=r"--confirm 6 with --confirm-splits folds needs as many groups .* only enough"):
        check_confirmation(config, with_groups(dataset, 4))


def test_groups_that_no_split_can_divide_are_refused_before_the_search(dataset):
    with pytest.raises(UserError, match="all training images are one group"):
        check_confirmation(StudyConfig(confirm=2), with_groups(dataset, 1))
    assert check_confirmation(StudyConfig(), with_groups(dataset, 1)) is None


def test_images_in_no_fold_are_counted(dataset):
    labels = dataset.val.labels.copy()
    labels[0] = 1 + max(dataset.train.labels.max(), labels.max())
    alone = dataclasses.replace(dataset, val=dataclasses.replace(dataset.val, labels=labels))
    assert "1 are in no fold" in check_confirmation(StudyConfig(confirm=3, confirm_splits="folds"), alone)


def test_growth_is_that_of_the_training_images(dataset):
    train, val = len(dataset.train), len(dataset.val)
    config = StudyConfig(confirm=10, confirm_splits="folds")
    assert split_growth(config, dataset) == pytest.approx(0.9 * (train + val) / train)
    assert split_growth(StudyConfig(confirm=10), dataset) == 1
    assert split_growth(StudyConfig(confirm_splits="folds"), dataset) == 1
