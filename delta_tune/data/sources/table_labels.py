"""The labels in tables, and the class names that Hugging Face's metadata gives to integers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from delta_tune.config import UserError
from delta_tune.data.sources.label_cells import parts_of, separator_in
from delta_tune.data.sources.parquet_columns import is_list, is_text
from delta_tune.data.sources.table_columns import Columns, is_plural, no_flags_error
from delta_tune.data.splits import format_list

MAX_LABEL_SIZE = 1020
"""Bytes of a class name: 255 characters, as many as a folder's name may have."""


class Table(Protocol):
    """A table whose columns are read in steps."""

    @property
    def shown(self) -> str:
        """How messages call it."""

    @property
    def columns(self) -> Columns:
        """What is in its columns."""

    @property
    def schema(self) -> pa.Schema:
        """Names and types of its columns."""

    @property
    def cells_are_text(self) -> bool:
        """Whether the format knows text only, so that a cell may stand for several values."""

    def steps(self, column: str) -> Iterator[pa.Array]:
        """The values of a column, a few rows at a time.

        Raises:
            UserError: they cannot be read.
        """
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Labels:
    """The labels of one table."""

    kind: Literal["one", "cells", "list", "flags"]
    """One label a row; text that may stand for several; a list a row; a column of 0 and 1 for each label."""
    column: str
    """Their column, the first one of several."""
    values: list[str | int]
    """Each different one; of text that may stand for several labels, each different cell."""
    positions: npt.NDArray[np.int32]
    """In `values`: of each row's label (N,), -1 for an empty cell; or of all labels of all rows in order."""
    counts: npt.NDArray[np.int64] | None
    """How many labels each row has (N,), where that is not 1."""
    class_names: list[str]
    """What the table's metadata calls the integers 0, 1, …; empty if it says nothing of use."""
    fault: str | None
    """What is wrong with the metadata."""


def read_labels(table: Table) -> Labels:
    """Read the column of labels, or those of which each is a label.

    Raises:
        UserError: a column is damaged, or has rows without a label or with one that is no class name.
    """
    column = table.columns.label
    if column is None:
        return _read_flags(table)
    found: dict[str | int, int] = {}
    positions, counts = [np.empty(0, dtype=np.int32)], [np.empty(0, dtype=np.int64)]
    for step in table.steps(column):
        labels = _decoded(step)
        if is_list(labels.type):
            counts.append(pc.fill_null(pc.list_value_length(labels), 0).to_numpy(zero_copy_only=False).astype(np.int64))
            labels = _decoded(pc.list_flatten(labels))
        encoded = _plain(table.shown, column, labels).dictionary_encode()
        values = _values(table.shown, column, encoded.dictionary)
        numbers = np.array([*(found.setdefault(value, len(found)) for value in values), -1], dtype=np.int32)
        positions.append(numbers[pc.fill_null(encoded.indices, len(values)).to_numpy(zero_copy_only=False)])
    class_names, fault = _class_names((table.schema.metadata or {}).get(b"huggingface"), column)
    labels = Labels(
        kind=_kind(table, column),
        column=column,
        values=list(found),
        positions=np.concatenate(positions),
        counts=np.concatenate(counts) if _kind(table, column) == "list" else None,
        class_names=class_names,
        fault=fault,
    )
    if labels.kind != "cells":
        _check_empty(table.shown, labels)
    return labels


def _kind(table: Table, column: str) -> Literal["one", "cells", "list"]:
    """What a row of the column of labels holds."""
    kind = table.schema.field(column).type
    if is_list(kind):
        return "list"
    return "cells" if is_text(kind) and (table.cells_are_text or table.columns.holds_several) else "one"


def _check_empty(table: str, labels: Labels) -> None:
    """Raises UserError if a row, or a place of a list, has no label."""
    empty = np.flatnonzero(labels.positions < 0)
    if not len(empty):
        return
    where = "" if labels.counts is not None else f", first in row {empty[0] + 1}"
    raise UserError(
        f"The column {labels.column} of {table!r} has {len(empty)} empty values{where}; fill or remove those rows."
    )


def _decoded(values: pa.Array) -> pa.Array:
    return values.dictionary_decode() if pa.types.is_dictionary(values.type) else values


def _plain(table: str, column: str, labels: pa.Array) -> pa.Array:
    """Truth values as text, whole numbers as integers, text as it is.

    Raises:
        UserError: they are something else.
    """
    if pa.types.is_boolean(labels.type):
        return labels.cast(pa.string())
    if pa.types.is_null(labels.type):
        return labels.cast(pa.string())
    if pa.types.is_floating(labels.type):
        try:
            return labels.cast(pa.int64())  # pandas writes whole numbers so, where there were empty values
        except pa.ArrowInvalid:
            raise UserError(
                f"The column {column} of {table!r} is {labels.type}; give a string or an integer."
            ) from None
    return labels


def _read_flags(table: Table) -> Labels:
    """Labels of which each is a column of 0 and 1."""
    flags = []
    for column in table.columns.flags:
        steps = [_flags(table, column, step) for step in table.steps(column)]
        flags.append(np.concatenate([np.empty(0, dtype=bool), *steps]))
    rows = np.stack(flags, axis=1)
    return Labels(
        kind="flags",
        column=table.columns.flags[0],
        values=[column.strip() for column in table.columns.flags],
        positions=np.nonzero(rows)[1].astype(np.int32),
        counts=rows.sum(axis=1),
        class_names=[],
        fault=None,
    )


def _flags(table: Table, column: str, values: pa.Array) -> npt.NDArray[np.bool_]:
    """Whether each value is 1 or true.

    Raises:
        UserError: there are other values than 0 and 1, true and false.
    """
    encoded = _decoded(values).dictionary_encode()
    known = {"0": False, "1": True, "0.0": False, "1.0": True, "false": False, "true": True}
    meaning = []
    for value in encoded.dictionary.to_pylist():
        text = str(value).lower()
        if text not in known:
            raise no_flags_error(table.shown, table.schema.names, column, str(value)[:80])
        meaning.append(known[text])
    if encoded.null_count:
        raise no_flags_error(table.shown, table.schema.names, column, "an empty value")
    flags: npt.NDArray[np.bool_] = np.array([*meaning, False])[encoded.indices.to_numpy(zero_copy_only=False)]
    return flags


def name_classes(labels: Mapping[str, Labels]) -> tuple[dict[str, list[Any]], list[str]]:
    """The class name of each row of each table, or its class names, and notes on how they were read.

    Integers take the names that any of the tables has, for writers such as Hugging Face's store them in each file, but
    other tools drop them. If a row of one table may have several labels, all rows have tuples.

    Args:
        labels: name of a table, as messages call it → its labels.

    Raises:
        UserError: the tables contradict one another, or a label has no name although others do.
    """
    _check_kinds(labels)
    names, notes = _names_of_integers(labels)
    separator, said = _separator(labels)
    rows = {table: _rows(table, each, names, separator) for table, each in labels.items()}
    flags = [table for table, each in labels.items() if each.kind == "flags"]
    if flags and all(len(row) == 1 for table in flags for row in rows[table]):
        said.append("One column for each label, and each image has one label: they were read as classes.")
        rows |= {table: [row[0] for row in rows[table]] for table in flags}
    if any(isinstance(found[0], tuple) for found in rows.values() if found):
        rows = {t: [row if isinstance(row, tuple) else (row,) for row in found] for t, found in rows.items()}
    return rows, notes + said


def _names_of_integers(labels: Mapping[str, Labels]) -> tuple[list[str], list[str]]:
    """What the labels 0, 1, … are called in the metadata of any table, none if they are numbers; and notes.

    Raises:
        UserError: the tables contradict one another, or a label has no name although others do.
    """
    if not any(isinstance(value, int) for found in labels.values() for value in found.values):
        return [], []
    naming = [table for table, found in labels.items() if found.class_names]
    unnamed = [table for table in labels if table not in naming]
    notes = []
    if faulty := [f"{table!r} {found.fault}" for table, found in labels.items() if found.fault]:
        notes.append(f"Hugging Face's metadata names no classes that can be used: {format_list(faulty, 3)}.")
    if not naming:
        return [], notes
    names = labels[naming[0]].class_names
    for table in naming:
        if labels[table].class_names != names:
            raise UserError(
                f"The metadata of {naming[0]!r} and {table!r} give different names to the same labels "
                f"({_difference(names, labels[table].class_names)}); write the files with the same names, or with "
                f"labels that are strings."
            )
    for table, found in labels.items():
        if strange := sorted(value for value in found.values if not 0 <= int(value) < len(names)):
            unlabelled = ", which marks a row without a label" if strange[0] == -1 else ""
            raise UserError(
                f"{table!r} has the label {strange[0]}{unlabelled}, but the metadata names the labels 0 to "
                f"{len(names) - 1}; correct or remove those rows."
            )
    if unnamed:
        notes.append(
            f"The class names in {naming[0]!r} hold for all Parquet files; these have none of their own: "
            f"{format_list(list(map(repr, unnamed)), 3)}."
        )
    return names, notes


def _separator(labels: Mapping[str, Labels]) -> tuple[str | None, list[str]]:
    """What separates several labels in the cells of all tables, and a note on that."""
    found = [each for each in labels.values() if each.kind == "cells"]
    if not found:
        return None, []
    plural, column = all(is_plural(each.column) for each in found), found[0].column
    separator = separator_in({str(value) for each in found for value in each.values}, plural=plural, column=column)
    if separator is None:
        return None, []
    how = "are written as lists" if separator == "[" else f"are separated by {separator!r}"
    return separator, [f"The column {column} may hold several labels of an image, which {how}."]


def _rows(table: str, labels: Labels, names: Sequence[str], separator: str | None) -> list[Any]:
    """The class name of each row, or a tuple of them.

    Raises:
        UserError: a row has no label, where each has one.
    """
    texts = [names[value] if names and isinstance(value, int) else str(value) for value in labels.values]
    if labels.counts is not None:
        ends = np.cumsum(labels.counts).tolist()
        positions, same = labels.positions.tolist(), dict[tuple[str, ...], tuple[str, ...]]()
        rows = (positions[end - count : end] for end, count in zip(ends, labels.counts.tolist(), strict=True))
        found = (tuple(dict.fromkeys(texts[position] for position in row)) for row in rows)
        return [same.setdefault(row, row) for row in found]
    if labels.kind == "cells" and separator is not None:
        cells = [*(parts_of(text, separator) for text in texts), ()]  # the last one is that of position -1
        return [cells[position] for position in labels.positions.tolist()]
    _check_empty(table, labels)
    return [texts[position] for position in labels.positions.tolist()]


def _values(file: str, column: str, labels: pa.Array) -> list[str | int]:
    """The different labels of some rows, after a check."""
    if is_text(labels.type):
        longest = pc.max(pc.binary_length(labels.cast(pa.large_binary()))).as_py() or 0
        if longest > MAX_LABEL_SIZE:
            raise UserError(
                f"The column {column} of {file!r} has a value of {longest:,} bytes; give names of classes, of at most "
                f"{MAX_LABEL_SIZE:,}."
            )
    values: list[str | int] = labels.to_pylist()
    if any(isinstance(value, str) and not value.strip() for value in values):
        raise UserError(f"The column {column} of {file!r} has blank values; fill or remove those rows.")
    return values


def _class_names(metadata: bytes | None, column: str) -> tuple[list[str], str | None]:
    """The names of a Hugging Face ClassLabel (none for other labels), and what is wrong with the metadata."""
    if metadata is None:
        return [], None
    try:
        found: Any = json.loads(metadata)
    except (ValueError, RecursionError):  # no JSON, no UTF-8, numbers of thousands of digits, thousands of levels
        return [], "cannot be read as JSON"
    for key in ("info", "features", column):
        if not isinstance(found, dict) or not isinstance(_of_list(found.get(key, {})), dict):
            return [], f"has no object at {key}"
        found = _of_list(found.get(key, {}))
    names = found.get("names", [])
    if not isinstance(names, list) or not all(map(_is_name, names)):
        return [], f"has names that are no list of texts of 1 to {MAX_LABEL_SIZE:,} bytes"
    if len(set(names)) < len(names):
        return [], "has a name twice"
    return names, None


def _of_list(feature: Any) -> Any:
    """The feature that a list is of, as versions of Hugging Face's `datasets` write it, or the feature itself."""
    if isinstance(feature, list) and len(feature) == 1:
        return feature[0]
    return feature["feature"] if isinstance(feature, dict) and isinstance(feature.get("feature"), dict) else feature


def _is_name(name: object) -> bool:
    """Whether a label is text, neither blank nor too long, that UTF-8 can encode."""
    try:
        return isinstance(name, str) and bool(name.strip()) and len(name.encode()) <= MAX_LABEL_SIZE
    except UnicodeEncodeError:
        return False


def _check_kinds(labels: Mapping[str, Labels]) -> None:
    """Raises UserError if labels are strings in one table and integers in another."""
    kinds = {type(found.values[0]): table for table, found in labels.items() if found.values}
    if len(kinds) > 1:
        raise UserError(
            f"The column label is a string in {kinds[str]!r}, but an integer in {kinds[int]!r}; write it with one type."
        )


def _difference(one: list[str], other: list[str]) -> str:
    """The first label that two lists name differently."""
    for label, (name, second) in enumerate(zip(one, other, strict=False)):
        if name != second:
            return f"{label} is {name!r} or {second!r}"
    return f"{len(one)} or {len(other)} names"
