"""Sentences for the user on how the data was read."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from delta_tune.console.format import format_bytes, format_count
from delta_tune.data.dataset import Split
from delta_tune.data.encoding import Digests
from delta_tune.data.images import EncodedImages
from delta_tune.data.packed_images import PackedImages
from delta_tune.data.packs import KEPT_DAYS, open_store
from delta_tune.data.splits import Indices, format_list


def too_few_notes(labels: Indices, classes: Sequence[str], per_class: int | None) -> list[str]:
    """A note on classes with fewer training images than `per_class`."""
    available = np.bincount(labels, minlength=len(classes)).tolist()
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


def contradiction_notes(splits: dict[str, Split], digests: dict[str, Digests], classes: Sequence[str]) -> list[str]:
    """A note on images that are in two classes."""
    labels = np.concatenate([splits[split].labels for split in digests])
    _, first, same_as = np.unique(np.concatenate(list(digests.values())), return_index=True, return_inverse=True)
    others = np.flatnonzero(labels != labels[first[same_as]])  # than the first image with this digest
    _, of_each = np.unique(same_as[others], return_index=True)
    pairs = others[np.sort(of_each)]
    if not len(pairs):
        return []
    starts = np.cumsum([0, *(len(found) for found in digests.values())])

    def told(image: int) -> str:
        number = int(np.searchsorted(starts, image, side="right")) - 1
        name = splits[list(digests)[number]].names[image - int(starts[number])]
        return f"{name} is {classes[labels[image]]!r}"

    shown = [f"{told(int(first[same_as[image]]))}, {told(int(image))}" for image in pairs[:3]]
    shown += [""] * (len(pairs) - len(shown))
    return [
        f"{format_count(len(pairs), 'image')} in more than one class, byte for byte: "
        f"{format_list(shown, 3)}; leave each in one class."
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
