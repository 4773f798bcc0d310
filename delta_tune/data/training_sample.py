"""A few training images of a study, read as one backbone or another wants them, before all are read."""

from __future__ import annotations

import dataclasses

import numpy as np

from delta_tune.config import UserError
from delta_tune.data.cutting import CutData
from delta_tune.data.dataset import Dataset, Split
from delta_tune.data.first_look import AskedResize, settle_preprocessing
from delta_tune.data.images import Preprocessing
from delta_tune.data.reader import read_examples
from delta_tune.data.splits import Indices, training_subset
from delta_tune.labels.kinds import Labels


class TrainingSample:
    """Reads images of train; what was read last is given again to a backbone that stores the same squares.

    Args:
        cut: the study's examples.
        resize: as asked.
        white: of `Preprocessing`.
        seed: of which images are taken.
    """

    def __init__(self, cut: CutData, resize: AskedResize, white: float | None, seed: int) -> None:
        self.cut, self._asked, self._white, self._seed = cut, resize, white, seed
        self.labels: Labels = cut.labels_of("train")
        """Of all images of train."""
        self._first: Preprocessing | None = None
        self._last: tuple[object, Split] | None = None

    def positions(self, count: int, per_class: int) -> Indices:
        """About `count` of the images, in the proportions of the classes, but `per_class` of each as far as there are.

        Args:
            count: ≥ 1; a smaller number takes a subset of what a larger one takes.
            per_class: ≥ 1.
        """
        fraction = min(1.0, count / len(self.labels))
        share = training_subset(self.labels, fraction=fraction, per_class=None, seed=self._seed)
        least = training_subset(self.labels, fraction=None, per_class=per_class, seed=self._seed)
        return np.union1d(share, least)

    def settled(self, preprocessing: Preprocessing) -> Preprocessing:
        """The preprocessing with what is decided by the images, as `load_datasets` decides it."""
        if self._first is None:
            given = dataclasses.replace(preprocessing, white=self._white)
            train = self.cut.chosen["train"]
            self._first, _ = settle_preprocessing(given, self._asked, self.cut.examples("train"), train)
        return dataclasses.replace(preprocessing, white=self._white, resize=self._first.resize)

    def read(self, positions: Indices, preprocessing: Preprocessing) -> Dataset:
        """The images at these positions as train and as val, in memory; unreadable ones are left out.

        Args:
            positions: as `positions` returns them.
            preprocessing: as `settled` returns it.

        Raises:
            UserError: none of them can be read.
        """
        key = preprocessing.square, positions.tobytes()
        if self._last is None or self._last[0] != key:
            self._last = key, self._split(positions, preprocessing)
        split = self._last[1]
        return Dataset(
            name=self.cut.source.name,
            classes=self.cut.classes,
            train=split,
            val=split,
            test=None,
            fingerprint=f"sample of {len(split)}",
            notes=(),
            preprocessing=preprocessing,
        )

    def _split(self, positions: Indices, preprocessing: Preprocessing) -> Split:
        found = read_examples(
            self.cut.examples("train"),
            self.cut.chosen["train"][positions],
            preprocessing,
            keeper=None,
            leave_out=None,
            advance=lambda: None,
        )
        if not len(found.kept):
            raise UserError(f"No image of train can be read ({found.damaged[0].args[1]}); repair its images.")
        groups, kept = self.cut.groups_of("train"), positions[found.kept]
        return Split(
            images=found.images,
            labels=self.labels[kept],
            names=found.names,
            groups=None if groups is None else groups[kept],
        )
