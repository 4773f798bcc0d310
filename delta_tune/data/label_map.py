"""A label map renames classes, merges them, or leaves their images out."""

from __future__ import annotations

import csv
import io
import json
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from delta_tune.config import UserError, did_you_mean
from delta_tune.console.format import format_count
from delta_tune.data.file_tree import FileTree
from delta_tune.data.sources.base import Examples, Source, pick
from delta_tune.data.splits import format_list

_MOST_BYTES = 64 * 2**20


def read_label_map(file: str | Path) -> dict[str, str]:
    """Class → its new name, empty for images that are left out.

    Args:
        file: CSV with a class and its new name a line, with or without "from,to" at the top, or a JSON object.

    Raises:
        UserError: it cannot be read, or names a class twice.
    """
    tree = FileTree(file)
    shown = tree.shown(tree.root)
    try:
        content = tree.read(tree.root, listed=False)
        if len(content) > _MOST_BYTES:
            raise ValueError("it is too large")
        text = content.decode("utf-8-sig")
        pairs = _json_pairs(text) if shown.lower().endswith(".json") else _csv_pairs(text)
    except UserError:
        raise
    except (OSError, ValueError, RecursionError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"The label map {shown!r} cannot be read ({reason}); give CSV with lines such as "
            f'"tabby,cat", or a JSON object such as {{"tabby": "cat"}}.'
        ) from error
    found: dict[str, str] = {}
    for name, target in pairs:
        name, target = (unicodedata.normalize("NFC", text.strip()) for text in (name, target))
        if found.setdefault(name, target) != target:
            raise UserError(f"The label map {shown!r} names {name!r} twice, for {found[name]!r} and {target!r}.")
    return found


def apply_label_map(source: Source, label_map: Mapping[str, str]) -> Source:
    """The source with the classes renamed. Of several labels an image, those that are left out are taken away.

    Args:
        source: of the data.
        label_map: as from `read_label_map`; classes that it does not name stay.

    Raises:
        UserError: it names a class that the data does not have.
    """
    names = {each for examples in source.splits.values() for label in examples.labels for each in _as_tuple(label)}
    composed = {name: unicodedata.normalize("NFC", name) for name in names}
    known = set(composed.values())
    if strange := [name for name in label_map if name not in known]:
        raise UserError(
            f"The label map names the class {format_list(list(map(repr, strange)), 3)}, which the data does not have"
            f"{did_you_mean(strange[0], known)}; correct it."
        )
    new = {name: label_map.get(form, form) for name, form in composed.items()}
    splits = {split: _mapped(examples, new) for split, examples in source.splits.items()}
    return replace(source, splits=splits, notes=(*source.notes, *_notes(source, splits, label_map)))


def _mapped(examples: Examples, new: Mapping[str, str]) -> Examples:
    """The examples whose labels are not left out."""
    labels: list[Any] = []
    rows: list[int] = []
    for row, label in enumerate(examples.labels):
        found = tuple(dict.fromkeys(new[each] for each in _as_tuple(label) if new[each]))
        if isinstance(label, tuple):
            labels.append(found)
            rows.append(row)
        elif found:
            labels.append(found[0])
            rows.append(row)
    return pick(examples, rows, labels)


def _notes(source: Source, splits: Mapping[str, Examples], label_map: Mapping[str, str]) -> list[str]:
    """Sentences on what the map has done."""
    merged = Counter(target for target in label_map.values() if target)
    kept = {each for examples in splits.values() for label in examples.labels for each in _as_tuple(label)}
    notes = [f"The label map renames {_counted_classes(len(label_map))}"]
    if together := [f"{count} as {target!r}" for target, count in merged.items() if count > 1]:
        notes[0] += f" ({format_list(together, 3)})"
    notes[0] += f"; there are {len(kept)} now."
    left_out = sum(len(examples.labels) for examples in source.splits.values())
    left_out -= sum(len(examples.labels) for examples in splits.values())
    if left_out:
        notes.append(f"The label map leaves {format_count(left_out, 'image')} out.")
    return notes


def _counted_classes(count: int) -> str:
    return "1 class" if count == 1 else f"{count} classes"


def _csv_pairs(text: str) -> list[tuple[str, str]]:
    rows = [row for row in csv.reader(io.StringIO(text, newline="")) if any(cell.strip() for cell in row)]
    if rows and [cell.strip().lower() for cell in rows[0]] == ["from", "to"]:
        rows = rows[1:]
    if bad := next((row for row in rows if len(row) != 2), None):
        raise ValueError(f"it has the line {','.join(bad)[:80]!r}")
    return [(name, target) for name, target in rows]


def _json_pairs(text: str) -> list[tuple[str, str]]:
    found = json.loads(text, object_pairs_hook=tuple)  # an object that names a class twice shows both
    if not isinstance(found, tuple):
        raise ValueError("it is no object")
    if not all(target is None or isinstance(target, str) for _, target in found):
        raise ValueError("a new name is no text")
    return [(name, target or "") for name, target in found]


def _as_tuple(label: str | Sequence[str]) -> tuple[str, ...]:
    return (label,) if isinstance(label, str) else tuple(label)
