"""Fresh splits of a study's images, for runs that are repeated."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from delta_tune.data.dataset import Dataset, Split
from delta_tune.data.images import DecodedImages, EncodedImages, PooledImages
from delta_tune.data.splits import Indices, cut_splits


@dataclass(frozen=True, slots=True, eq=False)
class Pool:
    """The images of train and val together; what is drawn from it shares their memory."""

    images: tuple[DecodedImages | EncodedImages | PooledImages, ...]
    places: Indices
    labels: Indices
    names: tuple[str, ...]

    def split(self, positions: Indices) -> Split:
        """The images at these positions of the pool."""
        images = PooledImages(self.images, self.places[positions])
        return Split(images=images, labels=self.labels[positions], names=tuple(self.names[i] for i in positions))


def pool_train_val(dataset: Dataset) -> Pool:
    """Train and val of a data set, in this order."""
    splits = (dataset.train, dataset.val)
    places = [np.stack([np.full(len(s), part), np.arange(len(s))], axis=1) for part, s in enumerate(splits)]
    return Pool(
        images=tuple(split.images for split in splits),
        places=np.concatenate(places),
        labels=np.concatenate([split.labels for split in splits]),
        names=dataset.train.names + dataset.val.names,
    )


def resample_splits(dataset: Dataset, seed: int) -> Dataset:
    """Train and val drawn anew from their union: stratified, of about the same sizes; test stays as it is."""
    pool = pool_train_val(dataset)
    fraction = len(dataset.val) / len(pool.labels)
    cut = cut_splits({"train": pool.labels}, val_fraction=fraction, test_fraction=0, seed=seed)
    return dataclasses.replace(
        dataset,
        train=pool.split(cut["train"]),
        val=pool.split(cut["val"]),
        fingerprint=f"{dataset.fingerprint}-resampled-{seed}",
    )


def merge_val_into_train(dataset: Dataset) -> Dataset:
    """Val joins train, and stays val: what it then scores is no longer unseen."""
    pool = pool_train_val(dataset)
    whole = pool.split(np.arange(len(pool.labels)))
    return dataclasses.replace(dataset, train=whole, fingerprint=f"{dataset.fingerprint}-all")
