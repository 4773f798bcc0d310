"""Open a Parquet file, but none with column types that another library must rebuild."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from delta_tune.config import UserError

_NAME, _OWN_TYPES = b"ARROW:extension:name", frozenset(("arrow.bool8", "arrow.json", "arrow.uuid"))
"""Where a file names an extension type, and those that are Arrow's own and hold plain values."""


def open_parquet(
    source: Any, *, name: str, filesystem: Any = None, read_dictionary: tuple[str, ...] = ()
) -> pq.ParquetFile:
    """Open a Parquet file and check its schema; no value is read.

    Values of extension types are rebuilt by whichever library has registered the type: Ray unpickles those of
    `ray.data.arrow_pickled_object`, which would run code from the file. So a file with such a type, also one nested in
    another type or registered nowhere, is refused.

    Args:
        source: a path (in `filesystem` if that is given), or an open file.
        name: how messages call the file.
        filesystem: a pyarrow.fs.FileSystem, or None for local paths.
        read_dictionary: text columns that stay dictionaries, so that a repeated value takes no more memory.

    Raises:
        UserError: it is missing or no Parquet file, or has an extension type.
    """
    try:
        parquet = pq.ParquetFile(
            _mapped(source) if filesystem is None and not _is_utf8(source) else source,
            filesystem=filesystem,
            read_dictionary=read_dictionary,
            buffer_size=8 * 2**20,
            pre_buffer=False,  # otherwise it loads whole row groups ahead, however few rows are asked for
            page_checksum_verification=True,
        )
        found = [(field.name, kind) for field in parquet.schema_arrow for kind in _extension_types(field)]
    except Exception as error:  # what registered a type may raise anything about the type's own metadata
        raise UserError(f"{name!r} cannot be read as Parquet ({error}); give a whole .parquet file.") from error
    if found:
        parquet.close(force=True)
        column, kind = found[0]
        raise UserError(
            f"{name!r} has the type {kind!r} in its column {column!r}, which may run code when it is read; write the "
            f"file again with plain types, or without that column."
        )
    return parquet


def _extension_types(field: pa.Field) -> Iterator[str]:
    """Names of the extension types of a field and of the fields within it."""
    kind = field.type
    if isinstance(kind, pa.BaseExtensionType):
        found = kind.extension_name
    else:  # of a type that is not registered, only the metadata is there
        found = (field.metadata or {}).get(_NAME, b"").decode(errors="replace")
    if found and found not in _OWN_TYPES:
        yield found
    for index in range(kind.num_fields):
        yield from _extension_types(kind.field(index))
    if pa.types.is_dictionary(kind):
        yield from _extension_types(pa.field(field.name, kind.value_type))


def _is_utf8(source: Any) -> bool:
    try:
        str(source).encode()
    except UnicodeEncodeError:
        return False
    return True


def _mapped(path: str) -> pa.BufferReader:
    """A file whose name pyarrow refuses since it is not UTF-8."""
    with open(path, "rb") as file:
        return pa.BufferReader(pa.py_buffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)))
