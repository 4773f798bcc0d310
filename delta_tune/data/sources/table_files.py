"""Which tables are a data set: one that is given, or those of a folder beside its images."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace

from delta_tune.config import UserError
from delta_tune.data.file_tree import FileTree
from delta_tune.data.sources.base import Examples, Source
from delta_tune.data.sources.class_folders import content_of, counted, listed
from delta_tune.data.sources.image_folder import from_image_folder
from delta_tune.data.sources.parquet_columns import path_column
from delta_tune.data.sources.parquet_rows import open_tables
from delta_tune.data.sources.table_columns import Columns
from delta_tune.data.sources.table_labels import read_labels
from delta_tune.data.sources.tables import read_tables
from delta_tune.data.sources.text_tables import TEXT_SUFFIXES, is_text_table, read_text_table
from delta_tune.data.split_names import splits_in

NAMES = ("metadata", "labels", "annotations", "_classes", "_annotations")
"""Names of tables that describe the images beside them, without suffix; the ones with _ are Roboflow's."""

Tables = Mapping[str, Sequence[str]]
"""Split → its tables."""


def from_table(tree: FileTree) -> Source:
    """The splits in the table that was given.

    Raises:
        UserError: it cannot be used.
    """
    splits, notes = read_tables(tree, {"train": [tree.root]}, named=False)
    return Source(name=os.path.splitext(tree.name)[0], splits=splits, notes=tuple(notes))


def folder_tables(tree: FileTree) -> tuple[Tables, bool]:
    """The tables in a folder that describe images, and whether names tell the splits.

    These are a metadata.csv or labels.csv in the folder, or else one in each folder that is named for a split, or else
    train.csv, val.csv and so on.
    """
    if found := _described_by(tree, tree.root):
        return {"train": found}, False
    of_folders: dict[str, list[str]] = {}
    for folder in tree.folders(tree.root):
        if len(said := splits_in(os.path.basename(folder))) == 1 and (found := _described_by(tree, folder)):
            of_folders.setdefault(said[0], []).extend(found)
    if of_folders:
        return of_folders, True
    named: dict[str, list[str]] = {}
    for file in filter(_is_table, tree.files(tree.root)):
        if len(said := splits_in(os.path.basename(file))) == 1 and _columns(tree, file) is not None:
            named.setdefault(said[0], []).append(file)
    return (named, True) if "train" in named else ({}, True)


def from_folder_tables(tree: FileTree, tables: Tables, named: bool) -> Source:
    """From `folder_tables`, unless class folders say the same.

    Raises:
        UserError: the tables cannot be used, or folders and tables say different classes.
    """
    files = [file for found in tables.values() for file in found]
    folders = _from_class_folders(tree)
    if "train" not in tables:
        if folders is not None:
            return folders
        raise UserError(
            f"{tree.shown(tree.root)!r} holds tables of {', '.join(tables)} but none of train ({listed(tree, files)}); "
            f"add one."
        )
    described = [_columns(tree, file) for file in files]
    if folders is not None and not any(columns.split or columns.group for columns in described if columns):
        if all(os.path.splitext(os.path.basename(file))[0].lower() not in NAMES for file in files):
            return folders
        by_table = read_tables(tree, tables, named=named)[0]
        if {*by_table["train"].labels} != {*folders.splits["train"].labels}:
            raise UserError(
                f"{tree.shown(tree.root)!r} holds class folders, and {listed(tree, files)} with other classes; give "
                f"{tree.shown(files[0])!r} as data to use the table, or move it elsewhere."
            )
        note = f"The folders tell the classes; tables beside them were not read: {listed(tree, files)}."
        return replace(folders, notes=(*folders.notes, note))
    splits, notes = read_tables(tree, tables, named=named)
    if named:
        which = "; ".join(f"{split} is {listed(tree, tables[split])}" for split in tables)
        first = f"The labels are those of tables: {which}."
    else:
        first = f"The labels are those of {listed(tree, files)}."
    return Source(name=tree.name, splits=splits, notes=(first, *notes, *_unlisted(tree, splits)))


def _described_by(tree: FileTree, folder: str) -> list[str]:
    """The table in a folder that describes images."""
    tables = {os.path.basename(file).lower(): file for file in tree.files(folder) if _is_table(file)}
    names = [name + suffix for name in NAMES for suffix in (*TEXT_SUFFIXES, ".parquet")]
    found = [tables[name] for name in names if name in tables]
    return next(([file] for file in found if _columns(tree, file) is not None), [])


def table_fault(tree: FileTree) -> UserError | None:
    """What is wrong with a table that by its name describes the images of a folder, or of one of its splits."""
    for folder in (tree.root, *(folder for folder in tree.folders(tree.root) if splits_in(os.path.basename(folder)))):
        for file in filter(is_text_table, tree.files(folder)):
            if os.path.splitext(os.path.basename(file))[0].lower() in NAMES:
                try:
                    read_labels(read_text_table(tree, file))
                except UserError as error:
                    return error
    return None


def _columns(tree: FileTree, file: str) -> Columns | None:
    """The columns of a table of paths and labels; None for any other file."""
    try:
        table = read_text_table(tree, file) if is_text_table(file) else open_tables(tree, [file])[file]
        if path_column(table.schema, table.columns) is None:
            return None
        if table.columns.label is None:
            read_labels(table)
    except UserError:
        return None
    return table.columns


def _is_table(file: str) -> bool:
    return is_text_table(file) or file.lower().endswith(".parquet")


def _from_class_folders(tree: FileTree) -> Source | None:
    """What the folders alone say, if they are a data set."""
    try:
        source = from_image_folder(tree)
    except UserError:
        return None
    return source if len({*source.splits["train"].labels}) > 1 else None


def _unlisted(tree: FileTree, splits: Mapping[str, Examples]) -> list[str]:
    """A note on images that no table names."""
    names = {os.path.normpath(name) for examples in splits.values() for name in examples.names}
    images = content_of(tree, tree.root).images
    unlisted = [image for image in images if os.path.normpath(tree.shown(image)) not in names]
    if not unlisted:
        return []
    return [f"{counted(len(unlisted), 'image')} in the folder that no table names: {listed(tree, unlisted)}; not read."]
