"""Load a study's data: cut its splits, then read only the images that are used and keep them in memory."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from delta_tune.config import UserError
from delta_tune.console.format import format_count
from delta_tune.data.cutting import CutData, cut_for_study, list_examples
from delta_tune.data.dataset import Dataset, Split
from delta_tune.data.encoding import Digests
from delta_tune.data.file_keeper import FileKeeper, MemoryBudget
from delta_tune.data.first_look import AskedResize, settle_preprocessing
from delta_tune.data.images import Preprocessing
from delta_tune.data.label_map import read_label_map
from delta_tune.data.memory import memory_for_images
from delta_tune.data.packed_images import findable, pack_folder
from delta_tune.data.reader import ReadExamples, read_examples
from delta_tune.data.reading_notes import (
    contradiction_notes,
    duplicate_notes,
    memory_notes,
    near_duplicate_notes,
)
from delta_tune.data.sources.base import Examples
from delta_tune.data.splits import Indices, class_notes, format_list
from delta_tune.labels.kinds import kind_of

Bar = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
"""A progress bar: takes text and total; yields a function to call with each amount done."""


def load_dataset(data: str | Path, *, preprocessing: Preprocessing, **options: Any) -> Dataset:
    """Read the splits of `data` for one backbone.

    Args:
        data: image folder, Parquet file or folder, table, shards, here or at an address; torchvision:NAME, or demo.
        preprocessing: of the backbone.
        **options: further arguments of `load_datasets`.

    Raises:
        UserError: the data or an argument is unusable.
    """
    (found,) = load_datasets(data, preprocessings=[preprocessing], **options)
    return found


def load_datasets(
    data: str | Path,
    *,
    preprocessings: Sequence[Preprocessing],
    skip_damaged: bool = False,
    drop_duplicates: bool = False,
    label_map: str | Path | None = None,
    seed: int = 0,
    progress: Bar | None = None,
    memory_limit: int | None = None,
    scratch: str | None = None,
    resize: AskedResize = "auto",
    white: float | None = None,
    cut: CutData | None = None,
    **cutting: Any,
) -> list[Dataset]:
    """Read the same splits for several backbones; those that store the same squares share them.

    Args:
        data: as of `load_dataset`.
        preprocessings: of the backbones, ≥ 1.
        skip_damaged: leave unreadable images out and say so, instead of refusing.
        drop_duplicates: take images that also stand in val or test out of train.
        label_map: as of `cut_for_study`.
        seed: as of `cut_for_study`.
        progress: the bar to advance by each image, such as `console.progress.Progress.bar`.
        memory_limit: bytes that images may take in memory (half of what is available): decoded, else as files; splits
            whose files do not fit are read from disk.
        scratch: folder on each node's disk to which these are copied. By default (`packs.SCRATCH`) image files that
            are kept as they are stay where they are.
        resize: crop, squash or letterbox of `Preprocessing`, whose own does not count; auto is decided by the shapes
            of the training images.
        white: of `Preprocessing`, whose own does not count.
        cut: what `cut_for_study` returned for the same arguments, if that has been called.
        **cutting: further arguments of `cut_for_study`.

    Returns:
        A data set for each backbone, in order.

    Raises:
        UserError: the data or an argument is unusable.
    """
    cut = cut or cut_for_study(data, label_map=label_map, seed=seed, **cutting)
    mapping = None if label_map is None else read_label_map(label_map)
    classes, chosen, notes = cut.classes, cut.chosen, [*cut.notes, *cut.cut_notes]
    examples = {split: cut.examples(split) for split in chosen}
    first, told = settle_preprocessing(
        dataclasses.replace(preprocessings[0], white=white), resize, examples["train"], chosen["train"]
    )
    notes += told if data != "demo" else []  # whose digits are grey
    settled = [dataclasses.replace(each, white=white, resize=first.resize) for each in preprocessings]
    distinct = {each.square: each for each in reversed(settled)}  # of equal ones the first
    num_images = sum(len(indices) for indices in chosen.values())
    decoded_size = num_images * sum(each.stored_size**2 * each.channels for each in distinct.values())
    limit = memory_for_images(memory_limit)
    budget = MemoryBudget(limit)

    def read(preprocessing: Preprocessing) -> dict[str, ReadExamples]:
        folder = pack_folder(data, preprocessing, scratch)

        def keeper(split: str) -> FileKeeper | None:
            if decoded_size <= limit:
                return None
            find = partial(list_examples, findable(data), seed, mapping)
            copy = scratch is not None
            return FileKeeper(budget, find, cut.origin(split), len(chosen[split]), preprocessing, folder, copy)

        with progress("Reading images", num_images) if progress else nullcontext(lambda count: None) as advance:
            return _read_splits(
                examples,
                chosen,
                preprocessing,
                keeper=keeper,
                drop_duplicates=drop_duplicates,
                advance=lambda: advance(1),
            )

    squares = {key: read(preprocessing) for key, preprocessing in distinct.items()}
    found = squares[first.square]
    notes += _left_out_notes(found, skip_damaged)
    digests = {split: read.digests for split, read in found.items()}
    splits = {key: _splits(cut, read) for key, read in squares.items()}
    of_first = splits[first.square]
    _check_filled(of_first, classes)
    notes += duplicate_notes(digests, drop_duplicates)
    notes += near_duplicate_notes(found, data)
    notes += contradiction_notes(of_first, digests, classes)
    notes += kind_of(of_first["train"].labels).notes([split.labels for split in of_first.values()])
    notes += class_notes({name: split.labels for name, split in of_first.items()}, classes)
    notes += memory_notes(of_first, decoded_size, limit)
    return [
        Dataset(
            name=cut.source.name,
            classes=classes,
            train=splits[each.square]["train"],
            val=splits[each.square]["val"],
            test=splits[each.square].get("test"),
            fingerprint=_fingerprint(classes, each, splits[each.square], digests),
            notes=tuple(notes),
            preprocessing=each,
        )
        for each in settled
    ]


def _splits(cut: CutData, found: Mapping[str, ReadExamples]) -> dict[str, Split]:
    """The splits of what was read."""
    splits = {}
    for split, read in found.items():
        groups = cut.groups_of(split)
        splits[split] = Split(
            images=read.images,
            labels=cut.labels_of(split)[read.kept],
            names=read.names,
            groups=None if groups is None else groups[read.kept],
        )
    return splits


def _read_splits(
    examples: Mapping[str, Examples],
    chosen: Mapping[str, Indices],
    preprocessing: Preprocessing,
    *,
    keeper: Callable[[str], FileKeeper | None],
    drop_duplicates: bool,
    advance: Callable[[], None],
) -> dict[str, ReadExamples]:
    """Read each split. Train comes last, so duplicates of other splits are known before they are decoded."""
    found: dict[str, ReadExamples] = {}
    for split in sorted(chosen, key=["test", "val", "train"].index):
        leave_out = None
        if split == "train" and drop_duplicates:
            leave_out = np.concatenate([read.digests for read in found.values()])
        with keeper(split) or nullcontext() as files:
            found[split] = read_examples(
                examples[split], chosen[split], preprocessing, keeper=files, leave_out=leave_out, advance=advance
            )
    return found


def _fingerprint(
    classes: Sequence[str],
    preprocessing: Preprocessing,
    splits: dict[str, Split],
    digests: dict[str, Digests],
) -> str:
    total = hashlib.sha256(json.dumps([classes, preprocessing.for_fingerprint()]).encode())
    for name in sorted(splits):
        total.update(f"{name} {len(splits[name])} ".encode())
        total.update(splits[name].labels.astype("<i8").tobytes())
        total.update(digests[name].tobytes())
        if (groups := splits[name].groups) is not None:
            total.update(groups.astype("<i8").tobytes())
    return total.hexdigest()


def _left_out_notes(found: dict[str, ReadExamples], skip_damaged: bool) -> list[str]:
    """Notes on images that were left out, and why.

    Raises:
        UserError: images are damaged and `skip_damaged` is off.
    """
    notes = []
    if count := sum(read.num_left_out for read in found.values()):
        notes.append(f"{format_count(count, 'image')} of train are also in val or test and were removed from train.")
    if damaged := [error.args for read in found.values() for error in read.damaged]:
        which = format_list([f"{name} ({reason})" for name, reason in damaged], 3)
        if not skip_damaged:
            raise UserError(
                f"{format_count(len(damaged), 'image')} cannot be read: {which}; repair or remove them, or pass "
                f"--skip-damaged."
            )
        notes.append(f"{format_count(len(damaged), 'image')} could not be read and were left out: {which}.")
    return notes


def _check_filled(splits: dict[str, Split], classes: Sequence[str]) -> None:
    labels = splits["train"].labels
    counts = kind_of(labels).counts(labels, len(classes))
    if empty := [repr(name) for name, count in zip(classes, counts.tolist(), strict=True) if not count]:
        raise UserError(
            f"The class {format_list(empty, 3)} is too small: no training image of it is left after removing "
            "damaged and duplicate images; add images, or remove the class."
        )
    for name, split in splits.items():
        if not len(split):
            raise UserError(
                f"No image of {name} can be read; repair its images, or remove the split to cut it from train."
            )
