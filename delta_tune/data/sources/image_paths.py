"""Where the paths in a table lead: relative to its folder, absolute, or an address such as s3://bucket/photo.jpg."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from delta_tune.config import UserError, refuse_secret
from delta_tune.data.file_tree import READERS, FileTree
from delta_tune.data.sources.class_folders import content_of, counted
from delta_tune.data.splits import format_list

SCHEMES = ("s3", "gs", "gcs", "file")
"""What an address in a table may begin with. Others would let a table contact any server."""
_MOST_SERVERS = 100
_LOOKED_FOR = 20
"""How many images are looked for before the names of all are."""


class ImagePaths:
    """Finds and reads what the paths in the tables of a data set name. The tables may come from anybody."""

    def __init__(self, tree: FileTree) -> None:
        """`tree`: with the tables."""
        self.tree = tree
        self._trees: dict[str, FileTree] = {}

    def read(self, folder: str, path: str) -> bytes:
        """The content of the file at a path, as `resolve` finds it; called from many threads.

        Raises:
            OSError: it is missing or cannot be read.
            UserError: the path is not read, or its server does not answer.
        """
        tree, found = self.resolve(folder, path)
        return tree.read(found, listed=False)

    def resolve(self, folder: str, path: str) -> tuple[FileTree, str]:
        """The tree and the path in it of an image.

        Args:
            folder: of the table.
            path: as the table has it.

        Raises:
            UserError: says which kind of path is not read.
        """
        if "\0" in path:
            raise UserError(f"The path {path!r} has a null character; correct it.")
        if "://" in path:
            return self._at_address(path)
        remote = self.tree.is_remote
        if remote and path.startswith("/"):
            raise UserError(
                f"The path {path!r} is one of this machine, but its table lies at an address; give paths relative to "
                f"the table, or addresses."
            )
        if remote:
            inside = posixpath.normpath(posixpath.join(folder, path))
            if inside.split("/")[0] != folder.split("/")[0]:
                raise UserError(f"The path {path!r} leads out of the bucket of its table; give an address.")
            return self.tree, inside
        found = os.path.join(folder, path.removeprefix("./"))
        if "\\" in path and not os.path.lexists(found):  # written on Windows
            found = os.path.join(folder, path.replace("\\", "/"))
        return self.tree, found

    def _at_address(self, path: str) -> tuple[FileTree, str]:
        try:
            parts = urlsplit(path)
        except ValueError as error:
            raise UserError(f"The path {path!r} is no address ({error}); correct it.") from None
        if parts.scheme not in SCHEMES:
            raise UserError(
                f"The path {path!r} begins with {parts.scheme}://, which is not read; give paths, or addresses that "
                f"begin with {', '.join(f'{scheme}://' for scheme in SCHEMES[:3])}."
            )
        refuse_secret("image", path)
        if parts.query or parts.fragment or "@" in parts.netloc or ":" in parts.netloc:
            raise UserError(
                f"The path {path!r} names options or a server; give addresses such as s3://bucket/photo.jpg."
            )
        if parts.scheme == "file":
            if self.tree.is_remote or parts.netloc not in ("", "localhost"):
                raise UserError(f"The path {path!r} is a file of another machine; give an address that is read here.")
            return self.tree, os.path.normpath(unquote(parts.path))
        bucket = f"{parts.scheme}://{parts.netloc}"
        if bucket not in self._trees:
            if len(self._trees) >= _MOST_SERVERS:
                raise UserError(f"The table names more than {_MOST_SERVERS} buckets; give them as several data sets.")
            self._trees[bucket] = FileTree(bucket)
        tree = self._trees[bucket]
        return tree, posixpath.join(tree.root, path[len(bucket) :].lstrip("/"))


@dataclass(frozen=True, kw_only=True, slots=True)
class LocatedImages:
    """Where the images of a table are (N)."""

    places: list[tuple[FileTree, str]]
    names: list[str]
    """As the user would write them."""

    @property
    def readers(self) -> int:
        """Number of reading threads; 0 for one per processor."""
        return READERS if any(tree.is_remote for tree, _ in self.places) else 0

    def read(self, row: int) -> bytes:
        """The content of an image; called from many threads.

        Raises:
            OSError: it is missing or cannot be read.
            UserError: its server does not answer.
        """
        tree, path = self.places[row]
        return tree.read(path, listed=False)


def locate(
    paths: ImagePaths, table: str, folder: str, written: Sequence[str | None]
) -> tuple[LocatedImages, list[str]]:
    """Where the images of a table are, and notes on those that are elsewhere than below its folder.

    If none of some is where its path leads, names of files alone are looked for in all folders below the
    table's, with or without the suffix of images.

    Args:
        paths: of the data set.
        table: how messages call it.
        folder: of the table.
        written: its paths.

    Raises:
        UserError: a path is empty or not read, or there is none of the images.
    """
    if None in written:
        raise UserError(
            f"The column of images of {table!r} is empty in row {written.index(None) + 1}; fill or remove that row."
        )
    texts, notes = [text for text in written if text is not None], list[str]()
    places = [paths.resolve(folder, text) for text in texts]
    some = [len(texts) * number // _LOOKED_FOR for number in range(_LOOKED_FOR)] if texts else []
    if texts and not any(places[row][0].is_file(places[row][1]) for row in dict.fromkeys(some)):
        by_name = _by_name(paths.tree, folder, texts)
        places = [(paths.tree, path) for path in by_name]
        shown = [os.path.relpath(path, folder) for path in by_name[:1]]
        notes.append(f"The images were found by their names: {texts[0]!r} is {shown[0]!r}.")
    outside = [text for text in texts if _leads_out(text, folder)]
    if outside:
        notes.append(
            f"{counted(len(outside), 'image')} of {os.path.basename(table)!r} outside of its folder: "
            f"{format_list(list(map(repr, outside)), 3)}."
        )
    return LocatedImages(places=places, names=[tree.shown(path) for tree, path in places]), notes


def _leads_out(text: str, folder: str) -> bool:
    """Whether a path leads out of the folder of its table, other than to an address."""
    if "://" in text:
        return False
    if os.path.isabs(text):
        return not os.path.normpath(text).startswith(os.path.join(os.path.abspath(folder), ""))
    return os.path.normpath(text).startswith("..")


def _by_name(tree: FileTree, folder: str, texts: Sequence[str]) -> list[str]:
    """The only file below a folder that has each name; where a name has none, the path that it would have.

    Raises:
        UserError: none or several have it.
    """
    found: dict[str, list[str]] = {}
    if not any("/" in text for text in texts):
        below = tree.rooted(folder)
        for path in content_of(below, below.root).images:
            name = os.path.basename(path)
            found.setdefault(name, []).append(path)
            found.setdefault(os.path.splitext(name)[0], []).append(path)
    if not any(text in found for text in texts):
        raise UserError(
            f"No image is where the paths lead, such as {texts[0]!r}; paths in a table are relative to its folder "
            f"{tree.shown(folder)!r}, absolute, or addresses such as s3://bucket/photo.jpg."
        )
    if several := next((text for text in texts if len(found.get(text, ())) > 1), None):
        first, second = found[several][:2]
        raise UserError(
            f"The image {several!r} may be {tree.shown(first)!r} or {tree.shown(second)!r}; write paths relative to "
            f"{tree.shown(folder)!r}."
        )
    return [found[text][0] if text in found else os.path.join(folder, text) for text in texts]
