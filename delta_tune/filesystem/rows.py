"""The rows of a small Parquet file that a stranger may have changed, within limits on what it unfolds to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from delta_tune.filesystem.parquet import open_parquet
from delta_tune.filesystem.untrusted import read_file, shown

FILE_BYTES = 256 * 2**20
TEXT_BYTES = 256 * 2**20
"""Of all values of text columns together, repeated ones as often as they are repeated."""
VALUES = 10_000_000
"""In all rows and columns; as Python objects they take about a gigabyte."""
BATCH = 1024

Rows = list[dict[str, Any]]


def read_table_file(file: Path) -> tuple[Rows, dict[bytes, bytes]]:
    """The rows of a Parquet file, and its metadata; as `read_rows`.

    Raises:
        OSError, ValueError: it cannot be read, or `read_rows` refuses it.
    """
    return read_rows(read_file(file, FILE_BYTES), file.name)


def read_rows(content: bytes, name: str) -> tuple[Rows, dict[bytes, bytes]]:
    """The rows of a Parquet file, and its metadata.

    Only plain columns are allowed: truth values, numbers, text, bytes, and lists of numbers.

    Args:
        content: of the file.
        name: of the file, for messages.

    Raises:
        ValueError: it is no Parquet file, it has another kind of column, or it is too large in memory.
    """
    try:
        schema = open_parquet(pa.BufferReader(content), name=name).schema_arrow
        for column in schema:
            kind = column.type
            if not (_plain(kind) or (pa.types.is_list(kind) and _number(kind.value_type))):
                raise ValueError(f"column {shown(column.name)} has the type {kind!s:.60}, which no table of ours has")
        if len(set(schema.names)) < len(schema.names):
            raise ValueError("two of its columns have one name")
        texts = tuple(column.name for column in schema if _text(column.type))
        return _rows(content, name, texts), dict(schema.metadata or {})
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"it is no Parquet file that can be read: {str(error).splitlines()[0]:.200}") from error


def _rows(content: bytes, name: str, texts: tuple[str, ...]) -> Rows:
    opened = open_parquet(pa.BufferReader(content), name=name, read_dictionary=texts)
    about, rows = opened.metadata, Rows()
    groups = [about.row_group(n) for n in range(about.num_row_groups)]
    values = max(
        about.num_rows * max(1, about.num_columns),
        sum(group.column(n).num_values for group in groups for n in range(group.num_columns)),
    )
    if values > VALUES:
        raise ValueError(f"it holds {values} values, more than {VALUES}")
    size = 0
    for batch in opened.iter_batches(BATCH):
        size += sum(_text_bytes(batch.column(text)) for text in texts)
        if size > TEXT_BYTES:
            raise ValueError(f"its texts take more than {TEXT_BYTES} bytes")
        rows += batch.to_pylist()
    return rows


def _text_bytes(column: pa.Array) -> int:
    """Bytes of all values, written out."""
    if not pa.types.is_dictionary(column.type):
        return int(column.nbytes)
    return pc.sum(pc.binary_length(column.dictionary).take(column.indices)).as_py() or 0


def _number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def _text(kind: pa.DataType) -> bool:
    kinds = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)
    return any(test(kind) for test in kinds)


def _plain(kind: pa.DataType) -> bool:
    return _number(kind) or _text(kind) or bool(pa.types.is_boolean(kind) or pa.types.is_null(kind))
