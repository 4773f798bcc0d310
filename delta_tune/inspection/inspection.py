"""Everything that `inspect` finds out about a data set, from one pass over its images."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from delta_tune.config import UserError
from delta_tune.data.cutting import cut_data
from delta_tune.data.first_look import settle_preprocessing
from delta_tune.data.images import DamagedImage
from delta_tune.data.label_map import read_label_map
from delta_tune.data.loading import Bar
from delta_tune.data.near_duplicates import find_near_duplicates
from delta_tune.data.thumbnails import Thumbnail, stack
from delta_tune.inspection.images import Form, ImageFacts, read_images
from delta_tune.inspection.labels import LabelReport, judge
from delta_tune.labels.kinds import Labels
from delta_tune.models.backbones import Backbone
from delta_tune.training.frozen_features import FrozenFeatures

SPLITS = ("train", "val", "test")


@dataclass(frozen=True, kw_only=True, slots=True)
class NearPair:
    """Two files that show one picture."""

    first: ImageFacts
    second: ImageFacts
    kind: str
    """What turns one into the other: see `data.near_duplicates.ORIENTATIONS`."""
    difference: float
    """1 - correlation of the small copies."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Inspection:
    """What was found in a data set."""

    name: str
    root: str
    """The folder that all names of images begin with; empty if there is none."""
    notes: tuple[str, ...]
    """On how the source was read, and on names of classes that look alike."""
    classes: tuple[str, ...]
    cut: tuple[str, ...]
    """Splits that the data lacks, cut from train as a study with the same fractions and seed does."""
    images: tuple[ImageFacts, ...]
    damaged: tuple[tuple[str, str], ...]
    """Name and reason of each image that cannot be read."""
    identical: tuple[tuple[ImageFacts, ...], ...]
    """Groups of images whose files are byte for byte the same."""
    near: tuple[NearPair, ...]
    """Of different files; a file that is there several times stands for all of them."""
    blank: tuple[str, ...]
    """Images of one colour."""
    labels: LabelReport | None
    """None if no network looked at the images."""

    def counts(self) -> dict[str, dict[str, int]]:
        """Class → split → number of images that can be read."""
        found = {name: dict.fromkeys(self.splits, 0) for name in self.classes}
        for image in self.images:
            for label in image.labels:
                found[label][image.split] += 1
        return found

    def short(self, name: str) -> str:
        """The name of an image without the folder that holds all."""
        return name.removeprefix(self.root)

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that there are."""
        there = {image.split for image in self.images}
        return tuple(split for split in SPLITS if split in there)


def inspect_data(
    data: str | Path,
    *,
    val_fraction: float = 0.2,
    test_fraction: float = 0.0,
    label_map: str | Path | None = None,
    white: float | None = None,
    channels: int = 3,
    seed: int = 0,
    backbone: Backbone | None = None,
    progress: Bar | None = None,
) -> Inspection:
    """Read every image of a data set once. Of the images only facts and thumbnails of 1 KiB stay in memory.

    Args:
        data: as of a study.
        val_fraction: part of train that a study would take as val where there is none.
        test_fraction: part of train that a study would take as test where there is none; 0 takes none.
        label_map: file that renames, merges or leaves out classes.
        white: value of white in images of more than 8 bits.
        channels: of the images.
        seed: of these splits.
        backbone: judges the labels, if given.
        progress: the bar to advance by each image.

    Raises:
        UserError: the data or an argument is unusable.
    """
    cut = cut_data(
        data,
        task="auto",
        val_fraction=val_fraction,
        test_fraction=test_fraction,
        mapping=None if label_map is None else read_label_map(label_map),
        seed=seed,
    )
    if backbone is not None and cut.labels["train"].ndim > 1:
        raise UserError(
            "--model judges images with one label each, and this data has several an image; leave --model out."
        )
    images: list[ImageFacts] = []
    small: list[Thumbnail] = []
    features: list[np.ndarray] = []
    damaged: list[tuple[str, str]] = []
    frozen, form = None, Form(channels=channels, white=white)
    if backbone is not None:
        preprocessing = dataclasses.replace(backbone.preprocessing, white=white)
        settled, _ = settle_preprocessing(preprocessing, "auto", cut.examples("train"), cut.chosen["train"])
        frozen, form = FrozenFeatures(backbone), dataclasses.replace(form, preprocessing=settled)
    total = sum(map(len, cut.chosen.values()))
    with progress("Reading images", total) if progress else nullcontext(lambda count: None) as advance:
        for split in sorted(cut.chosen, key=SPLITS.index):
            given = names_of(cut.labels_of(split), cut.classes)
            for chunk in read_images(cut.examples(split), cut.chosen[split], given, split, form, lambda: advance(1)):
                damaged += [(str(each.args[0]), str(each.args[1])) for each in chunk if isinstance(each, DamagedImage)]
                sound = [each for each in chunk if not isinstance(each, DamagedImage)]
                images += [facts for facts, _, _ in sound]
                small += [thumbnail for _, thumbnail, _ in sound]
                squares = [pixels for _, _, pixels in sound if pixels is not None]
                if frozen is not None and squares:
                    features.append(frozen.of(np.stack(squares)))
    files, identical = _identical(images)
    near, blank = _near(images, small, files)
    report = None
    if features:
        report = judge(np.concatenate(features), images, cut.classes, one_picture(files, images, near), seed)
    return Inspection(
        name=cut.source.name,
        root=_root(data, [image.name for image in images] + [name for name, _ in damaged]),
        notes=cut.notes,
        classes=cut.classes,
        cut=tuple(split for split in cut.chosen if split not in cut.source.splits),
        images=tuple(images),
        damaged=tuple(damaged),
        identical=identical,
        near=near,
        blank=blank,
        labels=report,
    )


def names_of(labels: Labels, classes: Sequence[str]) -> list[tuple[str, ...]]:
    """The names of each image's labels, (N,) or (N, K)."""
    if labels.ndim == 1:
        return [(classes[int(label)],) for label in labels]
    return [tuple(classes[int(label)] for label in np.flatnonzero(row)) for row in labels]


def _root(data: str | Path, names: Sequence[str]) -> str:
    root = f"{str(data).rstrip('/')}/"
    return root if all(name.startswith(root) for name in names) else ""


def _identical(images: Sequence[ImageFacts]) -> tuple[np.ndarray, tuple[tuple[ImageFacts, ...], ...]]:
    """(N,): the position of the first image with the same file; and the groups of more than one."""
    first: dict[bytes, int] = {}
    groups = np.array([first.setdefault(image.digest, position) for position, image in enumerate(images)], dtype=int)
    members = defaultdict(list)
    for position, group in enumerate(groups.tolist()):
        members[group].append(images[position])
    return groups, tuple(tuple(group) for group in members.values() if len(group) > 1)


def _near(
    images: Sequence[ImageFacts], small: Sequence[Thumbnail], groups: np.ndarray
) -> tuple[tuple[NearPair, ...], tuple[str, ...]]:
    """Pairs of different files that show one picture, and the names of blank images."""
    alone = np.unique(groups)
    thumbnails = stack([small[position] for position in alone])
    found = find_near_duplicates(thumbnails)
    pairs = tuple(
        NearPair(first=images[alone[one]], second=images[alone[other]], kind=kind, difference=difference)
        for (one, other), kind, difference in zip(
            found.pairs.tolist(), found.kinds, found.differences.tolist(), strict=True
        )
    )
    return pairs, tuple(images[alone[position]].name for position in np.flatnonzero(thumbnails.is_blank))


def one_picture(groups: np.ndarray, images: Sequence[ImageFacts], near: Sequence[NearPair]) -> np.ndarray:
    """(N,): the same number for images that show one picture."""
    position = {image.digest: int(group) for image, group in zip(images, groups, strict=True)}
    above = {group: group for group in position.values()}

    def root(group: int) -> int:
        while above[group] != group:
            above[group] = above[above[group]]
            group = above[group]
        return group

    for pair in near:
        above[root(position[pair.first.digest])] = root(position[pair.second.digest])
    return np.array([root(int(group)) for group in groups], dtype=np.int64)
