"""`groups.csv` in an image folder: which images belong together, while the folders say their classes."""

from __future__ import annotations

import os
from dataclasses import replace

from delta_tune.config import UserError
from delta_tune.data.file_tree import FileTree
from delta_tune.data.sources.base import Source
from delta_tune.data.sources.class_folders import counted, listed
from delta_tune.data.sources.image_paths import ImagePaths, locate
from delta_tune.data.sources.parquet_columns import path_column
from delta_tune.data.sources.tables import texts_of
from delta_tune.data.sources.text_tables import TEXT_SUFFIXES, read_text_table

NAME = "groups"


def with_folder_groups(tree: FileTree, source: Source) -> Source:
    """The source with the groups that the folder's groups.csv gives to its images, if there is one.

    Raises:
        UserError: it cannot be used, or names none of the images.
    """
    names = [NAME + suffix for suffix in TEXT_SUFFIXES]
    files = [file for file in tree.files(tree.root) if os.path.basename(file).lower() in names]
    if not files:
        return source
    table = read_text_table(tree, files[0], labels=False)
    column, group = path_column(table.schema, table.columns), table.columns.group
    assert column is not None, "checked as it was read"
    assert group is not None, "checked as it was read"
    images, notes = locate(ImagePaths(tree), table.shown, tree.root, texts_of(table, column))
    groups = dict(zip(map(os.path.normpath, images.names), texts_of(table, group), strict=True))
    splits = {}
    without = 0
    for split, examples in source.splits.items():
        found = [groups.get(os.path.normpath(name)) or "" for name in examples.names]
        without += found.count("")
        splits[split] = replace(examples, groups=found)
    if without == sum(len(examples.labels) for examples in source.splits.values()):
        raise UserError(f"{table.shown!r} names none of the images, or no group; correct it, or remove it.")
    alone = f", {counted(without, 'image')} without one" if without else ""
    said = f"The groups are those of {listed(tree, files[:1])}{alone}."
    return replace(source, splits=splits, notes=(*source.notes, said, *notes))
