"""Tables as a data source: each row is an image with its labels, and perhaps its split and its group."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from itertools import accumulate
from typing import Any

import pyarrow as pa

from delta_tune.config import UserError, did_you_mean
from delta_tune.data.file_tree import FileTree
from delta_tune.data.sources.base import Examples, join, pick
from delta_tune.data.sources.class_folders import counted
from delta_tune.data.sources.image_paths import ImagePaths, locate
from delta_tune.data.sources.parquet_columns import encoded_column, path_column
from delta_tune.data.sources.parquet_rows import EncodedRows, ParquetTable, open_tables
from delta_tune.data.sources.table_labels import name_classes, read_labels
from delta_tune.data.sources.text_tables import TextTable, is_text_table, read_text_table
from delta_tune.data.split_names import SPLIT_NAMES, splits_in
from delta_tune.data.splits import format_list

AnyTable = TextTable | ParquetTable


def read_tables(
    tree: FileTree, splits: Mapping[str, Sequence[str]], *, named: bool
) -> tuple[dict[str, Examples], list[str]]:
    """The examples of each split, and notes on how columns and class names were read.

    Args:
        tree: of the tables.
        splits: split → its files.
        named: whether names of files or folders tell the splits. Else a column may.

    Raises:
        UserError: a file cannot be used, or exceeds a limit on rows and bytes.
    """
    files = [file for found in splits.values() for file in found]
    tables: dict[str, AnyTable] = dict(open_tables(tree, [file for file in files if not is_text_table(file)]))
    tables |= {file: read_text_table(tree, file) for file in files if is_text_table(file)}
    labels, notes = name_classes({tables[file].shown: read_labels(tables[file]) for file in files})
    notes += _notes_on_columns([tables[file] for file in files], named)
    paths, examples = ImagePaths(tree), {}
    for split, found in splits.items():
        parts, more = _examples([tables[file] for file in found], labels, paths)
        examples[split] = join(parts)
        notes += more
    if not named and any(table.columns.split for table in tables.values()):
        words = [word for file in files for word in _split_words(tables[file])]
        examples, said = _divided(examples["train"], words, tree.shown(tree.root))
        notes.append(said)
    if all(encoded_column(table.schema, table.columns) for table in tables.values()):
        return examples, notes
    examples, more = _each_once(examples, any(table.columns.holds_several for table in tables.values()))
    return examples, notes + more


def _examples(
    tables: Sequence[AnyTable], labels: Mapping[str, list[Any]], paths: ImagePaths
) -> tuple[list[Examples], list[str]]:
    """The examples of each table of a split, and notes on paths that were found in a particular way."""
    with_images = [t for t in tables if isinstance(t, ParquetTable) and encoded_column(t.schema, t.columns)]
    encoded = EncodedRows(paths.tree, [group for table in with_images for group in table.row_groups])
    ends = accumulate(table.num_rows for table in with_images)
    first = {table.file: end - table.num_rows for table, end in zip(with_images, ends, strict=True)}
    parts, notes = [], []
    for table in tables:
        found, column = labels[table.shown], path_column(table.schema, table.columns)
        groups = None if table.columns.group is None else [text or "" for text in texts_of(table, table.columns.group)]
        if table.file in first:
            names = [f"{table.shown}:{row}" for row in range(len(found))]
            read = _reader(encoded, first[table.file], table, column, paths)
            parts.append(Examples(labels=found, names=names, read=read, groups=groups))
            continue
        assert column is not None, "check_columns has found it"
        images, said = locate(paths, table.shown, os.path.dirname(table.file), texts_of(table, column))
        parts.append(
            Examples(labels=found, names=images.names, read=images.read, readers=images.readers, groups=groups)
        )
        notes += said
    return parts, notes


def _reader(
    encoded: EncodedRows, first: int, table: AnyTable, column: str | None, paths: ImagePaths
) -> Callable[[int], bytes]:
    """Reads an image of a table, at its path where the table has no bytes of it."""

    @cache
    def written() -> list[str | None]:
        return [] if column is None else texts_of(table, column)

    def read(row: int) -> bytes:
        content = encoded.read(first + row)
        if content or column is None:
            return content
        path = written()[row]
        return content if path is None else paths.read(os.path.dirname(table.file), path)

    return read


def texts_of(table: AnyTable, column: str) -> list[str | None]:
    """A column as text; None where it is empty.

    Raises:
        UserError: it has no text.
    """
    found: list[str | None] = []
    for step in table.steps(column):
        values = step.dictionary_decode() if pa.types.is_dictionary(step.type) else step
        try:
            found += values.cast(pa.large_string()).to_pylist()
        except pa.ArrowException:
            raise UserError(
                f"The column {column} of {table.shown!r} is {values.type}; give a string or an integer."
            ) from None
    return found


def _split_words(table: AnyTable) -> list[str]:
    """What each row says of its split.

    Raises:
        UserError: a row says nothing.
    """
    column = table.columns.split
    words = [None] if column is None else texts_of(table, column)
    if None in words:
        where = "" if column is None else f" in row {words.index(None) + 1}"
        raise UserError(
            f"{table.shown!r} names no split{where}, but others do; write train, val or test into the column split of "
            f"each row."
        )
    return [word for word in words if word is not None]


def _divided(examples: Examples, words: Sequence[str], data: str) -> tuple[dict[str, Examples], str]:
    """The examples of each split, and a note on which word is which.

    Args:
        examples: of all splits.
        words: what each says of its split.
        data: how messages call it.

    Raises:
        UserError: a word is no split, or none is train.
    """
    meaning = {}
    for word in dict.fromkeys(words):
        said = splits_in(word)
        if len(said) != 1:
            raise UserError(
                f"The column split of {data!r} has {word!r}{did_you_mean(word, SPLIT_NAMES)}, which is no split; write "
                f"train, val or test, or name the column otherwise if it is none of splits."
            )
        meaning[word] = said[0]
    of_val = sorted({word.lower() for word, split in meaning.items() if split == "val"})
    if len(of_val) > 1:
        raise UserError(
            f"The column split of {data!r} has {' and '.join(map(repr, of_val))}, which all mean val; keep one of "
            f"them, or write test instead of the others."
        )
    if "train" not in meaning.values():
        raise UserError(f"The column split of {data!r} has {', '.join(map(repr, meaning))} but no train; add train.")
    rows: dict[str, list[int]] = {split: [] for split in ("train", "val", "test") if split in meaning.values()}
    for row, word in enumerate(words):
        rows[meaning[word]].append(row)
    sizes = ", ".join(f"{split} {len(found)}" for split, found in rows.items())
    return {
        split: pick(examples, found) for split, found in rows.items()
    }, f"The column split tells the splits: {sizes}."


def _each_once(examples: Mapping[str, Examples], plural: bool) -> tuple[dict[str, Examples], list[str]]:
    """The examples of each split without further rows of one image, whose labels it gets; and a note on that.

    Args:
        examples: split → its examples.
        plural: whether the column of labels has a name in the plural.

    Raises:
        UserError: an image has two labels, but may have one.
    """
    first: dict[str, dict[str, int]] = {split: {} for split in examples}
    labels: dict[str, dict[int, list[str]]] = {split: {} for split in examples}
    merged, several = 0, False
    for split, found in examples.items():
        for row, (name, label) in enumerate(zip(found.names, found.labels, strict=True)):
            kept = first[split].setdefault(name, row)
            if kept == row:
                continue
            merged += 1
            before = labels[split].setdefault(kept, _as_list(found.labels[kept]))
            new = [each for each in _as_list(label) if each not in before]
            if new and not (plural or isinstance(label, tuple)):
                raise UserError(
                    f"{name!r} is {before[0]!r} in row {kept + 1} and {label!r} in row {row + 1} of {split}; leave one "
                    f"of them, or name the column labels if an image may have several."
                )
            several = several or bool(new)
            before += new
    if not merged:
        return dict(examples), []
    as_tuples = several or any(isinstance(label, tuple) for found in examples.values() for label in found.labels[:1])
    result = {}
    for split, found in examples.items():
        rows = list(first[split].values())
        each = [labels[split].get(row) or _as_list(found.labels[row]) for row in rows]
        result[split] = pick(found, rows, [tuple(names) if as_tuples else names[0] for names in each])
    how = "an image has the labels of all its rows" if as_tuples else "they were read once"
    return result, [f"{counted(merged, 'row')} of images that other rows name too: {how}."]


def _as_list(label: str | Sequence[str]) -> list[str]:
    return [label] if isinstance(label, str) else list(label)


def _notes_on_columns(tables: Sequence[AnyTable], named: bool) -> list[str]:
    """Sentences on columns with usual names, on labels in columns of their own, and on what is not used."""
    notes = []
    found = {(t.columns.image, t.columns.label or "", t.columns.group or "") for t in tables}
    usual = {("image", "label", ""), ("image", "label", "group")}
    if found - usual:
        which = tables[0].columns
        label = f"{which.label!r} the labels" if which.label is not None else _shown_flags(which.flags)
        group = "" if which.group is None else f", {which.group!r} the groups"
        notes.append(f"The column {which.image!r} holds the images, {label}{group}.")
    if named and any(table.columns.split for table in tables):
        notes.append("The column split was not used: names of files or folders tell the splits.")
    if likely := next((table.columns.likely_group for table in tables if table.columns.likely_group), None):
        notes.append(
            f"The column {likely!r} was not used; name it group if its rows belong together, so that no split cuts "
            f"through them."
        )
    return notes


def _shown_flags(flags: Sequence[str]) -> str:
    return f"and {len(flags)} columns are a label each ({format_list([repr(name) for name in flags], 5)})"
