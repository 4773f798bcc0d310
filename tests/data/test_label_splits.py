"""Data with several labels an image: splits, folds and samples keep the shares of the labels."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from helpers.several_labels import COLOURS, coloured_squares, source_of

from delta_tune.config import ImageSettings
from delta_tune.data.images import Preprocessing
from delta_tune.data.loading import load_dataset
from delta_tune.data.mixing import mix
from delta_tune.data.resampling import hold_out_folds, merge_val_into_train, resample_splits, sample_images
from delta_tune.data.sources.base import Source

PREPROCESSING = Preprocessing(
    image_size=32, stored_size=32, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), interpolation="bilinear"
)


def load(source, **options):
    with source_of(source):
        return load_dataset("squares", preprocessing=PREPROCESSING, **options)


@pytest.fixture(scope="module")
def source():
    return coloured_squares({"train": 300}, size=32)


@pytest.fixture(scope="module")
def dataset(source):
    return load(source)


def test_labels_are_a_matrix(dataset, source):
    assert dataset.is_multilabel
    assert dataset.classes == COLOURS
    assert dataset.train.labels.dtype == np.float32
    for name, row in zip(dataset.train.names, dataset.train.labels, strict=True):
        at = source.splits["train"].names.index(name)
        assert tuple(np.array(COLOURS)[row > 0]) == source.splits["train"].labels[at]


def test_split_has_its_fraction_of_each_label(dataset):
    every = np.concatenate([dataset.train.labels, dataset.val.labels])
    assert len(dataset.val) == 60
    np.testing.assert_allclose(dataset.val.labels.sum(0), every.sum(0) / 5, atol=4)


def test_plan_says_how_many_labels_an_image_has(dataset):
    assert any(note.startswith("Several labels an image: 1.0 on average, 3 at most") for note in dataset.notes)


def test_task_is_part_of_the_fingerprint(source):
    plain = dataclasses.replace(source.splits["train"], labels=[COLOURS[n % 3] for n in range(300)])
    one = load(Source(name="squares", splits={"train": plain}))
    several = load(Source(name="squares", splits={"train": plain}), task="multilabel")
    assert several.is_multilabel
    assert not one.is_multilabel
    assert one.fingerprint != several.fingerprint


def test_folds_hold_each_image_out_once_and_share_the_labels(dataset):
    folds = hold_out_folds(dataset, 5, seed=0)
    held = [name for fold in folds for name in fold.val.names]
    assert sorted(held) == sorted(dataset.train.names + dataset.val.names)
    total = sum(fold.val.labels.sum(0) for fold in folds)
    for fold in folds:
        np.testing.assert_allclose(fold.val.labels.sum(0), total / 5, atol=4)


@pytest.mark.parametrize(
    "make",
    [lambda data: resample_splits(data, 3), merge_val_into_train, lambda data: sample_images(data, 0.3, 5, 0)],
)
def test_images_keep_their_labels_in_other_splits(dataset, make):
    known = dict(
        zip(dataset.train.names + dataset.val.names, [*dataset.train.labels, *dataset.val.labels], strict=True)
    )
    found = make(dataset)
    for split in (found.train, found.val):
        assert all((known[name] == row).all() for name, row in zip(split.names, split.labels, strict=True))
        assert split.labels.any(0).all()


def test_training_images_per_class_are_at_least_so_many_of_each_label(source):
    train = load(source, train_per_class=6).train
    assert (train.labels.sum(0) >= 6).all()
    assert 24 <= len(train) <= 27  # of each label as the rarest one, and of none; the first of each label besides


def test_image_with_two_sets_of_labels_is_named(source):
    read = source.splits["train"].read

    def examples(labels, read):
        names = [f"{id(labels)}-{n}" for n in range(len(labels))]
        return dataclasses.replace(source.splits["train"], labels=labels, names=names, read=read)

    train = examples([("blue", "red"), (), ("green",)], lambda n: read(max(n, 1)))  # the first two are one image
    val = examples([("blue",), ("green",)], lambda n: read(n + 10))
    notes = load(Source(name="squares", splits={"train": train, "val": val})).notes
    assert any("-0 is 'blue' and 'red', " in note and "-1 is no label" in note for note in notes)


def test_mixed_images_have_shares_of_both_labels():
    labels = torch.tensor([[1.0, 1, 0], [0, 1, 0]])
    settings = ImageSettings(augmentation="none", mixup=1.0)
    images = torch.stack([torch.zeros(3, 4, 4), torch.ones(3, 4, 4)])
    mixed, shares = mix(images, labels, 3, settings, torch.Generator().manual_seed(0))
    own = 1 - mixed[0].mean()
    torch.testing.assert_close(
        shares, torch.stack([own * labels[0] + (1 - own) * labels[1], own * labels[1] + (1 - own) * labels[0]])
    )
