"""A study's data: cut splits by index, then read only the images that are used and keep them in memory."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil

from delta_tune.config import StudyConfig, TrialConfig, UserError, fields_of
from delta_tune.console.format import format_bytes
from delta_tune.data.class_names import alike_notes, in_one_form, sorted_classes
from delta_tune.data.images import (
    DamagedImage,
    DecodedImages,
    EncodedImages,
    PooledImages,
    Preprocessing,
    open_image,
    to_square,
)
from delta_tune.data.reader import ReadExamples, read_examples
from delta_tune.data.sources.base import Examples
from delta_tune.data.sources.find import find_source
from delta_tune.data.splits import Indices, class_notes, cut_splits, format_list, size_notes, training_subset

__all__ = [
    "Bar",
    "DamagedImage",
    "Dataset",
    "DecodedImages",
    "EncodedImages",
    "Preprocessing",
    "Split",
    "load_dataset",
    "open_image",
    "to_square",
]

Bar = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
"""A progress bar: takes text and total; yields a function to call with each amount done."""

_DEMO_PER_CLASS = 10


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Split:
    """Images and their labels."""

    images: DecodedImages | EncodedImages | PooledImages
    labels: Indices
    """int64 (N,), positions in `Dataset.classes`."""
    names: tuple[str, ...]
    """Path, or file and row, of each image (N)."""

    def __len__(self) -> int:
        return len(self.labels)

    def first(self, count: int) -> Split:
        """The first `count` images; the others stay in memory."""
        return dataclasses.replace(self, labels=self.labels[:count], names=self.names[:count])

    def taken(self, positions: range) -> Split:
        """The images at these positions, copied: the others need not travel with them."""
        images = self.images.taken(np.array(positions))
        part = slice(positions.start, positions.stop)
        return Split(images=images, labels=self.labels[part], names=self.names[part])


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

    def for_name(self, split: str) -> Split:
        """The split named train, val or test.

        Raises:
            UserError: there is no such split.
        """
        found: Split | None = {"train": self.train, "val": self.val, "test": self.test}.get(split)
        if found is None:
            raise UserError(f"{self.name} has no split {split!r}; add one, or cut it from train with --test-fraction.")
        return found


def load_dataset(
    data: str | Path,
    *,
    preprocessing: Preprocessing,
    val_fraction: float = 0.2,
    test_fraction: float = 0.0,
    train_fraction: float | None = None,
    train_per_class: int | None = None,
    skip_damaged: bool = False,
    drop_duplicates: bool = False,
    seed: int = 0,
    progress: Bar | None = None,
    memory_limit: int | None = None,
) -> Dataset:
    """Read the splits of `data`; those it lacks are cut from train, stratified and seeded.

    With the same seed, a smaller `train_fraction` or `train_per_class` takes a subset of what a larger one takes.

    Args:
        data: image folder, Parquet file or folder, here or at an address; torchvision:NAME, or demo.
        preprocessing: of the backbone.
        val_fraction: part of train that becomes val where there is none, in (0, 1).
        test_fraction: part of train that becomes test where there is none, in [0, 1); 0 cuts none.
        train_fraction: part of what is then left of train that is used, in (0, 1].
        train_per_class: images of each class that are used instead, ≥ 1; the demo takes 10 if neither is given.
        skip_damaged: leave unreadable images out and say so, instead of refusing.
        drop_duplicates: take images that also stand in val or test out of train.
        seed: of the splits, ≥ 0.
        progress: the bar to advance by each image, such as `console.progress.Progress.bar`.
        memory_limit: bytes that decoded images may take before they are kept encoded (half of what is available).

    Raises:
        UserError: the data or an argument is unusable.
    """
    _check_arguments(val_fraction, test_fraction, train_fraction, train_per_class, seed)
    if data == "demo" and train_fraction is None and train_per_class is None:
        train_per_class = _DEMO_PER_CLASS
    source = find_source(data, seed=seed)
    class_names, notes = in_one_form({split: examples.labels for split, examples in source.splits.items()})
    notes = [*source.notes, *notes]
    classes = sorted_classes(class_names)
    notes += alike_notes(classes)
    number = {name: label for label, name in enumerate(classes)}
    labels = {split: np.array([number[name] for name in found], dtype=np.int64) for split, found in class_names.items()}
    if test_fraction and "test" in labels:
        notes.append(f"The data has its own test split, so test_fraction {test_fraction!r} is not used.")
    chosen = cut_splits(labels, val_fraction=val_fraction, test_fraction=test_fraction, seed=seed)
    cut = {"val": val_fraction, "test": test_fraction}
    notes += size_notes(chosen, {split: cut[split] for split in cut if split in chosen and split not in labels})
    if train_fraction is not None or train_per_class is not None:
        train = chosen["train"]
        notes += _too_few_notes(labels["train"][train], classes, train_per_class)
        part = training_subset(labels["train"][train], fraction=train_fraction, per_class=train_per_class, seed=seed)
        chosen["train"] = train[part]

    num_images = sum(len(indices) for indices in chosen.values())
    decoded_size = num_images * preprocessing.stored_size**2 * 3
    limit = psutil.virtual_memory().available // 2 if memory_limit is None else memory_limit
    examples = {split: source.splits.get(split, source.splits["train"]) for split in chosen}
    with progress("Reading images", num_images) if progress else nullcontext(lambda count: None) as advance:
        found = _read_splits(
            examples,
            chosen,
            preprocessing,
            decode=decoded_size <= limit,
            drop_duplicates=drop_duplicates,
            advance=lambda: advance(1),
        )
    notes += _left_out_notes(found, skip_damaged)
    splits, digests = {}, {split: read.digests for split, read in found.items()}
    for split, read in found.items():
        kept = chosen[split][read.kept]
        names = tuple(examples[split].names[index] for index in kept.tolist())
        splits[split] = Split(images=read.images, labels=labels.get(split, labels["train"])[kept], names=names)
    _check_filled(splits, classes)
    notes += _duplicate_notes(digests, drop_duplicates)
    notes += _contradiction_notes(splits, digests, classes)
    notes += class_notes({name: split.labels for name, split in splits.items()}, classes)
    notes.append(_memory_note(splits, decoded_size, limit))
    return Dataset(
        name=source.name,
        classes=classes,
        train=splits["train"],
        val=splits["val"],
        test=splits.get("test"),
        fingerprint=_fingerprint(classes, preprocessing, splits, digests),
        notes=tuple(notes),
    )


def _read_splits(
    examples: dict[str, Examples],
    chosen: dict[str, Indices],
    preprocessing: Preprocessing,
    *,
    decode: bool,
    drop_duplicates: bool,
    advance: Callable[[], None],
) -> dict[str, ReadExamples]:
    """Read each split. Train comes last, so duplicates of other splits are known before they are decoded."""
    found: dict[str, ReadExamples] = {}
    for split in sorted(chosen, key=["test", "val", "train"].index):
        leave_out: set[bytes] = set()
        if split == "train" and drop_duplicates:
            leave_out = leave_out.union(*(read.digests for read in found.values()))
        found[split] = read_examples(
            examples[split],
            chosen[split],
            preprocessing,
            decode=decode,
            leave_out=leave_out,
            advance=advance,
        )
    return found


def _check_arguments(
    val_fraction: float, test_fraction: float, train_fraction: float | None, train_per_class: int | None, seed: int
) -> None:
    allowed = fields_of(StudyConfig)
    allowed["val_fraction"].check_range(val_fraction)
    allowed["test_fraction"].check_range(test_fraction)
    allowed["train_fraction"].check_range(train_fraction)
    allowed["train_per_class"].check_range(train_per_class)
    fields_of(TrialConfig)["seed"].check_range(seed)
    if train_fraction is not None and train_per_class is not None:
        raise UserError(
            f"Only one of train_fraction and train_per_class may be given, but got {train_fraction!r} and "
            f"{train_per_class!r}; leave one out."
        )


def _fingerprint(
    classes: Sequence[str],
    preprocessing: Preprocessing,
    splits: dict[str, Split],
    digests: dict[str, list[bytes]],
) -> str:
    total = hashlib.sha256(json.dumps([classes, dataclasses.asdict(preprocessing)]).encode())
    for name in sorted(splits):
        total.update(f"{name} {len(splits[name])} ".encode())
        total.update(splits[name].labels.astype("<i8").tobytes())
        total.update(b"".join(digests[name]))
    return total.hexdigest()


def _too_few_notes(labels: Indices, classes: Sequence[str], per_class: int | None) -> list[str]:
    available = np.bincount(labels, minlength=len(classes)).tolist()
    short = [f"{name} {count}" for name, count in zip(classes, available, strict=True) if count < (per_class or 0)]
    if not short:
        return []
    return [f"Classes with fewer than {per_class} training images use all they have: {format_list(short, 5)}."]


def _left_out_notes(found: dict[str, ReadExamples], skip_damaged: bool) -> list[str]:
    """Notes on images that were left out, and why.

    Raises:
        UserError: images are damaged and `skip_damaged` is off.
    """
    notes = []
    if count := sum(read.num_left_out for read in found.values()):
        notes.append(f"{_images(count)} of train are also in val or test and were removed from train.")
    if damaged := [error.args for read in found.values() for error in read.damaged]:
        which = format_list([f"{name} ({reason})" for name, reason in damaged], 3)
        if not skip_damaged:
            raise UserError(
                f"{_images(len(damaged))} cannot be read: {which}; repair or remove them, or pass --skip-damaged."
            )
        notes.append(f"{_images(len(damaged))} could not be read and were left out: {which}.")
    return notes


def _duplicate_notes(digests: dict[str, list[bytes]], drop_duplicates: bool) -> list[str]:
    """Notes on images that are in two splits."""
    notes = []
    for one, other in (("train", "val"), ("train", "test"), ("val", "test")):
        there = set(digests.get(other, []))
        if count := sum(digest in there for digest in digests.get(one, [])):
            advice = "; --drop-duplicates removes them from train" if one == "train" and not drop_duplicates else ""
            notes.append(f"{_images(count)} of {one} also in {other} (identical files){advice}.")
    return notes


def _contradiction_notes(
    splits: dict[str, Split], digests: dict[str, list[bytes]], classes: Sequence[str]
) -> list[str]:
    """A note on images that are in two classes."""
    first: dict[bytes, tuple[int, str]] = {}
    pairs: dict[bytes, str] = {}
    for split, found in digests.items():
        for digest, label, name in zip(found, splits[split].labels.tolist(), splits[split].names, strict=True):
            label_before, name_before = first.setdefault(digest, (label, name))
            if label != label_before:
                pairs.setdefault(digest, f"{name_before} is {classes[label_before]!r}, {name} is {classes[label]!r}")
    if not pairs:
        return []
    return [
        f"{_images(len(pairs))} in more than one class, byte for byte: {format_list(list(pairs.values()), 3)}; leave "
        f"each in one class."
    ]


def _memory_note(splits: dict[str, Split], decoded_size: int, limit: int) -> str:
    """A note on whether images are kept decoded, and why."""
    if decoded_size <= limit:
        return f"The images are kept decoded ({format_bytes(decoded_size)} of at most {format_bytes(limit)})."
    files = sum(split.images.encoded.nbytes for split in splits.values() if isinstance(split.images, EncodedImages))
    return (
        f"The images are kept encoded ({format_bytes(files)}) and decoded per batch: decoded, they would take "
        f"{format_bytes(decoded_size)}, more than the limit of {format_bytes(limit)}."
    )


def _check_filled(splits: dict[str, Split], classes: Sequence[str]) -> None:
    counts = Counter(splits["train"].labels.tolist())
    if empty := [repr(name) for label, name in enumerate(classes) if not counts[label]]:
        raise UserError(
            f"The class {format_list(empty, 3)} is too small: no training image of it is left after removing "
            "damaged and duplicate images; add images, or remove the class."
        )
    for name, split in splits.items():
        if not len(split):
            raise UserError(
                f"No image of {name} can be read; repair its images, or remove the split to cut it from train."
            )


def _images(count: int) -> str:
    return "1 image" if count == 1 else f"{count} images"
