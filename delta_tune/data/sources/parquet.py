"""Parquet files and folders as a data source: which file is which split."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from delta_tune.config import UserError
from delta_tune.data.file_tree import FileTree
from delta_tune.data.sources.base import Source
from delta_tune.data.sources.class_folders import listed
from delta_tune.data.sources.tables import read_tables
from delta_tune.data.split_names import SPLIT_NAMES, splits_in

_ADVICE = "name each file or its folder for train, val or test, or move it elsewhere"


def parquet_files(tree: FileTree) -> list[str]:
    """The Parquet files of a tree, by path: itself, or those anywhere below it.

    In a folder such as test.parquet, as Spark and Dask write them, files without a suffix are Parquet, too.
    """
    if tree.is_file(tree.root):
        return [tree.root] if _is_parquet_name(tree.root) else []
    return sorted((file for file in _candidates(tree) if not _is_set_aside(tree, file)), key=Path)


def from_parquet(tree: FileTree, files: list[str]) -> Source:
    """The splits in `parquet_files`, told by the names of files and folders; a single file is train.

    Raises:
        UserError: the names leave open which split a file is, none is train, or a file cannot be used.
    """
    if files == [tree.root]:
        name = re.sub(r"\.parquet$", "", tree.name, flags=re.IGNORECASE)
        said = [split for split in splits_in(name) if split != "train"]
        examples, notes = read_tables(tree, {"train": files}, named=False)
        if said and len(examples) == 1:
            notes.insert(0, f"{tree.name!r} is all of the data, so it is train although its name says {said[0]}.")
        return Source(name=name, splits=examples, notes=tuple(notes))
    _check_links(tree)
    splits, note = _splits(tree, files)
    examples, notes = read_tables(tree, splits, named=_are_named(tree, files))
    set_aside = sorted(file for file in _candidates(tree) if _is_set_aside(tree, file) and _is_parquet_name(file))
    if set_aside:
        notes.append(
            f"Parquet files whose path has a name with _ at the front were not read: {listed(tree, set_aside)}."
        )
    return Source(name=tree.name, splits=examples, notes=(note, *notes))


def _splits(tree: FileTree, files: Sequence[str]) -> tuple[dict[str, list[str]], str]:
    """Split → its files, and a note on that."""
    splits: dict[str, list[str]] = {}
    others = []
    for file in files:
        path = _below(tree, file)
        _check_partitions(path)
        found = splits_in(path)
        if len(found) > 1:
            raise UserError(f"The path {path!r} names {' and '.join(found)}, but can be only one split; {_ADVICE}.")
        if found:
            splits.setdefault(found[0], []).append(file)
        else:
            others.append(file)
    if not splits:
        _check_unnamed(tree, others)
        return {"train": others}, f"No Parquet file is named for a split, so all are train: {listed(tree, others)}."
    which = "; ".join(
        f"{split} is {listed(tree, splits[split])}" for split in ("train", "val", "test") if split in splits
    )
    if others:
        raise UserError(
            f"{tree.shown(tree.root)!r} holds Parquet files that name no split ({listed(tree, others)}) beside others "
            f"that do ({which}); {_ADVICE}."
        )
    _check_val(tree, splits.get("val", []))
    if "train" not in splits:
        raise UserError(
            f"{tree.shown(tree.root)!r} holds Parquet files of {', '.join(splits)} but none of train: {which}; add "
            f"train-*.parquet."
        )
    return splits, f"The names of the Parquet files tell the splits: {which}."


def _are_named(tree: FileTree, files: Sequence[str]) -> bool:
    """Whether names tell the splits, rather than a column."""
    return any(splits_in(_below(tree, file)) for file in files)


def _check_links(tree: FileTree) -> None:
    """Refuse a data set of which a file is missing."""
    folders, _ = tree.walk(tree.root)
    if missing := [path for folder in folders for path in tree.entries(folder).others if _is_parquet_name(path)]:
        raise UserError(f"No file is behind {listed(tree, missing)} (dangling links, pipes); repair or remove them.")


def _check_partitions(path: str) -> None:
    """Refuse folders such as is_test=0 and split=2, whose names can't be read as words."""
    for folder in Path(path).parts[:-1]:
        key, equals, value = folder.partition("=")
        if equals and (splits_in(key) or ("split" in re.split(r"[\W_]", key.lower()) and not splits_in(value))):
            raise UserError(
                f"The folder {folder!r} does not say which split it is; rename it to split=train, =val or =test."
            )


def _check_unnamed(tree: FileTree, files: Sequence[str]) -> None:
    """Refuse mytrain beside mytest, although no word in them is a split."""
    names = [_below(tree, file).lower() for file in files]
    test = [
        file for file, name in zip(files, names, strict=True) if re.search("test|val", name) and "train" not in name
    ]
    if test and any("train" in name for name in names):
        raise UserError(f"{listed(tree, test)} may be a split of its own beside train; {_ADVICE}.")


def _check_val(tree: FileTree, files: Sequence[str]) -> None:
    """Refuse dev beside eval and the like: one of them may be meant as test."""
    words = [set(re.findall("[a-z]+", _below(tree, file).lower())) for file in files]
    words = [{word for word in found if SPLIT_NAMES.get(word) == "val"} for found in words]
    if files and not set.intersection(*words):
        raise UserError(
            f"The names {' and '.join(sorted(set.union(*words)))} all mean val: {listed(tree, files)}; leave one of "
            f"them, or rename the others for train or test."
        )


def _candidates(tree: FileTree) -> list[str]:
    """Parquet files and files that may be some, hidden ones left out."""
    folders, _ = tree.walk(tree.root) if tree.is_folder(tree.root) else ([], [])
    return [
        file
        for folder in folders
        for file in tree.files(folder)
        if _is_parquet_name(file) or (_is_parquet_name(folder) and not os.path.splitext(file)[1])
    ]


def _is_parquet_name(path: str) -> bool:
    return path.lower().endswith(".parquet")


def _is_set_aside(tree: FileTree, file: str) -> bool:
    """Whether a name in the path begins with _: _SUCCESS, _metadata and _temporary are no data for Spark and Arrow."""
    return any(part.startswith("_") for part in Path(_below(tree, file)).parts)


def _below(tree: FileTree, file: str) -> str:
    """The path from the root of the tree."""
    return file[len(tree.root) :].lstrip("/")
