"""Image folders as a data source: which folder is which split."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from delta_tune.config import UserError
from delta_tune.data.file_tree import FileTree
from delta_tune.data.sources.base import ALLOWED_DATA, Source, join
from delta_tune.data.sources.class_folders import (
    content_of,
    counted,
    is_array_name,
    is_image_name,
    is_split_name,
    listed,
    notes_on_root,
    read_class_folders,
)
from delta_tune.data.split_names import split_in, splits_in
from delta_tune.data.splits import format_list


def list_images(folder: str | Path) -> list[Path]:
    """The image files of a folder (its arrays, if there are none), by name, without hidden files and subfolders.

    Raises:
        UserError: there are no image files, or the folder cannot be listed.
    """
    try:
        files = [file for file in Path(folder).iterdir() if not (file.name.startswith(".") or os.path.isdir(file))]
    except OSError as error:
        raise UserError(
            f"The folder {folder} cannot be listed ({error.strerror}); give a folder that may be read."
        ) from error
    found = sorted(file for file in files if is_image_name(str(file)))
    found = found or sorted(file for file in files if is_array_name(str(file)))
    if not found:
        raise UserError(f"There are no images in {folder}; give image files, or a folder of them.")
    return found


def from_image_folder(tree: FileTree) -> Source:
    """The splits of a folder, or all of it as train if no folder in it is named for a split.

    Raises:
        UserError: it is not clear what the folders are, or train is missing or lacks images.
    """
    splits, notes = _find_splits(tree)
    if not splits:
        examples, notes = read_class_folders(tree, tree.root, None)
        return Source(name=tree.name, splits={"train": examples}, notes=tuple(notes))
    found = {}
    for split, folders in splits.items():
        parts = []
        for folder in folders:
            examples, more = read_class_folders(tree, folder, split)
            parts.append(examples)
            notes += more
        found[split] = join(parts)
    return Source(name=tree.name, splits=found, notes=tuple(notes))


def _find_splits(tree: FileTree) -> tuple[dict[str, list[str]], list[str]]:
    """Split → its folders, none if the folders of the root are classes; and notes."""
    contents = {folder: content_of(tree, folder) for folder in tree.folders(tree.root)}
    said = {folder: words for folder in contents if (words := splits_in(os.path.basename(folder)))}
    # A split holds class folders; a folder named train that holds images itself is a class (of vehicles, say).
    named = {
        folder: split
        for folder in said
        if tree.folders(folder)
        and (contents[folder].deeper or not contents[folder].images)
        and (split := split_in(os.path.basename(folder)))
    }
    beside = {folder: len(content.images) for folder, content in contents.items() if folder not in named}
    if not named:
        return {}, []
    splits: dict[str, list[str]] = {}
    for folder, split in named.items():
        if split in splits and _without_number(splits[split][0]) != _without_number(folder):
            raise UserError(
                f"{tree.shown(splits[split][0])!r} and {tree.shown(folder)!r} are one split by their names; leave one "
                f"of them, or rename them if they are no splits."
            )
        splits.setdefault(split, []).append(folder)
    splits = {split: [_unwrapped(tree, folder, split) for folder in found] for split, found in splits.items()}
    _check_splits(
        tree, splits, list(named), [folder for folder, count in beside.items() if count and folder not in said]
    )
    if "train" not in splits:
        root = tree.shown(tree.root)
        raise UserError(
            f"{root!r} holds {', '.join(splits)} but no train; data is {ALLOWED_DATA}: "
            f"add {os.path.join(root, 'train')!r}."
        )
    return splits, _notes(tree, splits, beside)


def _without_number(folder: str) -> str:
    """A folder's name without numbers: parts of one split are train_1 and train_2; train and train_masks are not."""
    return re.sub(r"[\W\d_]+", " ", os.path.basename(folder).lower()).strip()


def _notes(tree: FileTree, splits: Mapping[str, Sequence[str]], beside: Mapping[str, int]) -> list[str]:
    """Sentences on which folder is which split, and on what lies beside them.

    Args:
        splits: split → its folders.
        beside: each other folder in the root, and its number of images.
    """
    notes = []
    if any(folders != [os.path.join(tree.root, split)] for split, folders in splits.items()):
        which = ", ".join(
            f"{listed(tree, folders)} {'is' if len(folders) == 1 else 'are'} {split}"
            for split, folders in splits.items()
        )
        notes.append(f"The names of the folders tell the splits: {which}.")
    if beside:
        others = [f"{listed(tree, [folder])} ({counted(count, 'image')})" for folder, count in beside.items()]
        notes.append(f"Folders beside the splits were not read: {format_list(others, 3)}.")
    return notes + notes_on_root(tree)


def _unwrapped(tree: FileTree, folder: str, split: str) -> str:
    """The folder with the classes of a split: seg_train/seg_train, as archives are often unpacked."""
    inside = tree.folders(folder)
    has_images = bool(content_of(tree, folder, below=False).images)
    if has_images or len(inside) != 1 or not tree.folders(inside[0]):
        return folder
    return inside[0] if splits_in(os.path.basename(inside[0])) == (split,) else folder


def _check_splits(
    tree: FileTree, splits: Mapping[str, Sequence[str]], named: Sequence[str], beside: Sequence[str]
) -> None:
    """Refuse folders that may be splits or classes.

    Args:
        splits: split → the folders of its classes.
        named: the folders in the root that are named for them.
        beside: other folders with images in the root.
    """

    def names(folders: Sequence[str]) -> set[str]:
        return {os.path.basename(path) for folder in folders for path in tree.folders(folder)}

    if not beside:
        return
    plain = all(map(is_split_name, named))
    if len(splits) > 1:
        shared = set.intersection(*map(names, splits.values()))
        clear = plain or (bool(shared) and not any(shared & names([folder]) for folder in beside))
    else:
        clear = plain and len(beside) == 1 and not content_of(tree, named[0], below=False).images
    if not clear:
        raise UserError(
            f"{listed(tree, named)} may be a split, or a class like {listed(tree, beside)}; move the others elsewhere "
            f"if it is a split, or rename it if it is a class."
        )
