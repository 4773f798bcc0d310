"""A data set: images and labels by split."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from delta_tune.config import UserError
from delta_tune.data.images import Preprocessing
from delta_tune.data.names import Names
from delta_tune.data.splits import Indices
from delta_tune.data.stored_images import Images
from delta_tune.labels.kinds import LabelKind, Labels, kind_of


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Split:
    """Images and their labels."""

    images: Images
    labels: Labels
    """Int64 (N,), positions in `Dataset.classes`; or, with several labels an image, float32 (N, K) of 0 and 1."""
    names: Sequence[str]
    """Path, or file and row, of each image (N)."""
    groups: Indices | None = None
    """int64 (N,): equal, in all splits, for images that belong together; None if none do."""

    def __len__(self) -> int:
        return len(self.labels)

    def first(self, count: int) -> Split:
        """The first `count` images; the others stay in memory."""
        groups = None if self.groups is None else self.groups[:count]
        return dataclasses.replace(self, labels=self.labels[:count], names=self.names[:count], groups=groups)

    def taken(self, positions: range) -> Split:
        """The images at these positions; those in memory are copied: the others need not travel with them."""
        images, part = self.images.taken(np.array(positions)), slice(positions.start, positions.stop)
        names = self.names[part]
        names = names.compact() if isinstance(names, Names) else names
        groups = None if self.groups is None else self.groups[part]
        return Split(images=images, labels=self.labels[part], names=names, groups=groups)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Dataset:
    """The splits of a data set."""

    name: str
    """Short name, part of the study's name."""
    classes: tuple[str, ...]
    """In natural order: img2 before img10."""
    train: Split
    val: Split
    test: Split | None
    fingerprint: str
    """Hex digest of classes, labels, image contents and preprocessing."""
    notes: tuple[str, ...]
    """Sentences for the user on how the data was read."""
    preprocessing: Preprocessing
    """How the images were read."""

    @property
    def kind(self) -> LabelKind:
        """What losses and scores need to know of the labels."""
        return kind_of(self.train.labels)

    @property
    def is_multilabel(self) -> bool:
        """Whether an image has any number of labels."""
        return self.train.labels.ndim == 2

    def for_name(self, split: str) -> Split:
        """The split named train, val or test.

        Raises:
            UserError: there is no such split.
        """
        found: Split | None = {"train": self.train, "val": self.val, "test": self.test}.get(split)
        if found is None:
            raise UserError(f"{self.name} has no split {split!r}; add one, or cut it from train with --test-fraction.")
        return found
