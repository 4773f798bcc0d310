"""Which source a study's data come from. A new source is a module beside this one and a line in `find_source`."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Literal

from delta_tune.config import UserError, did_you_mean
from delta_tune.data.file_tree import FileTree
from delta_tune.data.sources.base import ALLOWED_DATA, Source
from delta_tune.data.sources.class_folders import content_of, listed
from delta_tune.data.sources.demo import from_demo
from delta_tune.data.sources.folder_groups import with_folder_groups
from delta_tune.data.sources.image_folder import from_image_folder
from delta_tune.data.sources.parquet import from_parquet, parquet_files
from delta_tune.data.sources.parquet_columns import encoded_column
from delta_tune.data.sources.table_columns import find_columns
from delta_tune.data.sources.table_files import folder_tables, from_folder_tables, from_table, table_fault
from delta_tune.data.sources.tar_shards import from_shards, shard_files
from delta_tune.data.sources.text_tables import TEXT_SUFFIXES, is_text_table
from delta_tune.data.sources.torchvision import from_torchvision
from delta_tune.filesystem.uris import is_uri


def find_source(data: str | Path, *, seed: int) -> Source:
    """List the examples of `data` (a `Path` is always a file or folder, never `demo`); they are read when asked for.

    Raises:
        UserError: it does not exist, or is not one of the allowed kinds.
    """
    if data == "demo":
        return from_demo(seed)
    if isinstance(data, str) and data.startswith("torchvision:"):
        return from_torchvision(data.removeprefix("torchvision:"))
    tree = FileTree(data)
    if not tree.is_folder(tree.root) and (shards := shard_files(tree)):
        return from_shards(tree, shards)
    files = parquet_files(tree)
    if tree.is_folder(tree.root):
        return _from_folder(tree, files)
    if files:
        return from_parquet(tree, files)
    if tree.is_file(tree.root):
        if is_text_table(tree.root):
            return from_table(tree)
        suffixes = ", ".join((".parquet", *TEXT_SUFFIXES))
        raise UserError(f"{str(data)!r} is a file, but none that ends in {suffixes}; data is {ALLOWED_DATA}.")
    if not is_uri(data) and os.path.lexists(tree.root):
        raise UserError(
            f"{str(data)!r} is a link that leads nowhere, or a pipe, socket or device; data is {ALLOWED_DATA}."
        )
    above, name = os.path.split(tree.root)
    siblings = [os.path.basename(path) for path in tree.folders(above) + tree.files(above)]
    raise UserError(f"There is no {str(data)!r}{did_you_mean(name, siblings)}; data is {ALLOWED_DATA}.")


def _from_folder(tree: FileTree, files: list[str]) -> Source:
    """From a folder with these Parquet files, if they and not images are its data."""
    kinds = {file: _kind_of(tree, file) for file in files}
    if not any(kinds.values()):
        tables, named = folder_tables(tree)
        if tables:
            return from_folder_tables(tree, tables, named)
    if not files:
        return _from_images_or_shards(tree)
    images = content_of(tree, tree.root).images
    if not any(kinds.values()):
        if not images:
            return from_parquet(tree, files)  # says what is wrong with them
        source = _from_images(tree)
        note = f"Parquet files without the columns image and label were not read: {listed(tree, files)}."
    elif "paths" in kinds.values():
        return from_parquet(tree, files)
    elif len({os.path.dirname(image) for image in images} - {tree.root}) > 1:
        raise UserError(
            f"{tree.shown(tree.root)!r} holds both images in folders ({listed(tree, images)}) and Parquet files with "
            f"images ({listed(tree, files)}); give the Parquet files in a folder of their own, or move them elsewhere."
        )
    else:
        source = from_parquet(tree, files)
        if not images:
            return source
        note = f"Images beside the Parquet files were not read: {len(images)} ({listed(tree, images)})."
    return replace(source, notes=(*source.notes, note))


def _from_images_or_shards(tree: FileTree) -> Source:
    """From a folder without tables, of shards if it has some and no images."""
    shards = shard_files(tree)
    if not shards or content_of(tree, tree.root).images:
        return _from_images(tree)
    return from_shards(tree, shards)


def _from_images(tree: FileTree) -> Source:
    """From the folders of a folder. If they are no data set, but a table of theirs might be, its fault counts."""
    try:
        source = from_image_folder(tree)
    except UserError as error:
        if (fault := table_fault(tree)) is not None:
            raise fault from error
        raise
    if len(set(source.splits["train"].labels)) < 2 and (fault := table_fault(tree)) is not None:
        raise fault
    return with_folder_groups(tree, source)


def _kind_of(tree: FileTree, file: str) -> Literal["images", "paths"] | None:
    """Whether a Parquet file holds images, or names them in the columns of a data set; None if it is no data set."""
    try:
        with tree.parquet(file) as parquet:
            schema = parquet.schema_arrow
        columns = find_columns(file, schema.names)
    except UserError:  # no Parquet file, or other columns
        return None
    if columns.label is not None and encoded_column(schema, columns) is not None:
        return "images"
    return "paths" if {"image", "label"} <= set(schema.names) else None
