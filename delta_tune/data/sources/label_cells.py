"""Several labels in one cell of text: `cat|dog`, `cat;dog`, `["cat", "dog"]`, and when a comma separates them."""

from __future__ import annotations

import ast
import json
from collections.abc import Collection

from delta_tune.config import UserError
from delta_tune.data.splits import format_list

_LONGEST = 10_000
"""Characters of a cell that is read as a list."""


def separator_in(cells: Collection[str], *, plural: bool, column: str) -> str | None:
    """What separates labels in the cells of a column: "|", ";", ",", "[" for written lists; None if each is one label.

    A column whose name is a plural holds several labels wherever there is a "|" or else a ";". In another column these
    may belong to names, so they separate only where some cells have more of them than others. Names have commas, too
    (`crane, bird`): a comma separates in a plural column only, and only if each part stands alone somewhere.

    Args:
        cells: each different one.
        plural: whether the column's name is a plural.
        column: its name, for messages.

    Raises:
        UserError: it is not clear whether commas separate.
    """
    cells = [cell for cell in cells if cell]
    if plural and cells and all(cell.startswith("[") and cell.endswith("]") for cell in cells):
        return "["
    for mark in "|;":
        counts = {cell.count(mark) for cell in cells}
        if len(counts) > 1 or (plural and counts - {0}):
            return mark
    with_comma = [cell for cell in cells if "," in cell] if plural else []
    if not with_comma:
        return None
    alone = set(cells).difference(with_comma)
    if open_parts := sorted({part for cell in with_comma for part in parts_of(cell, ",")} - alone):
        raise UserError(
            f"The column {column} has commas, but {format_list([repr(part) for part in open_parts], 3)} never stands "
            f"alone, so it may be part of a name; write | between several labels of an image, or name the column label "
            f"if each value is one class."
        )
    return ","


def parts_of(cell: str, separator: str | None) -> tuple[str, ...]:
    """The labels in a cell, each once.

    Raises:
        UserError: it is no list, where lists are written.
    """
    if separator is None:
        return (cell,) if cell else ()
    parts = _listed(cell) if separator == "[" else cell.split(separator)
    return tuple(dict.fromkeys(label for part in parts if (label := part.strip())))


def _listed(cell: str) -> list[str]:
    """The labels in `["cat", "dog"]` or, as Python and pandas write it, `['cat', 'dog']`."""
    if not cell:
        return []
    found: object = None
    if len(cell) <= _LONGEST and cell.count("[") == 1 and "(" not in cell and "{" not in cell:
        for read in (json.loads, ast.literal_eval):
            try:
                found = read(cell)
                break
            except (ValueError, SyntaxError, RecursionError, MemoryError):
                continue
    if not isinstance(found, list) or not all(isinstance(label, str | int) for label in found):
        raise UserError(f"{cell[:80]!r} is no list of labels; write cat|dog.")
    return [str(label) for label in found]
