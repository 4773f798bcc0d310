"""Other splits of a study's images: new ones for repeated runs, and small ones to try something on."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from delta_tune.data.dataset import Dataset, Split
from delta_tune.data.names import Names, taken
from delta_tune.data.splits import Indices, cut_splits, training_subset
from delta_tune.data.stored_images import Images, PooledImages
from delta_tune.data.stratify import folds_of_units, units_of
from delta_tune.labels.kinds import Labels


@dataclass(frozen=True, slots=True, eq=False)
class Pool:
    """The images of train and val together; splits drawn from it share their memory."""

    images: tuple[Images, ...]
    locations: Indices
    labels: Labels
    names: Sequence[str]
    groups: Indices | None

    def split(self, positions: Indices) -> Split:
        """A split of the images at these positions."""
        images = PooledImages(self.images, self.locations[positions])
        return Split(
            images=images,
            labels=self.labels[positions],
            names=taken(self.names, positions),
            groups=None if self.groups is None else self.groups[positions],
        )


def pool_train_val(dataset: Dataset) -> Pool:
    """Pool train and val, in this order."""
    return _pool((dataset.train, dataset.val))


def pool_splits(splits: Sequence[Split]) -> Split:
    """The images of all splits, in order, without a copy."""
    pool = _pool(splits)
    return pool.split(np.arange(len(pool.labels)))


def _pool(splits: Sequence[Split]) -> Pool:
    locations = [np.stack([np.full(len(s), part), np.arange(len(s))], axis=1) for part, s in enumerate(splits)]
    return Pool(
        images=tuple(split.images for split in splits),
        locations=np.concatenate(locations),
        labels=np.concatenate([split.labels for split in splits]),
        names=Names.of(name for split in splits for name in split.names),
        groups=_pooled_groups(splits),
    )


def _pooled_groups(splits: Sequence[Split]) -> Indices | None:
    """The groups of all images in order; None unless all splits have some."""
    found = [split.groups for split in splits if split.groups is not None]
    return np.concatenate(found) if len(found) == len(splits) else None


def resample_splits(dataset: Dataset, seed: int) -> Dataset:
    """Draw new train and val splits from their union: stratified, about the same sizes; test stays the same.

    Groups stay whole, those too that the data itself has in both splits.

    Raises:
        UserError: there are too few groups.
    """
    pool = pool_train_val(dataset)
    fraction = len(dataset.val) / len(pool.labels)
    cut = cut_splits({"train": pool.labels}, val_fraction=fraction, test_fraction=0, seed=seed, groups=pool.groups)
    return dataclasses.replace(
        dataset,
        train=pool.split(cut["train"]),
        val=pool.split(cut["val"]),
        fingerprint=f"{dataset.fingerprint}-resampled-{seed}",
    )


def merge_val_into_train(dataset: Dataset) -> Dataset:
    """Add val to train; val itself stays, but its scores are then no longer on unseen images."""
    pool = pool_train_val(dataset)
    whole = pool.split(np.arange(len(pool.labels)))
    return dataclasses.replace(dataset, train=whole, fingerprint=f"{dataset.fingerprint}-all")


def hold_out_folds(dataset: Dataset, folds: int, seed: int) -> list[Dataset]:
    """Data sets that each hold another fold of train and val out as val, and train on the rest; test stays the same.

    The folds are stratified and keep groups whole. An image that is the only one of its class, or a group that is, is
    in no fold: every run trains on it.

    Args:
        dataset: whose images are shared.
        folds: ≥ 2. Where no class has as many images or groups, some hold nothing out and are left away.
        seed: of the draw.
    """
    pool, rng = pool_train_val(dataset), np.random.default_rng(seed)
    if pool.groups is None and pool.labels.ndim == 1:
        fold_of = _deal(pool.labels.astype(np.int64, copy=False), folds, rng)
    else:
        fold_of = folds_of_units(units_of(pool.labels, pool.groups), folds, rng)
    return [
        dataclasses.replace(
            dataset,
            train=pool.split(np.flatnonzero(fold_of != fold)),
            val=pool.split(np.flatnonzero(fold_of == fold)),
            fingerprint=f"{dataset.fingerprint}-fold-{fold}-of-{folds}-{seed}",
        )
        for fold in range(folds)
        if (fold_of == fold).any()
    ]


def _deal(labels: Indices, folds: int, rng: np.random.Generator) -> Indices:
    """The fold of each image (N,), dealt class by class; -1 for one that is the only one of its class."""
    fold_of, dealt = np.full(len(labels), -1), 0
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        if len(members) > 1:
            fold_of[members] = (dealt + np.arange(len(members))) % folds
            dealt += len(members)
    return fold_of


def first_images(dataset: Dataset, count: int) -> Dataset:
    """A data set of the first `count` images of train and val, copied: the others need not travel with it."""
    return dataclasses.replace(
        dataset,
        train=dataset.train.taken(range(min(count, len(dataset.train)))),
        val=dataset.val.taken(range(min(count, len(dataset.val)))),
        test=None,
        fingerprint=f"{dataset.fingerprint}-first-{count}",
    )


def sample_images(dataset: Dataset, fraction: float, per_class: int, seed: int) -> Dataset:
    """A stratified part of train and of val, with `per_class` images of each class at least, as far as there are.

    Args:
        dataset: whose images are shared.
        fraction: of each class, in (0, 1).
        per_class: ≥ 1.
        seed: of the draw.
    """
    pool, begin, found = pool_train_val(dataset), 0, []
    for split in (dataset.train, dataset.val):
        share = training_subset(split.labels, fraction=fraction, per_class=None, seed=seed)
        least = training_subset(split.labels, fraction=None, per_class=per_class, seed=seed)
        found.append(pool.split(begin + np.union1d(share, least)))
        begin += len(split)
    train, val = found
    return dataclasses.replace(dataset, train=train, val=val, fingerprint=f"{dataset.fingerprint}-sample")
