"""Tables that are text: CSV, TSV and JSON Lines."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

from delta_tune.config import UserError
from delta_tune.data.file_tree import FileTree
from delta_tune.data.sources.parquet_columns import MAX_ROWS, check_columns, is_text
from delta_tune.data.sources.table_columns import Columns

SEPARATED = (".csv", ".tsv")
JSON_LINES = (".jsonl", ".ndjson")
TEXT_SUFFIXES = (*SEPARATED, *JSON_LINES)
_MOST_COLUMNS = 10_000
_MOST_CELLS = 500_000_000


@dataclass(frozen=True, kw_only=True, slots=True)
class TextTable:
    """A table in memory. Blanks around its values are no part of them."""

    tree: FileTree
    file: str
    columns: Columns
    content: pa.Table

    @property
    def cells_are_text(self) -> bool:
        """Whether the format has no lists, so that a cell may stand for several values."""
        return self.file.lower().endswith(SEPARATED)

    @property
    def shown(self) -> str:
        """How messages call it."""
        return self.tree.shown(self.file)

    @property
    def schema(self) -> pa.Schema:
        """Names and types of the columns."""
        return self.content.schema

    @property
    def num_rows(self) -> int:
        return int(self.content.num_rows)

    def steps(self, column: str) -> Iterator[pa.Array]:
        """The values of a column; of text an empty cell is null."""
        for chunk in self.content.column(column).chunks:
            if is_text(chunk.type):
                plain = pc.utf8_trim_whitespace(chunk)
                chunk = pc.if_else(pc.equal(plain, ""), pa.scalar(None, plain.type), plain)
            yield chunk


def is_text_table(path: str) -> bool:
    """Whether a file is CSV, TSV or JSON Lines by its name."""
    return os.path.splitext(path)[1].lower() in TEXT_SUFFIXES


def read_text_table(tree: FileTree, file: str, *, labels: bool = True) -> TextTable:
    """Read a table.

    Args:
        tree: that it is in.
        file: its path.
        labels: whether it has labels; else it must have groups.

    Raises:
        UserError: it cannot be read, lacks a column, or is too large.
    """
    shown = tree.shown(file)
    try:
        text = tree.read(file)
    except OSError as error:
        raise UserError(f"{shown!r} cannot be read ({error.strerror or error}); give a table that can.") from error
    try:
        content = _json_lines(text) if file.lower().endswith(JSON_LINES) else _separated(text, file)
    except (pa.ArrowException, ValueError, RecursionError) as error:
        raise UserError(
            f"{shown!r} cannot be read as a table ({str(error)[:200]}); save it as CSV in UTF-8 with a line of column "
            f"names, or as JSON Lines."
        ) from error
    if content.num_rows > MAX_ROWS or content.num_columns > _MOST_COLUMNS or content.nbytes > _MOST_CELLS * 8:
        raise UserError(f"{shown!r} has {content.num_rows:,} rows, but at most {MAX_ROWS:,} are read; give fewer.")
    if content.num_rows * content.num_columns > _MOST_CELLS:
        raise UserError(f"{shown!r} has more than {_MOST_CELLS:,} cells; give fewer columns, or a Parquet file.")
    return TextTable(tree=tree, file=file, columns=check_columns(shown, content.schema, labels=labels), content=content)


def _separated(text: bytes, file: str) -> pa.Table:
    """All cells as text: 001 and NA stay what they are."""
    first = text.partition(b"\n")[0]
    marks = [b"\t", b","] if file.lower().endswith(".tsv") else [b",", b";", b"\t"]
    delimiter = next((mark for mark in marks if mark in first), marks[0]).decode()
    parsing = csv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
    # Large blocks, for the line of names of many labels must fit into one
    reading = csv.ReadOptions(block_size=16 * 2**20, use_threads=False)
    names = csv.open_csv(pa.BufferReader(text), reading, parsing).schema.names
    plain = csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False)
    return csv.read_csv(pa.BufferReader(text), reading, parsing, plain)


def _json_lines(text: bytes) -> pa.Table:
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(text.decode("utf-8-sig").split("\n"), start=1):
        if not line.strip():
            continue
        row = json.loads(line)
        if not isinstance(row, dict):
            raise ValueError(f"line {number} is no JSON object")
        rows.append(row)
        if len(rows) > MAX_ROWS:
            break
    names = list(dict.fromkeys(name for row in rows for name in row))
    if len(rows) * len(names) > _MOST_CELLS or len(names) > _MOST_COLUMNS:
        raise ValueError("it has too many columns")
    return pa.table({name: _column(name, [row.get(name) for row in rows]) for name in names})


def _column(name: str, values: list[Any]) -> pa.Array:
    """Values of one type; those of other columns than the needed ones may be of any."""
    try:
        return pa.array(values)
    except (pa.ArrowException, OverflowError) as error:
        if any(isinstance(value, dict) for value in values):
            return pa.nulls(len(values))
        raise ValueError(f"the column {name} has values of several types: {error}") from error
