"""The columns of a Parquet file: those that are needed, how large they may be, and their values, decoded in steps."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from delta_tune.config import UserError, did_you_mean
from delta_tune.console.format import format_bytes
from delta_tune.data.limits import MAX_FILE_SIZE
from delta_tune.data.sources.class_folders import counted
from delta_tune.data.splits import format_list

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


def check_columns(file: str, schema: pa.Schema) -> None:
    """Raises UserError unless there are one column of encoded images and one of labels."""
    for column in ("image", "label"):
        if column not in schema.names:
            raise UserError(
                f"{file!r} has no column {column!r}{did_you_mean(column, schema.names)}: its columns are "
                f"{format_list(schema.names, 20)}; rename them to image (encoded bytes, or a struct with bytes) and "
                f"label."
            )
        if schema.names.count(column) > 1:
            raise UserError(f"{file!r} has {schema.names.count(column)} columns {column!r}; leave one of them.")
    kind = schema.field("image").type
    if pa.types.is_struct(kind):
        kind = kind.field("bytes").type if kind.get_field_index("bytes") >= 0 else kind
    if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)):
        raise UserError(f"The column image of {file!r} is {kind}; give encoded bytes, or a struct with bytes.")
    kind = schema.field("label").type
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not (pa.types.is_integer(kind) or is_text(kind)):
        raise UserError(f"The column label of {file!r} is {kind}; give a string or an integer.")


def image_column(schema: pa.Schema) -> str:
    """The path of the encoded images in a schema that passed `check_columns`."""
    return "image.bytes" if pa.types.is_struct(schema.field("image").type) else "image"


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
            values = batch.column(0)
            values.validate(full=True)
            missing -= len(values)
            yield values.flatten()[0] if pa.types.is_struct(values.type) else values
    except (pa.ArrowException, OSError, IndexError) as error:
        raise UserError(f"{file!r} is damaged or cannot be read any more ({error}); give a whole file.") from error
    if missing:
        raise UserError(f"{file!r} is damaged: its row group {group} lacks {missing} rows; give a whole file.")
