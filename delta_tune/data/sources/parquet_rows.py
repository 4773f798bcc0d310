"""The rows of Parquet files as examples; their images are decoded as they are asked for."""

from __future__ import annotations

import errno
import threading
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import NamedTuple

from delta_tune.config import UserError
from delta_tune.console.format import format_bytes
from delta_tune.data.file_tree import FileTree
from delta_tune.data.limits import MAX_FILE_SIZE
from delta_tune.data.sources.base import Examples
from delta_tune.data.sources.parquet_columns import (
    MAX_ROWS,
    check_columns,
    check_sizes,
    decode_steps,
    image_column,
)
from delta_tune.data.sources.parquet_labels import name_classes, read_labels

_KEPT_SIZE = 256 * 2**20
"""Bytes of images that wait for a thread: threads ask nearly in order, but a row group is only read forwards."""
_OPEN_GROUPS = 2


class _RowGroup(NamedTuple):
    """Where some rows are."""

    file: str
    number: int
    image_column: str
    num_rows: int


def read_rows(tree: FileTree, splits: Mapping[str, Sequence[str]]) -> tuple[dict[str, Examples], list[str]]:
    """The examples of each split, and notes on the names of their classes.

    Args:
        splits: split → its files.

    Raises:
        UserError: a file cannot be used, or exceeds a limit on rows and bytes.
    """
    files = [file for found in splits.values() for file in found]
    row_groups = _row_groups(tree, files)  # of all files, before the first label is decoded
    labels, notes = name_classes(tree, {file: read_labels(tree, file) for file in files})
    examples = {}
    for split, found in splits.items():
        images = _Images(tree, [group for file in found for group in row_groups[file]])
        shown = {file: tree.shown(file) for file in found}
        examples[split] = Examples(
            labels=[label for file in found for label in labels[file]],
            names=[f"{shown[file]}:{row}" for file in found for row in range(len(labels[file]))],
            read=images.read,
        )
    return examples, notes


def _row_groups(tree: FileTree, files: Sequence[str]) -> dict[str, list[_RowGroup]]:
    """File → its row groups, after a check of all metadata.

    Raises:
        UserError: a file lacks a column, or has too many rows or too many bytes.
    """
    found: dict[str, list[_RowGroup]] = {}
    num_rows = 0
    for file in files:
        shown = tree.shown(file)
        with tree.parquet(file) as parquet:
            schema, metadata = parquet.schema_arrow, parquet.metadata
            check_columns(shown, schema)
            num_rows += metadata.num_rows
            if num_rows > MAX_ROWS:
                raise UserError(
                    f"The Parquet files up to {shown!r} have {num_rows:,} rows, but at most {MAX_ROWS:,} are read; "
                    f"give fewer."
                )
            check_sizes(shown, metadata, tree.size(file))
            found[file] = [
                _RowGroup(file, group, image_column(schema), metadata.row_group(group).num_rows)
                for group in range(metadata.num_row_groups)
            ]
    return found


class _Images:
    """The images of some row groups, by row. A row group need not fit into memory."""

    def __init__(self, tree: FileTree, row_groups: Sequence[_RowGroup]) -> None:
        self._tree, self._row_groups = tree, row_groups
        self._starts = [0, *accumulate(group.num_rows for group in row_groups)]
        self._open: dict[int, tuple[int, Iterator[bytes | None]]] = {}
        """Row group → the row that it decodes next, and the images from there."""
        self._kept: dict[int, bytes | None] = {}
        self._kept_size = 0
        self._lock = threading.Lock()  # without it, two threads would decode the same rows

    def read(self, row: int) -> bytes:
        """One image, empty where there is none; called from many threads.

        Raises:
            OSError: it is too large.
            UserError: its file is damaged.
        """
        with self._lock:
            if row not in self._kept:
                self._decode_to(row)
            image = self._kept[row]
        if image is None:
            raise OSError(errno.EFBIG, f"more than {format_bytes(MAX_FILE_SIZE)}: make it smaller")
        return image

    def _decode_to(self, row: int) -> None:
        """Decode the rows of the row group up to this one."""
        group = bisect_right(self._starts, row) - 1
        first, images = self._open.pop(group, (self._starts[group], self._decode(group)))
        if first > row:  # it was passed, and is no longer kept
            first, images = self._starts[group], self._decode(group)
        for position, image in zip(range(first, row + 1), images, strict=False):
            self._keep(position, image)
        if row not in self._kept:
            shown = self._tree.shown(self._row_groups[group].file)
            raise UserError(f"{shown!r} has fewer rows than before; do not change the data while it is read.")
        self._open[group] = row + 1, images
        while len(self._open) > _OPEN_GROUPS:
            del self._open[next(iter(self._open))]

    def _decode(self, group: int) -> Iterator[bytes | None]:
        """The images of a row group, None for one that is too large."""
        found = self._row_groups[group]
        with self._tree.parquet(found.file) as parquet:
            for step in decode_steps(parquet, self._tree.shown(found.file), found.number, found.image_column):
                for value in step:
                    image = value.as_buffer() or b""
                    yield bytes(image) if len(image) <= MAX_FILE_SIZE else None

    def _keep(self, row: int, image: bytes | None) -> None:
        """Keep an image, and the last ones before it as far as there is room."""
        if row in self._kept:
            return
        self._kept[row] = image
        self._kept_size += _size(image)
        while self._kept_size > _KEPT_SIZE and len(self._kept) > 1:
            self._kept_size -= _size(self._kept.pop(next(iter(self._kept))))


def _size(image: bytes | None) -> int:
    """Bytes that an image takes in memory, about."""
    return 100 + len(image or b"")
