"""Which source a study's data come from. A new source is a module beside this one and a line in `find_source`."""

from __future__ import annotations

import os
from pathlib import Path

from delta_tune.config import UserError, did_you_mean
from delta_tune.data.file_tree import FileTree
from delta_tune.data.sources.base import ALLOWED_DATA, Source
from delta_tune.data.sources.demo import from_demo
from delta_tune.data.sources.image_folder import from_image_folder
from delta_tune.data.sources.parquet import from_parquet, parquet_files
from delta_tune.data.sources.torchvision import from_torchvision


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
    if files := parquet_files(tree):
        return from_parquet(tree, files)
    if tree.is_folder(tree.root):
        return from_image_folder(tree)
    if tree.is_file(tree.root):
        raise UserError(f"{str(data)!r} is a file, but no .parquet file; data is {ALLOWED_DATA}.")
    above, name = os.path.split(tree.root)
    siblings = [os.path.basename(path) for path in tree.folders(above) + tree.files(above)]
    raise UserError(f"There is no {str(data)!r}{did_you_mean(name, siblings)}; data is {ALLOWED_DATA}.")
