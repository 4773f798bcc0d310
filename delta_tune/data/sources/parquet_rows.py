"""Parquet files as tables; the images in them are decoded as they are asked for."""

from __future__ import annotations

import errno
import threading
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

import pyarrow as pa

from delta_tune.config import UserError
from delta_tune.console.format import format_bytes
from delta_tune.data.file_tree import FileTree
from delta_tune.data.limits import MAX_FILE_SIZE
from delta_tune.data.sources.parquet_columns import (
    MAX_ROWS,
    check_columns,
    check_sizes,
    decode_steps,
    encoded_column,
)
from delta_tune.data.sources.table_columns import Columns

_KEPT_SIZE = 256 * 2**20
"""Bytes of images that wait for a thread: threads ask nearly in order, but a row group is only read forwards."""
_OPEN_GROUPS = 2


class RowGroup(NamedTuple):
    """Where some rows are."""

    file: str
    number: int
    image_column: str
    """The path of the encoded images; empty if there are none."""
    num_rows: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ParquetTable:
    """A Parquet file whose columns and sizes are allowed."""

    tree: FileTree
    file: str
    columns: Columns
    schema: pa.Schema
    row_groups: tuple[RowGroup, ...]
    cells_are_text: bool = False

    @property
    def shown(self) -> str:
        """How messages call it."""
        return self.tree.shown(self.file)

    @property
    def num_rows(self) -> int:
        return sum(group.num_rows for group in self.row_groups)

    def steps(self, column: str) -> Iterator[pa.Array]:
        """The values of a column, or of a field of it such as image.path, a few rows at a time.

        Raises:
            UserError: the file is damaged.
        """
        with self.tree.parquet(self.file) as parquet:
            for group in self.row_groups:
                yield from decode_steps(parquet, self.shown, group.number, column)


def open_tables(tree: FileTree, files: Sequence[str]) -> dict[str, ParquetTable]:
    """File → its table, after a check of all metadata, before anything is decoded.

    Raises:
        UserError: a file lacks a column, or has too many rows or too many bytes.
    """
    found: dict[str, ParquetTable] = {}
    num_rows = 0
    for file in files:
        shown = tree.shown(file)
        with tree.parquet(file) as parquet:
            schema, metadata = parquet.schema_arrow, parquet.metadata
            columns = check_columns(shown, schema)
            num_rows += metadata.num_rows
            if num_rows > MAX_ROWS:
                raise UserError(
                    f"The Parquet files up to {shown!r} have {num_rows:,} rows, but at most {MAX_ROWS:,} are read; "
                    f"give fewer."
                )
            check_sizes(shown, metadata, tree.size(file))
            encoded = encoded_column(schema, columns) or ""
            groups = tuple(
                RowGroup(file, group, encoded, metadata.row_group(group).num_rows)
                for group in range(metadata.num_row_groups)
            )
            found[file] = ParquetTable(tree=tree, file=file, columns=columns, schema=schema, row_groups=groups)
    return found


class EncodedRows:
    """The images of some row groups, by row. A row group need not fit into memory."""

    def __init__(self, tree: FileTree, row_groups: Sequence[RowGroup]) -> None:
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
