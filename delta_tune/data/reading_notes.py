"""Sentences for the user on how the data was read."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Hashable, Sequence
from pathlib import Path

import numpy as np

from delta_tune.console.escape import shell_command
from delta_tune.console.format import format_bytes, format_count
from delta_tune.data.dataset import Split
from delta_tune.data.encoding import Digests
from delta_tune.data.names import taken
from delta_tune.data.near_duplicates import find_near_duplicates
from delta_tune.data.packed_images import PackedImages
from delta_tune.data.packs import KEPT_DAYS, open_store
from delta_tune.data.reader import ReadExamples
from delta_tune.data.splits import format_list
from delta_tune.data.stored_images import DecodedImages, EncodedImages
from delta_tune.data.thumbnails import stack, thumbnail_of_pixels
from delta_tune.labels.kinds import Labels, kind_of

MOST_COMPARED = 50_000
"""With more images only `inspect` compares them: it would take a noticeable part of the time of reading."""


def too_few_notes(labels: Labels, classes: Sequence[str], per_class: int | None) -> list[str]:
    """A note on classes with fewer training images than `per_class`."""
    available = kind_of(labels).counts(labels, len(classes)).tolist()
    short = [f"{name} {count}" for name, count in zip(classes, available, strict=True) if count < (per_class or 0)]
    if not short:
        return []
    return [f"Classes with fewer than {per_class} training images use all they have: {format_list(short, 5)}."]


def duplicate_notes(digests: dict[str, Digests], drop_duplicates: bool) -> list[str]:
    """Notes on images that are in two splits."""
    notes = []
    for one, other in (("train", "val"), ("train", "test"), ("val", "test")):
        if one not in digests or other not in digests:
            continue
        if count := int(np.isin(digests[one], digests[other]).sum()):
            advice = "; --drop-duplicates removes them from train" if one == "train" and not drop_duplicates else ""
            notes.append(f"{format_count(count, 'image')} of {one} also in {other} (identical files){advice}.")
    return notes


def near_duplicate_notes(found: dict[str, ReadExamples], data: str | Path) -> list[str]:
    """A note on pictures that are in two splits as different files: resized, recompressed or mirrored.

    It compares images that are kept decoded; of others, and of many, only `inspect` does.
    """
    if sum(len(read.digests) for read in found.values()) > MOST_COMPARED:
        return []
    seen: set[bytes] = set()  # identical files are another note's
    of, small = [], []
    for split, read in found.items():
        if not isinstance(read.images, DecodedImages):
            return []
        for digest, pixels, side in zip(read.digests.tolist(), read.images.pixels, read.sides.tolist(), strict=True):
            if digest not in seen:
                seen.add(digest)
                of.append(split)
                small.append(thumbnail_of_pixels(pixels, side))
    pairs = find_near_duplicates(stack(small), crops=False, turned=False).pairs.tolist()
    counts = Counter(frozenset((of[one], of[other])) for one, other in pairs if of[one] != of[other])
    if not counts:
        return []
    names = ("train", "val", "test")
    said = [
        f"{counts[frozenset((one, other))]} of {one} also in {other}"
        for one, other in itertools.combinations(names, 2)
        if counts[frozenset((one, other))]
    ]
    command = shell_command(["python", "-m", "delta_tune", "inspect", str(data)])
    return [
        f"Pictures that are in two splits, resized, recompressed or mirrored: {', '.join(said)}; {command} names them."
    ]


def contradiction_notes(splits: dict[str, Split], digests: dict[str, Digests], classes: Sequence[str]) -> list[str]:
    """A note on images that are in two classes."""
    first: dict[bytes, tuple[Hashable, str]] = {}
    pairs: dict[bytes, str] = {}
    _, same_as, counts = np.unique(np.concatenate(list(digests.values())), return_inverse=True, return_counts=True)
    repeated, start = counts[same_as] > 1, 0  # hardly any: the others need no Python objects
    for split, found in digests.items():
        rows = np.flatnonzero(repeated[start : start + len(found)])
        start += len(found)
        labels = splits[split].labels[rows]
        kind = kind_of(labels)
        named = taken(splits[split].names, rows)
        for digest, label, name in zip(found[rows].tolist(), kind.keys(labels), named, strict=True):
            label_before, name_before = first.setdefault(digest, (label, name))
            if label != label_before:
                before, now = kind.say(label_before, classes), kind.say(label, classes)
                pairs.setdefault(digest, f"{name_before} is {before}, {name} is {now}")
    if not pairs:
        return []
    return [
        f"{format_count(len(pairs), 'image')} in more than one class, byte for byte: "
        f"{format_list(list(pairs.values()), 3)}; leave each in one class."
    ]


def memory_notes(splits: dict[str, Split], decoded_size: int, limit: int) -> list[str]:
    """Notes on where images are kept, and why."""
    if decoded_size <= limit:
        return [f"The images are kept decoded ({format_bytes(decoded_size)} of at most {format_bytes(limit)})."]
    found = {name: splits[name].images for name in ("train", "val", "test") if name in splits}
    packed = {name: images for name, images in found.items() if isinstance(images, PackedImages)}
    files = sum(images.encoded.nbytes for images in found.values() if isinstance(images, EncodedImages))
    if not packed:
        return [
            f"The images are kept encoded ({format_bytes(files)}) and decoded per batch: decoded, they would take "
            f"{format_bytes(decoded_size)}, more than the limit of {format_bytes(limit)}."
        ]
    origins = [images.origin for images in packed.values()]
    store, in_packs = open_store(origins[0].folder), sum(int(origin.in_packs.sum()) for origin in origins)
    in_files = sum(map(len, packed.values())) - in_packs
    inside = [name for name in found if name not in packed]
    others = f"; those of {' and '.join(inside)} take {format_bytes(files)} of memory" if inside else ""
    notes = [
        f"The images of {' and '.join(packed)} are on disk and decoded per batch, for their files take more than the "
        f"limit of {format_bytes(limit)}{others}."
    ]
    if in_files:
        notes.append(
            f"Read where they are: {format_count(in_files, 'image')}. No node may lack these files, and none may "
            f"change; --scratch DIR copies them to each node's disk."
        )
    if in_packs:
        notes.append(
            f"Read from {store.folder} ({format_bytes(store.size)}): {format_count(in_packs, 'image')}. Other nodes "
            f"write what they lack there; what nobody uses for {KEPT_DAYS} days is removed when more is written."
        )
    return notes
