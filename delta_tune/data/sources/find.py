"""Where examples come from: image folders, Parquet, torchvision, the demo. Listed here, read when asked."""

from __future__ import annotations

import os
from pathlib import Path

from delta_tune.config import UserError, did_you_mean
from delta_tune.data.file_tree import FileTree
from delta_tune.data.sources.base import ALLOWED_DATA, Source
from delta_tune.data.sources.demo import from_demo
from delta_tune.data.sources.image_folder import from_image_folder
from delta_tune.data.sources.parquet import from_parquet, from_parquet_folder
from delta_tune.data.sources.torchvision import from_torchvision


def find_source(data: str | Path, *, seed: int) -> Source:
    """List the examples of `data` (a `Path` is always a file or folder, never `demo`).

    Raises:
        UserError: it is not there, or is nothing of what is allowed.
    """
    if data == "demo":
        return from_demo(seed)
    if isinstance(data, str) and data.startswith("torchvision:"):
        return from_torchvision(data.removeprefix("torchvision:"))
    tree = FileTree(data)
    root = tree.root
    if tree.is_file(root):
        if not root.endswith(".parquet"):
            raise UserError(f"{str(data)!r} is a file, but no .parquet file; data is {ALLOWED_DATA}.")
        return Source(name=tree.name.removesuffix(".parquet"), splits={"train": from_parquet(tree, [root])})
    if not tree.is_folder(root):
        above = os.path.dirname(root)
        siblings = [os.path.basename(path) for path in tree.folders(above) + tree.files(above)]
        raise UserError(
            f"There is no {str(data)!r}{did_you_mean(os.path.basename(root), siblings)}; data is {ALLOWED_DATA}."
        )
    files = [file for folder in (root, *tree.folders(root)) for file in tree.files(folder) if file.endswith(".parquet")]
    return from_parquet_folder(tree, sorted(files, key=Path)) if files else from_image_folder(tree)
