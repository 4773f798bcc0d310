"""The columns of a Parquet file: those that are needed, how large they may be, and their values, decoded in steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from delta_tune.config import UserError
from delta_tune.console.format import format_bytes
from delta_tune.data.limits import MAX_FILE_SIZE
from delta_tune.data.sources.class_folders import counted
from delta_tune.data.sources.table_columns import Columns, find_columns, no_flags_error

MAX_ROWS = 10_000_000
"""Rows of all Parquet files of a data set: a file of some kilobytes may have any number."""
MAX_UNFOLDING = 200
"""How many times larger than the file its pages may be once unpacked, if they have more than `STEP_SIZE` bytes."""
STEP_SIZE = 64 * 2**20
"""Bytes that are decoded at one time; more only if one value has more."""
_STEP_ROWS = 4096


def is_text(kind: pa.DataType) -> bool:
    """Whether a column is of one of Arrow's three types of text."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def is_list(kind: pa.DataType) -> bool:
    """Whether a column is of one of Arrow's types of lists."""
    types = pa.types
    tests = (types.is_list, types.is_large_list, types.is_fixed_size_list, types.is_list_view, types.is_large_list_view)
    return any(test(kind) for test in tests)


def check_columns(file: str, schema: pa.Schema, *, labels: bool = True) -> Columns:
    """The columns of a table.

    Args:
        file: how messages call it.
        schema: names and types of its columns.
        labels: whether it has labels; else it must have groups.

    Raises:
        UserError: one is missing, or of a type that it cannot have.
    """
    columns = find_columns(file, schema.names, labels=labels)
    if encoded_column(schema, columns) is None and path_column(schema, columns) is None:
        raise UserError(
            f"The column {columns.image} of {file!r} is {schema.field(columns.image).type}; give encoded bytes, paths, "
            f"or a struct with bytes or path."
        )
    if not labels:
        return columns
    for column in (columns.label,) if columns.label is not None else columns.flags:
        kind = _value_type(schema.field(column).type)
        if is_list(kind) and columns.label is not None:
            kind = _value_type(kind.value_type)
        tests = (pa.types.is_integer, is_text, pa.types.is_boolean, pa.types.is_floating, pa.types.is_null)
        if any(test(kind) for test in tests):
            continue
        if columns.label is None:
            raise no_flags_error(file, schema.names, column, f"values of the type {kind}")
        raise UserError(f"The column {column} of {file!r} is {kind}; give a string or an integer.")
    return columns


def encoded_column(schema: pa.Schema, columns: Columns) -> str | None:
    """The path in the schema of the encoded images, if there are any."""
    kind = schema.field(columns.image).type
    if pa.types.is_struct(kind):
        return f"{columns.image}.bytes" if _has(kind, "bytes", _is_binary) else None
    return columns.image if _is_binary(kind) else None


def path_column(schema: pa.Schema, columns: Columns) -> str | None:
    """The path in the schema of the images' paths, if there are any."""
    kind = schema.field(columns.image).type
    if pa.types.is_struct(kind):
        return f"{columns.image}.path" if _has(kind, "path", is_text) else None
    return columns.image if is_text(_value_type(kind)) else None


def _has(kind: pa.StructType, name: str, test: Callable[[pa.DataType], bool]) -> bool:
    return bool(kind.get_field_index(name) >= 0 and test(kind.field(name).type))


def _value_type(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def check_sizes(file: str, metadata: pq.FileMetaData, file_size: int) -> None:
    """Check the sizes that a file's metadata gives for its row groups, before anything is decoded.

    Raises:
        UserError: it is far larger decoded than encoded, or its rows are larger than images are.
    """
    # pyarrow's metadata of single columns end the process where they are damaged; those of row groups do not.
    sizes = [metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups)]
    if sum(sizes) > max(STEP_SIZE, MAX_UNFOLDING * file_size) or any(
        size > MAX_FILE_SIZE * max(1, metadata.row_group(group).num_rows) for group, size in enumerate(sizes)
    ):
        raise UserError(
            f"{file!r} would unfold from {format_bytes(file_size)} to {format_bytes(sum(sizes))} in "
            f"{counted(metadata.num_rows, 'row')}; give PNG or JPEG images of at most {format_bytes(MAX_FILE_SIZE)}."
        )


def decode_steps(parquet: pq.ParquetFile, file: str, group: int, column: str) -> Iterator[pa.Array]:
    """The values of a column in a row group, a few rows at a time; as many as its metadata says.

    No value is larger than the row group, in which each different value may be stored once: so a step's rows are fewer
    the larger the row group is, and its memory is bounded.

    Raises:
        UserError: the file is damaged, or cannot be read any more.
    """
    try:
        about = parquet.metadata.row_group(group)
        num_rows = max(1, min(_STEP_ROWS, STEP_SIZE // max(1, about.total_byte_size)))
        missing = about.num_rows
        for batch in parquet.iter_batches(num_rows, row_groups=[group], columns=[column], use_threads=False):
            values = batch.column(0 if batch.num_columns == 1 else batch.schema.get_field_index(column))
            values.validate(full=True)
            missing -= len(values)
            yield values.flatten()[0] if pa.types.is_struct(values.type) else values
    except (pa.ArrowException, OSError, IndexError) as error:
        raise UserError(f"{file!r} is damaged or cannot be read any more ({error}); give a whole file.") from error
    if missing:
        raise UserError(f"{file!r} is damaged: its row group {group} lacks {missing} rows; give a whole file.")
