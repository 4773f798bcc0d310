"""What a data source is: its splits and how to read them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from PIL import Image

ALLOWED_DATA = (
    "an image folder (DIR/<class>/* or DIR/{train,val,test}/<class>/*), a Parquet file or folder (either may be at an "
    "address such as s3://bucket/folder), torchvision:NAME, or demo"
)

SPLIT_NAMES = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Examples:
    """One split as found."""

    labels: Sequence[str]
    """Class of each example, by name (N)."""
    names: Sequence[str]
    """Name of each example to the user (N): its path, or file and row."""
    read: Callable[[int], bytes | Image.Image]
    """The file or the image of one example; called from many threads."""
    readers: int = 0
    """Threads that should read at a time; 0 for as many as there are processors."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """The splits that the data come with: train, and perhaps val and test."""

    name: str
    splits: Mapping[str, Examples]
    notes: tuple[str, ...] = ()
