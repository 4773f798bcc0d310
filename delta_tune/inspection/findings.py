"""What is wrong with a data set, and what to do about it: a sentence each."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from delta_tune.console.format import format_count
from delta_tune.data.near_duplicates import CROPPED
from delta_tune.data.splits import format_list
from delta_tune.inspection.images import ImageFacts
from delta_tune.inspection.inspection import Inspection, NearPair

NAMED = 3
"""Images that a sentence names; --json has all."""
FEW = 10
IMBALANCE = 5.0
LONG, OFTEN = 1.8, 0.1
SMALL_SIDE, LARGE_PIXELS = 64, 4_000_000
TELLING = 0.9


@dataclass(frozen=True, slots=True)
class Finding:
    """Something to know or to mend."""

    kind: str
    level: Literal["serious", "advice"]
    """Serious is what makes a score wrong or stops a study: --strict then exits with status 1."""
    count: int
    sentence: str


def findings(inspection: Inspection) -> list[Finding]:
    """What is to be said, the serious first."""
    found = [each for check in CHECKS for each in check(inspection)]
    return sorted(found, key=lambda finding: finding.level != "serious")


def _damaged(inspection: Inspection) -> Iterator[Finding]:
    if damaged := inspection.damaged:
        which = format_list([f"{inspection.short(name)} ({reason})" for name, reason in damaged], NAMED)
        count = format_count(len(damaged), "image")
        text = f"{count} cannot be read: {which}. Repair or remove them, or give --skip-damaged."
        yield Finding("damaged", "serious", len(damaged), text)


def _leaks(inspection: Inspection) -> Iterator[Finding]:
    """Copies of one picture in two splits."""
    for one, other in itertools.combinations(inspection.splits, 2):
        same = [group for group in inspection.identical if {one, other} <= {image.split for image in group}]
        if same:
            pairs = [_across(group, lambda image: image.split, one, other) for group in same]
            text = (
                f"Leakage: {_are(len(same), 'file')} in both {one} and {other}, byte for byte: "
                f"{_named(inspection, pairs)}. What is learnt by heart scores as if it were understood: "
                f"{'--drop-duplicates takes them out of train' if one == 'train' else f'remove them from {one}'}."
            )
            yield Finding("identical across splits", "serious", len(same), text)
        near = [pair for pair in inspection.near if {pair.first.split, pair.second.split} == {one, other}]
        if near:
            why = ""
            if {one, other} & set(inspection.cut):
                cut = " and ".join(split for split in (one, other) if split in inspection.cut)
                why = f" ({cut} would be cut from train by chance, with this fraction and seed)"
            text = (
                f"Leakage: {_pictures(len(near))} in both {one} and {other}{why}: {_kinds(near)}, such as "
                f"{_named(inspection, [(pair.first, pair.second) for pair in near])}. Keep all copies of a picture "
                "in one split, or remove all but one."
            )
            yield Finding("near duplicates across splits", "serious", len(near), text)


def _two_classes(inspection: Inspection) -> Iterator[Finding]:
    """One picture under two labels."""
    pairs = [
        (group[0], next(image for image in group if image.label != group[0].label))
        for group in inspection.identical
        if len({image.label for image in group}) > 1
    ]
    pairs += [(pair.first, pair.second) for pair in inspection.near if pair.first.label != pair.second.label]
    if pairs:
        short = inspection.short
        said = [f"{short(a.name)} is {a.label!r} and {short(b.name)} is {b.label!r}" for a, b in pairs]
        text = f"{_pictures(len(pairs))} in two classes: {format_list(said, NAMED)}. Leave each in one class."
        yield Finding("one picture in two classes", "serious", len(pairs), text)


def _copies_within(inspection: Inspection) -> Iterator[Finding]:
    same = [
        group
        for group in inspection.identical
        if len({image.label for image in group}) == 1 and len({image.split for image in group}) < len(group)
    ]
    if same:
        pairs = [(group[0], group[1]) for group in same]
        text = (
            f"{_are(len(same), 'file')} there more than once within a split, byte for byte: "
            f"{_named(inspection, pairs)}. They count as often as they are there: remove all but one."
        )
        yield Finding("identical within a split", "advice", len(same), text)
    one_class = (pair for pair in inspection.near if pair.first.label == pair.second.label)  # others are told above
    near = [pair for pair in one_class if pair.first.split == pair.second.split]
    if near:
        text = (
            f"{_pictures(len(near))} there twice within a split: {_kinds(near)}, such as "
            f"{_named(inspection, [(pair.first, pair.second) for pair in near])}. That does little harm, but splits "
            "that are cut anew (--confirm, final runs) part them: remove all but one."
        )
        yield Finding("near duplicates within a split", "advice", len(near), text)


def _class_sizes(inspection: Inspection) -> Iterator[Finding]:
    counts = Counter(label for image in inspection.images for label in image.labels)
    train = Counter(label for image in inspection.images if image.split == "train" for label in image.labels)
    largest, smallest = max(inspection.classes, key=counts.__getitem__), min(inspection.classes, key=counts.__getitem__)
    if counts[largest] > IMBALANCE * max(1, counts[smallest]):
        text = (
            f"The largest class ({largest!r}, {counts[largest]}) has "
            f"{counts[largest] / max(1, counts[smallest]):.1f} times the images of the smallest ({smallest!r}, "
            f"{counts[smallest]}): a model may do well by neglecting small classes. Search by --metric "
            "val_balanced_accuracy or val_macro_f1, and try --set class_weights=balanced."
        )
        yield Finding("imbalance", "advice", 1, text)
    if few := [name for name in inspection.classes if train[name] < FEW]:
        which = format_list([f"{name!r} {train[name]}" for name in few], NAMED)
        classes = "1 class has" if len(few) == 1 else f"{len(few)} classes have"
        text = f"{classes} fewer than {FEW} images in train: {which}. Add images."
        yield Finding("small classes", "advice", len(few), text)


def _shapes(inspection: Inspection) -> Iterator[Finding]:
    images = inspection.images
    if not images:
        return
    long = sum(image.aspect_ratio > LONG for image in images)
    if long > OFTEN * len(images):
        text = (
            f"{long} images ({100 * long / len(images):.0f} %) are longer than {LONG:g} : 1, and the square in their "
            "middle leaves out their ends: a study takes them whole with --resize letterbox, which it chooses itself "
            "if most are so long; or crop them to what matters."
        )
        yield Finding("long images", "advice", long, text)
    small = sum(min(image.width, image.height) < SMALL_SIDE for image in images)
    if small > OFTEN * len(images):
        text = (
            f"{small} images ({100 * small / len(images):.0f} %) have a side of fewer than {SMALL_SIDE} pixels and "
            "are enlarged for the network: take larger ones if there are, else a small --image-size."
        )
        yield Finding("small images", "advice", small, text)
    large = sum(image.width * image.height > LARGE_PIXELS for image in images)
    if large > OFTEN * len(images):
        text = (
            f"{large} images ({100 * large / len(images):.0f} %) have more than {LARGE_PIXELS / 1e6:g} million "
            "pixels, far more than a network sees: a copy with short sides of 512 pixels reads many times faster."
        )
        yield Finding("large images", "advice", large, text)
    if blank := inspection.blank:
        which = format_list([inspection.short(name) for name in blank], NAMED)
        count = format_count(len(blank), "image")
        text = f"{count} of one colour, with nothing on it: {which}. Remove what is no picture."
        yield Finding("blank images", "advice", len(blank), text)


def _telling(inspection: Inspection) -> Iterator[Finding]:
    """Formats and kinds of pixels that give a class away."""
    sizes = Counter(label for image in inspection.images for label in image.labels)
    traits: dict[str, Counter[str]] = defaultdict(Counter)
    for image in inspection.images:
        for trait in (f"format {image.format}", *(kind for kind in image.kinds if kind != "turned by EXIF")):
            traits[trait].update(image.labels)
    for trait, counts in sorted(traits.items()):
        inside = {name for name in inspection.classes if sizes[name] >= FEW and counts[name] > TELLING * sizes[name]}
        others = [name for name in inspection.classes if name not in inside]
        rest = sum(sizes[name] for name in others)
        if inside and rest and sum(counts[name] for name in others) < (1 - TELLING) * rest:
            which = format_list(sorted(map(repr, inside)), NAMED)
            text = (
                f"Nearly all images of {which} are {trait.replace('format ', 'in the format ')}, and next to none of "
                "the others: a model may learn that instead of what the pictures show. Convert all images alike, "
                "and mix their sources."
            )
            yield Finding("trait that tells a class", "advice", len(inside), text)


def _labels(inspection: Inspection) -> Iterator[Finding]:
    if (report := inspection.labels) is None:
        return
    if report.suspects:
        said = [
            f"{inspection.short(each.image)} is {each.label!r}, perhaps {each.suggested!r}" for each in report.suspects
        ]
        share = (
            "" if report.share is None else f" (about {100 * report.share:.1f} % of all labels are wrong, by estimate)"
        )
        text = (
            f"{format_count(len(report.suspects), 'label')} probably wrong{share}, as {report.told_by} say: "
            f"{format_list(said, NAMED)}. Look at them, --csv FILE lists all; correct only what you would label "
            "otherwise."
        )
        yield Finding("suspect labels", "advice", len(report.suspects), text)
    if report.alike:
        said = [f"{one!r} and {other!r} ({100 * share:.0f} %)" for one, other, share in report.alike]
        text = (
            "Classes that look alike, and the share of their images that is taken for the other: "
            f"{format_list(said, NAMED)}. If people tell them apart no better, join them; else add images of these."
        )
        yield Finding("classes that look alike", "advice", len(report.alike), text)


CHECKS: tuple[Callable[[Inspection], Iterator[Finding]], ...] = (
    _damaged,
    _leaks,
    _two_classes,
    _copies_within,
    _labels,
    _class_sizes,
    _shapes,
    _telling,
)


def _across(
    group: Sequence[ImageFacts], side: Callable[[ImageFacts], str], one: str, other: str
) -> tuple[ImageFacts, ImageFacts]:
    """The first image of either side."""
    return next(i for i in group if side(i) == one), next(i for i in group if side(i) == other)


def _named(inspection: Inspection, pairs: Sequence[tuple[ImageFacts, ImageFacts]]) -> str:
    return format_list(
        [f"{inspection.short(one.name)} and {inspection.short(other.name)}" for one, other in pairs], NAMED
    )


def _are(count: int, noun: str) -> str:
    return f"{format_count(count, noun)} {'is' if count == 1 else 'are'}"


def _pictures(count: int) -> str:
    return _are(count, "picture")


def _kinds(near: Sequence[NearPair]) -> str:
    """How copies differ, the most frequent first."""
    words = {"same": "resized or recompressed", CROPPED: "cropped or shifted"}
    return ", ".join(f"{count} {words.get(kind, kind)}" for kind, count in Counter(p.kind for p in near).most_common())


def quantiles(values: Sequence[float]) -> list[float]:
    """Smallest, 5 %, median, 95 % and largest."""
    return [float(value) for value in np.quantile(values, (0, 0.05, 0.5, 0.95, 1))] if len(values) else []
