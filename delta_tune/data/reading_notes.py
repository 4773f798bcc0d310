"""Sentences for the user on how the data was read."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from delta_tune.console.format import format_bytes, format_count
from delta_tune.data.dataset import Split
from delta_tune.data.images import (
    EncodedImages,
)
from delta_tune.data.splits import format_list
from delta_tune.labels.kinds import Labels, kind_of


def too_few_notes(labels: Labels, classes: Sequence[str], per_class: int | None) -> list[str]:
    """A note on classes with fewer training images than `per_class`."""
    available = kind_of(labels).counts(labels, len(classes)).tolist()
    short = [f"{name} {count}" for name, count in zip(classes, available, strict=True) if count < (per_class or 0)]
    if not short:
        return []
    return [f"Classes with fewer than {per_class} training images use all they have: {format_list(short, 5)}."]


def duplicate_notes(digests: dict[str, list[bytes]], drop_duplicates: bool) -> list[str]:
    """Notes on images that are in two splits."""
    notes = []
    for one, other in (("train", "val"), ("train", "test"), ("val", "test")):
        there = set(digests.get(other, []))
        if count := sum(digest in there for digest in digests.get(one, [])):
            advice = "; --drop-duplicates removes them from train" if one == "train" and not drop_duplicates else ""
            notes.append(f"{format_count(count, 'image')} of {one} also in {other} (identical files){advice}.")
    return notes


def contradiction_notes(splits: dict[str, Split], digests: dict[str, list[bytes]], classes: Sequence[str]) -> list[str]:
    """A note on images that are in two classes."""
    first: dict[bytes, tuple[Hashable, str]] = {}
    pairs: dict[bytes, str] = {}
    for split, found in digests.items():
        kind = kind_of(splits[split].labels)
        for digest, label, name in zip(found, kind.keys(splits[split].labels), splits[split].names, strict=True):
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


def memory_note(splits: dict[str, Split], decoded_size: int, limit: int) -> str:
    """A note on whether images are kept decoded, and why."""
    if decoded_size <= limit:
        return f"The images are kept decoded ({format_bytes(decoded_size)} of at most {format_bytes(limit)})."
    files = sum(split.images.encoded.nbytes for split in splits.values() if isinstance(split.images, EncodedImages))
    return (
        f"The images are kept encoded ({format_bytes(files)}) and decoded per batch: decoded, they would take "
        f"{format_bytes(decoded_size)}, more than the limit of {format_bytes(limit)}."
    )
