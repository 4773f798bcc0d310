"""Files that this program wrote and a stranger may have changed: read within limits, and checked field by field."""

from __future__ import annotations

import json
import math
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, InstanceOf, TypeAdapter, ValidationError

from delta_tune.config import UserError

JSON_BYTES = 16 * 2**20
"""Largest JSON file; its objects take some twenty times as much memory."""
JSON_DEPTH = 50
INTEGER_DIGITS = 18

Text = InstanceOf[str]
"""Any string, names that are not UTF-8 included, which pydantic's own `str` refuses."""
Count = Annotated[int, Field(ge=0, le=2**62)]
Number = Annotated[float, Field(allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
MeanOfShares = Annotated[float, Field(ge=0, le=1 + 1e-6)]
"""A mean of values of [0, 1], which rounding may take past 1."""
Amount = Annotated[float, Field(ge=0, le=1e11)]
"""Seconds, of a duration or since 1970, and the like; a later moment is no date for Python."""


def _picture(content: bytes) -> bytes:
    if not content.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n")):
        raise ValueError("it is neither a JPEG nor a PNG")
    return content


Picture = Annotated[bytes, Field(max_length=2**20), AfterValidator(_picture)]
"""A JPEG or PNG for a page, which a browser decodes."""
Scalar = None | bool | int | float | Text


@contextmanager
def refusing(file: Path, advice: str) -> Iterator[None]:
    """Turn what makes a file unreadable into a UserError that names the file, the field and what to do."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise UserError(f"{file} is damaged ({error}); {advice}.") from None


def read_file(file: Path, limit: int) -> bytes:
    """The content of a regular file.

    Raises:
        FileNotFoundError, NotADirectoryError: there is none.
        OSError: it cannot be read, is no regular file, or has more than `limit` bytes.
    """
    # Opening a FIFO would wait for somebody who writes into it.
    with open(os.open(file, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb") as opened:
        about = os.fstat(opened.fileno())
        if not stat.S_ISREG(about.st_mode):
            raise OSError(f"{file} is no regular file")
        if about.st_size > limit:
            raise OSError(f"{file} has {about.st_size} bytes, more than {limit}")
        return opened.read(limit)


def parse_json(content: bytes | str, schema: Any, *, finite: bool = True) -> Any:
    """The JSON value in `content`, after a check against `schema`; keys that the schema does not name are kept.

    Args:
        content: at most `JSON_BYTES` long.
        schema: a type that pydantic knows.
        finite: whether NaN and Infinity are refused.

    Raises:
        ValueError: names the field and what is wrong with it.
    """
    if len(content) > JSON_BYTES:
        raise ValueError(f"it is longer than {JSON_BYTES} bytes")
    try:
        found = json.loads(
            content,
            object_pairs_hook=_object,
            parse_int=_integer,
            parse_float=_finite,
            parse_constant=_finite if finite else float,
        )
        deep = _depth(found) > JSON_DEPTH
    except RecursionError:
        deep = True
    if deep:
        raise ValueError(f"it is nested more than {JSON_DEPTH} levels deep")
    check(schema, found)
    return found


def read_json(file: Path, schema: Any, *, finite: bool = True) -> Any:
    """The JSON value in a file; as `parse_json`.

    Raises:
        FileNotFoundError, NotADirectoryError: there is no such file.
        OSError, ValueError: it cannot be read, is too large, or `parse_json` refuses it.
    """
    return parse_json(read_file(file, JSON_BYTES), schema, finite=finite)


def check(schema: Any, value: Any) -> None:
    """Check a value against a type that pydantic knows; nothing is converted.

    Raises:
        ValueError: names the field and what is wrong with it.
    """
    try:
        _adapter(schema).validate_python(value, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        cause = first.get("ctx", {}).get("error") or first["msg"].replace("Input", "it", 1)
        place = ".".join(str(part) if isinstance(part, int) else shown(part) for part in first["loc"])
        raise ValueError(f"{place}: {cause!s:.200}" if place else f"{cause!s:.200}") from None


def check_rows(rows: Iterable[Mapping[str, Any]], columns: Mapping[str, Any]) -> None:
    """Check a table row by row: each column's values, None where a row lacks it, against its type.

    Raises:
        ValueError: names the column, the row and what is wrong.
    """
    rows = list(rows)
    for name, kind in columns.items():
        try:
            check(list[kind], [row.get(name) for row in rows])  # type: ignore[valid-type]
        except ValueError as error:
            raise ValueError(f"column {shown(name)}, row {error}") from None


_adapter: Callable[[Any], TypeAdapter[Any]] = cache(TypeAdapter)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key stands twice in one object")
    return found


def _integer(text: str) -> int:
    if len(text) > INTEGER_DIGITS:
        raise ValueError(f"it has a whole number of {len(text)} digits")
    return int(text)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"it has the number {text[:20]}, which is not finite")
    return value


def _depth(value: Any) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + max(map(_depth, inner), default=0)


def shown(name: str) -> str:
    """A name from the file in a message: at most 60 characters, none of them a control character."""
    return ascii(name)[1:-1][:60]
