"""Parquet files and folders as a data source."""

from __future__ import annotations

import json
import os
import re
import threading
from bisect import bisect_right
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from delta_tune.config import UserError, did_you_mean
from delta_tune.data.file_tree import FileTree
from delta_tune.data.sources.base import SPLIT_NAMES, Examples, Source


def parquet_files(tree: FileTree) -> list[str]:
    """The Parquet files of a tree, by path: itself, or those in its folder and in the folders of that."""
    if tree.is_file(tree.root):
        return [tree.root] if tree.root.endswith(".parquet") else []
    folders = (tree.root, *tree.folders(tree.root))
    return sorted((file for folder in folders for file in tree.files(folder) if file.endswith(".parquet")), key=Path)


def from_parquet(tree: FileTree, files: list[str]) -> Source:
    """The splits in `parquet_files`, told by the names of files and folders; a single file is train."""
    if files == [tree.root]:
        return Source(name=tree.name.removesuffix(".parquet"), splits={"train": _rows(tree, files)})
    splits: dict[str, list[str]] = {}
    others = []
    for file in files:
        # train-00000-of-00002.parquet as Hugging Face names its files, or train/anything.parquet.
        folder, name = os.path.split(file)
        names = (re.split(r"[-_.]", name)[0], os.path.basename(folder) if folder != tree.root else "")
        split = next((SPLIT_NAMES[name.lower()] for name in names if name.lower() in SPLIT_NAMES), None)
        if split is None:
            others.append(file)
        else:
            splits.setdefault(split, []).append(file)
    if not splits:
        splits, others = {"train": others}, []
    if "train" not in splits:
        raise UserError(
            f"{tree.shown(tree.root)!r} holds Parquet files of {', '.join(splits)} but none of train; add "
            f"train-*.parquet."
        )
    first = os.path.basename(others[0]) if others else ""
    notes = (f"{len(others)} Parquet files of no split were not read: {first}, …",) if others else ()
    return Source(name=tree.name, splits={split: _rows(tree, found) for split, found in splits.items()}, notes=notes)


def _rows(tree: FileTree, files: list[str]) -> Examples:
    """The rows of some files. Images are read by row group, so a file need not fit into memory."""
    labels: list[str] = []
    names: list[str] = []
    starts = [0]  # first row of each row group, over all files
    groups: list[tuple[str, int]] = []
    for file in files:
        shown = tree.shown(file)
        try:
            parquet = tree.parquet(file)
        except (pa.ArrowInvalid, OSError) as error:
            raise UserError(f"{shown!r} cannot be read as Parquet ({error}); give a whole .parquet file.") from error
        with parquet:
            _check_columns(shown, parquet.schema_arrow)
            found = _label_names(shown, parquet.read(columns=["label"]), parquet.schema_arrow)
            for group in range(parquet.num_row_groups):
                groups.append((file, group))
                starts.append(starts[-1] + parquet.metadata.row_group(group).num_rows)
        labels += found
        names += [f"{shown}:{row}" for row in range(len(found))]

    @lru_cache(maxsize=4)
    def column(group: int) -> Any:
        file, number = groups[group]
        try:
            with tree.parquet(file) as parquet:
                images = parquet.read_row_group(number, columns=["image"]).column("image")
        except OSError as error:  # a damaged row group is not a damaged image, which could be skipped
            raise UserError(f"{tree.shown(file)!r} cannot be read any more ({error}); try again.") from error
        return pc.struct_field(images, "bytes") if pa.types.is_struct(images.type) else images

    lock = threading.Lock()  # without the lock, two threads would both read the same row group

    def read(index: int) -> bytes:
        group = bisect_right(starts, index) - 1
        with lock:
            images = column(group)
        return images[index - starts[group]].as_py() or b""

    return Examples(labels=labels, names=names, read=read)


def _check_columns(file: str, schema: Any) -> None:
    for column in ("image", "label"):
        if column not in schema.names:
            raise UserError(
                f"{file!r} has no column {column!r}{did_you_mean(column, schema.names)}: its columns are "
                f"{', '.join(schema.names)}; rename them to image (encoded bytes, or a struct with bytes) and label."
            )
    kind = schema.field("image").type
    if pa.types.is_struct(kind):
        kind = kind.field("bytes").type if kind.get_field_index("bytes") >= 0 else kind
    if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
        raise UserError(f"The column image of {file!r} is {kind}; give encoded bytes, or a struct with bytes.")


def _label_names(file: str, table: Any, schema: Any) -> list[str]:
    """Label names; from Hugging Face's ClassLabel if the file has them."""
    column = table.column("label")
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if not (pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise UserError(f"The column label of {file!r} is {kind}; give a string or an integer.")
    if column.null_count:
        raise UserError(
            f"The column label of {file!r} has {column.null_count} empty values; fill or remove those rows."
        )
    metadata = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    names = metadata.get("info", {}).get("features", {}).get("label", {}).get("names") or []
    return [
        names[label] if isinstance(label, int) and 0 <= label < len(names) else str(label)
        for label in column.to_pylist()
    ]
