"""What a data source is: its splits and how to read them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from PIL import Image

ALLOWED_DATA = (
    "an image folder (DIR/<class>/* or DIR/{train,val,test}/<class>/*), a Parquet file or folder (either may be at an "
    "address such as s3://bucket/folder), torchvision:NAME, or demo"
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
    readers: int = 0
    """Number of reading threads; 0 for one per processor."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """A data set's own splits: train, and possibly val and test."""

    name: str
    splits: Mapping[str, Examples]
    notes: tuple[str, ...] = ()
