"""Image folders as a data source."""

from __future__ import annotations

import os
from pathlib import Path

from delta_tune.config import UserError
from delta_tune.data.file_tree import FileTree
from delta_tune.data.sources.base import ALLOWED_DATA, SPLIT_NAMES, Examples, Source

_IMAGE_SUFFIXES = frozenset(
    f".{suffix}"
    for names in ("avif bmp gif ico jfif jp2 jpe jpeg jpg", "pbm pgm png pnm ppm tga tif tiff webp")
    for suffix in names.split()
)


def list_images(folder: str | Path) -> list[Path]:
    """The image files of a folder, by name, without hidden files and subfolders.

    Raises:
        UserError: there are no image files, or the folder cannot be listed.
    """
    try:
        files = [file for file in Path(folder).iterdir() if not (file.name.startswith(".") or os.path.isdir(file))]
    except OSError as error:
        raise UserError(
            f"The folder {folder} cannot be listed ({error.strerror}); give a folder that may be read."
        ) from error
    found = sorted(file for file in files if file.suffix.lower() in _IMAGE_SUFFIXES)
    if not found:
        raise UserError(f"There are no images in {folder}; give image files, or a folder of them.")
    return found


def from_image_folder(tree: FileTree) -> Source:
    folders = _class_names(tree, tree.root)
    # A split holds class folders; a folder named train that holds images itself is a class (of vehicles, say).
    named = {name: path for name, path in folders.items() if name.lower() in SPLIT_NAMES and _class_names(tree, path)}
    splits: dict[str, str] = {}
    for name, path in named.items():
        split = SPLIT_NAMES[name.lower()]
        if split in splits:
            raise UserError(
                f"{tree.shown(splits[split])!r} and {tree.shown(path)!r} are one split by their names; leave one of "
                f"them."
            )
        splits[split] = path
    notes = []
    if splits:
        if others := [name for name in folders if name not in named]:
            notes.append(f"Folders beside the splits were not read: {', '.join(others)}.")
    else:
        splits = {"train": tree.root}
    if "train" not in splits:
        root = tree.shown(tree.root)
        raise UserError(
            f"{root!r} holds {', '.join(splits)} but no train; data is {ALLOWED_DATA}: "
            f"add {os.path.join(root, 'train')!r}."
        )
    examples = {}
    for split, path in splits.items():
        examples[split], num_others = _class_folders(tree, path, may_be_empty=split != "train")
        if num_others:
            notes.append(f"{num_others} files in {split} are no images by their names and were not read.")
    return Source(name=tree.name, splits=examples, notes=tuple(notes))


def _class_names(tree: FileTree, root: str) -> dict[str, str]:
    """Folders that may be classes or splits: name → path."""
    named = {os.path.basename(path): path for path in tree.folders(root)}
    return {name: path for name, path in named.items() if not name.startswith("__MACOSX")}


def _class_folders(tree: FileTree, root: str, *, may_be_empty: bool) -> tuple[Examples, int]:
    """The images in one split's class folders, and the number of other files."""
    labels: list[str] = []
    paths: list[str] = []
    num_others = 0
    for name, folder in _class_names(tree, root).items():
        files = tree.files(folder)
        images = [file for file in files if os.path.splitext(file)[1].lower() in _IMAGE_SUFFIXES]
        if not images and not may_be_empty:
            raise UserError(
                f"The class folder {tree.shown(folder)!r} holds no images; put its images directly into it, or "
                f"remove it."
            )
        num_others += len(files) - len(images)
        labels += [name] * len(images)
        paths += images
    if not paths and not may_be_empty:
        raise UserError(f"{tree.shown(root)!r} holds no class folders with images; data is {ALLOWED_DATA}.")
    names = [tree.shown(path) for path in paths]
    return Examples(
        labels=labels, names=names, read=lambda index: tree.read(paths[index]), readers=tree.readers
    ), num_others
