"""What a data source is: its splits and how to read them."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

from PIL import Image

ALLOWED_DATA = (
    "an image folder (DIR/<class>/* or DIR/{train,val,test}/<class>/*), a Parquet file or folder, a table of images "
    "and labels (.csv, .tsv, .jsonl), WebDataset shards (.tar; any of these may be at an address such as "
    "s3://bucket/folder), torchvision:NAME, or demo"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Examples:
    """The examples of one split."""

    labels: Sequence[str] | Sequence[tuple[str, ...]]
    """Class name of each example (N); or, with several labels an image, the names of each, which may be none."""
    names: Sequence[str]
    """Display name of each example (N): its path, or file and row."""
    read: Callable[[int], bytes | Image.Image]
    """Returns the file content or the image of one example; called from many threads."""
    are_files: bool = False
    """Whether each name is the path of a file here, whose content `read` returns."""
    readers: int = 0
    """Number of reading threads; 0 for one per processor."""
    groups: Sequence[str] | None = None
    """What each example belongs to (N), which no split may cut through; "" is a group of its own. None: all are."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """A data set's own splits: train, and possibly val and test."""

    name: str
    splits: Mapping[str, Examples]
    notes: tuple[str, ...] = ()


def pick(examples: Examples, rows: Sequence[int], labels: Sequence[Any] | None = None) -> Examples:
    """The examples of some rows, in this order.

    Args:
        examples: of a split.
        rows: their positions.
        labels: that these examples get instead of their own.
    """
    kept = list(rows)
    if labels is None:
        labels = [examples.labels[row] for row in kept]
    return replace(
        examples,
        labels=labels,
        names=[examples.names[row] for row in kept],
        read=lambda index: examples.read(kept[index]),
        groups=None if examples.groups is None else [examples.groups[row] for row in kept],
    )


def join(parts: Sequence[Examples]) -> Examples:
    """The examples of all parts, in order."""
    if len(parts) == 1:
        return parts[0]
    starts = [0, *accumulate(len(part.labels) for part in parts)]

    def read(index: int) -> bytes | Image.Image:
        part = bisect_right(starts, index) - 1
        return parts[part].read(index - starts[part])

    labels: list[Any] = [label for part in parts for label in part.labels]
    groups = [group for part in parts for group in part.groups or [""] * len(part.labels)]
    return Examples(
        labels=labels,
        names=[name for part in parts for name in part.names],
        read=read,
        are_files=all(part.are_files for part in parts),
        readers=max(part.readers for part in parts),
        groups=groups if any(groups) else None,
    )
