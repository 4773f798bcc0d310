"""The labels in Parquet files, and the class names that Hugging Face's metadata gives to integers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from delta_tune.config import UserError
from delta_tune.data.file_tree import FileTree
from delta_tune.data.sources.parquet_columns import decode_steps, is_text
from delta_tune.data.splits import format_list

MAX_LABEL_SIZE = 1020
"""Bytes of a class name: 255 characters, as many as a folder's name may have."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Labels:
    """The labels of one file."""

    values: list[str | int]
    """Each different one."""
    positions: npt.NDArray[np.int32]
    """(N,): of each row's label in `values`."""
    class_names: list[str]
    """What the file's metadata calls the integers 0, 1, …; empty if it says nothing of use."""
    fault: str | None
    """What is wrong with the metadata."""


def read_labels(tree: FileTree, file: str) -> Labels:
    """Read the column label.

    Raises:
        UserError: it is damaged, or has rows without a label or with one that is no class name.
    """
    shown = tree.shown(file)
    found: dict[str | int, int] = {}
    positions = [np.empty(0, dtype=np.int32)]
    num_empty = 0
    with tree.parquet(file) as parquet:
        metadata = parquet.schema_arrow.metadata or {}
        for group in range(parquet.num_row_groups):
            for step in decode_steps(parquet, shown, group, "label"):
                labels = step.dictionary_decode() if pa.types.is_dictionary(step.type) else step
                num_empty += labels.null_count
                encoded = labels.drop_null().dictionary_encode()
                values = _values(shown, encoded.dictionary)
                numbers = np.array([found.setdefault(value, len(found)) for value in values], dtype=np.int32)
                positions.append(numbers[encoded.indices.to_numpy()])
    if num_empty:
        raise UserError(f"The column label of {shown!r} has {num_empty} empty values; fill or remove those rows.")
    class_names, fault = _class_names(metadata.get(b"huggingface"))
    return Labels(values=list(found), positions=np.concatenate(positions), class_names=class_names, fault=fault)


def name_classes(tree: FileTree, labels: Mapping[str, Labels]) -> tuple[dict[str, list[str]], list[str]]:
    """The class name of each row of each file, and notes on where the names come from.

    Integers take the names that any of the files has, for writers such as Hugging Face's store them in each file, but
    other tools drop them.

    Args:
        labels: file → its labels.

    Raises:
        UserError: the files contradict one another, or a label has no name although others do.
    """
    _check_kinds(tree, labels)
    if not any(isinstance(value, int) for found in labels.values() for value in found.values):
        return {file: _named(found, []) for file, found in labels.items()}, []
    naming = [file for file, found in labels.items() if found.class_names]
    unnamed = [file for file in labels if file not in naming]
    notes = []
    if faulty := [f"{tree.shown(file)!r} {found.fault}" for file, found in labels.items() if found.fault]:
        notes.append(f"Hugging Face's metadata names no classes that can be used: {format_list(faulty, 3)}.")
    if not naming:
        return {file: _named(found, []) for file, found in labels.items()}, notes
    names = labels[naming[0]].class_names
    for file in naming:
        if labels[file].class_names != names:
            raise UserError(
                f"The metadata of {tree.shown(naming[0])!r} and {tree.shown(file)!r} give different names to the same "
                f"labels ({_difference(names, labels[file].class_names)}); write the files with the same names, or "
                f"with labels that are strings."
            )
    for file, found in labels.items():
        if strange := sorted(value for value in found.values if not 0 <= int(value) < len(names)):
            unlabelled = ", which marks a row without a label" if strange[0] == -1 else ""
            raise UserError(
                f"{tree.shown(file)!r} has the label {strange[0]}{unlabelled}, but the metadata names the labels 0 to "
                f"{len(names) - 1}; correct or remove those rows."
            )
    if unnamed:
        notes.append(
            f"The class names in {tree.shown(naming[0])!r} hold for all Parquet files; these have none of their own: "
            f"{format_list([repr(tree.shown(file)) for file in unnamed], 3)}."
        )
    return {file: _named(found, names) for file, found in labels.items()}, notes


def _values(file: str, labels: pa.Array) -> list[str | int]:
    """The different labels of some rows, after a check."""
    if is_text(labels.type):
        longest = pc.max(pc.binary_length(labels.cast(pa.large_binary()))).as_py() or 0
        if longest > MAX_LABEL_SIZE:
            raise UserError(
                f"The column label of {file!r} has a value of {longest:,} bytes; give names of classes, of at most "
                f"{MAX_LABEL_SIZE:,}."
            )
    values: list[str | int] = labels.to_pylist()
    if any(isinstance(value, str) and not value.strip() for value in values):
        raise UserError(f"The column label of {file!r} has blank values; fill or remove those rows.")
    return values


def _class_names(metadata: bytes | None) -> tuple[list[str], str | None]:
    """The names of a Hugging Face ClassLabel (none for other labels), and what is wrong with the metadata."""
    if metadata is None:
        return [], None
    try:
        found: Any = json.loads(metadata)
    except (ValueError, RecursionError):  # no JSON, no UTF-8, numbers of thousands of digits, thousands of levels
        return [], "cannot be read as JSON"
    for key in ("info", "features", "label"):
        if not isinstance(found, dict) or not isinstance(found.get(key, {}), dict):
            return [], f"has no object at {key}"
        found = found.get(key, {})
    names = found.get("names", [])
    if not isinstance(names, list) or not all(map(_is_name, names)):
        return [], f"has names that are no list of texts of 1 to {MAX_LABEL_SIZE:,} bytes"
    if len(set(names)) < len(names):
        return [], "has a name twice"
    return names, None


def _is_name(name: object) -> bool:
    """Whether a label is text, neither blank nor too long, that UTF-8 can encode."""
    try:
        return isinstance(name, str) and bool(name.strip()) and len(name.encode()) <= MAX_LABEL_SIZE
    except UnicodeEncodeError:
        return False


def _check_kinds(tree: FileTree, labels: Mapping[str, Labels]) -> None:
    """Raises UserError if labels are strings in one file and integers in another."""
    kinds = {type(found.values[0]): file for file, found in labels.items() if found.values}
    if len(kinds) > 1:
        raise UserError(
            f"The column label is a string in {tree.shown(kinds[str])!r}, but an integer in "
            f"{tree.shown(kinds[int])!r}; write it with one type."
        )


def _difference(one: list[str], other: list[str]) -> str:
    """The first label that two lists name differently."""
    for label, (name, second) in enumerate(zip(one, other, strict=False)):
        if name != second:
            return f"{label} is {name!r} or {second!r}"
    return f"{len(one)} or {len(other)} names"


def _named(labels: Labels, names: list[str]) -> list[str]:
    """The class name of each row."""
    values = [names[value] if names and isinstance(value, int) else str(value) for value in labels.values]
    return [values[position] for position in labels.positions.tolist()]
