"""The images of one split: a folder per class, with what lies in it and below it."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, fields

from delta_tune.config import UserError
from delta_tune.data.file_tree import FileTree
from delta_tune.data.sources.base import ALLOWED_DATA, Examples
from delta_tune.data.split_names import SPLIT_NAMES, splits_in
from delta_tune.data.splits import format_list

IMAGE_SUFFIXES = frozenset(
    f".{suffix}"
    for names in ("avif bmp gif ico jfif jp2 jpe jpeg jpg", "pbm pgm png pnm ppm tga tif tiff webp")
    for suffix in names.split()
)


@dataclass(kw_only=True, slots=True)
class Content:
    """Paths in folders, by what becomes of them."""

    images: list[str] = field(default_factory=list)
    """Files, links and pipes with the name of an image; reading them tells which cannot be read."""
    deeper: list[str] = field(default_factory=list)
    """Folders below the first one that hold some of the images."""
    others: list[str] = field(default_factory=list)
    """Files that are no images by their names."""
    hidden: list[str] = field(default_factory=list)
    """Images and folders that are hidden, and folders of the system."""
    broken: list[str] = field(default_factory=list)
    """Links whose target cannot be reached, without the name of an image: perhaps folders."""
    repeated: list[str] = field(default_factory=list)
    """Links to a folder that was read already or that holds the link."""

    def add(self, more: Content) -> None:
        for each in fields(self):
            getattr(self, each.name).extend(getattr(more, each.name))


def content_of(tree: FileTree, folder: str, *, below: bool = True) -> Content:
    """What a folder holds, with (or without) all folders below it.

    Raises:
        UserError: a folder cannot be listed.
    """
    content = Content()
    folders, content.repeated = tree.walk(folder) if below else ([folder], [])
    for path in folders:
        entries = tree.entries(path)
        files = sorted(entries.files + entries.others)
        images = [file for file in files if is_image_name(file)] or [file for file in files if is_array_name(file)]
        known = set(images)
        content.images += images
        content.deeper += [path] if images and path != folder else []
        content.others += [file for file in entries.files if file not in known]
        content.broken += [file for file in entries.others if file not in known and os.path.islink(file)]
        content.hidden += entries.hidden_folders + [file for file in entries.hidden_files if is_image_name(file)]
    return content


def is_array_name(path: str) -> bool:
    """Whether a file is an array by its suffix; in a folder without images, arrays are the images."""
    return os.path.splitext(path)[1].lower() == ".npy"


def is_image_name(path: str) -> bool:
    """Whether a file is an image by its suffix."""
    return os.path.splitext(path)[1].lower() in IMAGE_SUFFIXES


def read_class_folders(tree: FileTree, root: str, split: str | None) -> tuple[Examples, list[str]]:
    """The examples of the class folders in `root`, and notes on what was read in a particular way, or not at all.

    Args:
        split: that `root` is; None if the data has no splits. A folder that says otherwise is refused.

    Raises:
        UserError: a class of train has no images, or it is not clear what a folder is.
    """
    beside = _content_beside(tree, root)
    if split in ("train", None):
        _check_not_wrapped(tree, root)
    labels: list[str] = []
    total = Content(hidden=beside.hidden)
    for folder in tree.folders(root):
        content = content_of(tree, folder)
        _check_class(tree, folder, content, split)
        labels += [os.path.basename(folder)] * len(content.images)
        total.add(content)
    _check_names(tree, root, set(labels))
    paths = total.images
    if not paths and split in ("train", None):
        raise UserError(f"{tree.shown(root)!r} holds no class folders with images; data is {ALLOWED_DATA}.")
    examples = Examples(
        labels=labels,
        names=[tree.shown(path) for path in paths],
        read=lambda index: tree.read(paths[index]),
        are_files=not tree.is_remote,
        readers=tree.readers,
    )
    return examples, _notes(tree, total, beside.images, split or "train")


def _check_not_wrapped(tree: FileTree, root: str) -> None:
    """Refuse a single folder that seems to hold the classes."""
    folders = tree.folders(root)
    if len(folders) == 1 and tree.folders(folders[0]) and not content_of(tree, folders[0], below=False).images:
        raise UserError(
            f"{tree.shown(root)!r} holds only the folder {os.path.basename(folders[0])!r}; if its folders are the "
            f"classes or splits, give {tree.shown(folders[0])!r} as data, or move them one folder up."
        )


def notes_on_root(tree: FileTree) -> list[str]:
    """Notes on what lies beside the folders of splits and was not read.

    Raises:
        UserError: a split may be missing.
    """
    content = _content_beside(tree, tree.root)
    return _notes(tree, Content(hidden=content.hidden), content.images, "the data")


def _content_beside(tree: FileTree, root: str) -> Content:
    """What lies directly in a folder of class folders or splits."""
    content = content_of(tree, root, below=False)
    if content.broken:
        raise UserError(
            f"{tree.shown(content.broken[0])!r} is a link that leads nowhere, so images may be missing; mend it, or "
            f"remove it."
        )
    return content


def _check_class(tree: FileTree, folder: str, content: Content, split: str | None) -> None:
    shown = tree.shown(folder)
    if folder in content.repeated:
        raise UserError(f"The class folder {shown!r} is a link to a folder that holds it; remove the link.")
    if not content.images and split in ("train", None):
        why = ""
        if content.others:
            why = f" (its files end in {_suffixes(content.others)}; images end in {' '.join(sorted(IMAGE_SUFFIXES))})"
        raise UserError(f"The class folder {shown!r} holds no images{why}; put images into it, or remove it.")
    below = {folder, *content.deeper} if content.deeper else set()
    for path in sorted(below):
        parts = path[len(folder) :].split("/")[1:] or [os.path.basename(folder)]
        for said in (said for part in parts for said in splits_in(part)):
            if said != split:
                where = f"the split {split}" if split else f"the class folder {shown!r}"
                raise UserError(
                    f"{tree.shown(path)!r} is named for the split {said}, but lies in {where}; arrange the folders as "
                    f"DIR/{{train,val,test}}/<class>, or rename it if it is no split."
                )


def _check_names(tree: FileTree, root: str, classes: set[str]) -> None:
    """Refuse splits without class folders, which would be read as classes."""
    said = {name: splits_in(name) for name in sorted(classes)}
    named = [name for name in said if is_split_name(name)] if not all(said.values()) else list(said)
    if len({split for name in named for split in said[name]}) > 1:
        raise UserError(
            f"{' and '.join(map(repr, named))} in {tree.shown(root)!r} are named for splits, but hold images without "
            f"class folders; arrange them as DIR/{{train,val,test}}/<class>, or rename them if they are classes."
        )


def is_split_name(folder: str) -> bool:
    """Whether the name of a folder is a split's and nothing else."""
    return os.path.basename(folder).lower() in SPLIT_NAMES


def _notes(tree: FileTree, content: Content, loose: list[str], split: str) -> list[str]:
    """Sentences on what was read in a particular way, or not at all."""
    notes = []
    if content.deeper:
        folders = set(content.deeper)
        count = sum(os.path.dirname(image) in folders for image in content.images)
        notes.append(
            f"{counted(count, 'image')} in deeper folders of {split} ({listed(tree, content.deeper)}) got the class of "
            f"the class folder above."
        )
    if loose:
        notes.append(
            f"{counted(len(loose), 'image')} of {split} outside the class folders ({listed(tree, loose)}) "
            f"{_were(loose)} not read."
        )
    if content.others:
        are = "is no image by its name" if len(content.others) == 1 else "are no images by their names"
        notes.append(
            f"{counted(len(content.others), 'file')} in {split} {are} ({_suffixes(content.others)}) and "
            f"{_were(content.others)} not read."
        )
    for paths, what in (
        (content.hidden, "Hidden images, hidden folders and folders of the system were not read"),
        (content.broken, "Links that lead nowhere were not read"),
        (content.repeated, "Links to folders that are read already were not followed"),
    ):
        if paths:
            notes.append(f"{what} in {split}: {len(paths)} ({listed(tree, paths)}).")
    return notes


def counted(count: int, noun: str) -> str:
    """1 image, 2 images."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def listed(tree: FileTree, paths: Sequence[str]) -> str:
    """The first paths, from the root of the tree, and how many more there are."""
    return format_list([repr(path[len(tree.root) :].lstrip("/")) for path in paths], 3)


def _suffixes(files: Sequence[str]) -> str:
    found = Counter(os.path.splitext(file)[1].lower() for file in files)
    return format_list([repr(suffix) if suffix else "no suffix" for suffix, _ in found.most_common()], 3)


def _were(items: Sequence[str]) -> str:
    return "was" if len(items) == 1 else "were"
