"""WebDataset shards as a data source: plain tar files with key.jpg beside key.cls, key.txt or key.json."""

from __future__ import annotations

import json
import os
import re
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO, cast

from delta_tune.config import UserError
from delta_tune.data.file_tree import READERS, FileTree
from delta_tune.data.limits import MAX_FILE_SIZE
from delta_tune.data.sources.base import Examples, Source
from delta_tune.data.sources.class_folders import counted, is_image_name, listed
from delta_tune.data.sources.parquet_columns import MAX_ROWS
from delta_tune.data.sources.table_labels import MAX_LABEL_SIZE
from delta_tune.data.split_names import splits_in

_LABEL_SUFFIXES = ("cls", "json", "txt")
"""What a label may lie in; the first one counts."""
_JSON_KEYS = ("label", "labels", "class", "cls", "class_name", "tags")
_MOST_LABEL_BYTES = 2**20


@dataclass(slots=True)
class _Sample:
    """The members of one key."""

    image: tuple[int, int] | None = None
    """Where its content begins, and its size."""
    image_name: str = ""
    labels: dict[str, bytes] = field(default_factory=dict)
    """Suffix → content."""


class _SmallReads:
    """An open file of which nothing large is read: a header may claim any size."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= 2 * _MOST_LABEL_BYTES:
            raise tarfile.ReadError(f"a header claims {size:,} bytes")
        return self._file.read(size)


@dataclass(frozen=True, slots=True)
class _Place:
    shard: str
    begin: int
    size: int


def shard_files(tree: FileTree) -> list[str]:
    """The shards of a tree: itself, those of a folder and its folders, or those of a pattern such as a-{000..123}.tar.

    Raises:
        UserError: a shard of a pattern is missing.
    """
    if (found := re.fullmatch(r"(.*)\{(\d+)\.\.(\d+)\}(.*\.tar)", tree.root)) is not None:
        before, low, high, after = found.groups()
        numbers = range(int(low), min(int(high), int(low) + MAX_ROWS) + 1)
        files = [f"{before}{number:0{len(low)}}{after}" for number in numbers]
        there = set(tree.rooted(os.path.dirname(tree.root)).files(os.path.dirname(tree.root) or "."))
        if missing := [file for file in files if file not in there and os.path.join(".", file) not in there]:
            raise UserError(f"There is no {tree.shown(missing[0])!r} ({len(missing)} of {len(files)} shards lack).")
        return files
    if tree.is_file(tree.root):
        return [tree.root] if _is_tar(tree.root) else []
    if not tree.is_folder(tree.root):
        return []
    return [file for folder in (tree.root, *tree.folders(tree.root)) for file in tree.files(folder) if _is_tar(file)]


def from_shards(tree: FileTree, files: Sequence[str]) -> Source:
    """The splits in `shard_files`, told by the names of files and folders.

    Raises:
        UserError: names are not clear, a shard is damaged, or an image has no label.
    """
    splits, notes = _splits(tree, files)
    samples = {split: [each for file in found for each in _read_shard(tree, file)] for split, found in splits.items()}
    if sum(map(len, samples.values())) > MAX_ROWS:
        raise UserError(f"The shards hold more than {MAX_ROWS:,} images; give fewer.")
    several = any(isinstance(label, tuple) for found in samples.values() for _, label, _ in found)
    examples = {split: _examples(tree, found, several) for split, found in samples.items()}
    name = re.sub(r"\.tar$|[-_.]?\{.*", "", tree.name) or "shards"
    return Source(name=name, splits=examples, notes=tuple(notes))


def _examples(tree: FileTree, samples: Sequence[tuple[_Place, Any, str]], several: bool) -> Examples:
    places = [place for place, _, _ in samples]

    def read(index: int) -> bytes:
        place = places[index]
        return tree.read_part(place.shard, place.begin, place.size)

    return Examples(
        labels=[(label,) if several and isinstance(label, str) else label for _, label, _ in samples],
        names=[name for _, _, name in samples],
        read=read,
        readers=READERS if tree.is_remote else 0,
    )


def _splits(tree: FileTree, files: Sequence[str]) -> tuple[dict[str, list[str]], list[str]]:
    """Split → its shards, and a note on that."""
    above = tree.root if tree.is_folder(tree.root) else os.path.dirname(tree.root)
    splits: dict[str, list[str]] = {}
    for file in files:
        path = os.path.relpath(file, above or ".")
        said = splits_in(path)
        if len(said) > 1:
            raise UserError(f"The path {path!r} names {' and '.join(said)}, but can be only one split; rename it.")
        splits.setdefault(said[0] if said else "", []).append(file)
    if len(splits) == 1:  # one split is all of the data, as of a single Parquet file
        (word,) = splits
        said_else = f", although their names say {word}" if word not in ("", "train") else ""
        return {"train": list(files)}, [f"{counted(len(files), 'shard')}: all are train{said_else}."]
    if "" in splits or "train" not in splits:
        which = "; ".join(f"{split or 'no split'} is {listed(tree, found)}" for split, found in splits.items())
        raise UserError(f"The names of the shards must tell train from other splits, but {which}; rename them.")
    order = [split for split in ("train", "val", "test") if split in splits]
    which = "; ".join(f"{split} is {listed(tree, splits[split])}" for split in order)
    return {split: splits[split] for split in order}, [f"The names of the shards tell the splits: {which}."]


def _read_shard(tree: FileTree, file: str) -> Iterator[tuple[_Place, str | tuple[str, ...], str]]:
    """Where each image of a shard is, its label or labels, and its name.

    Raises:
        UserError: the shard is damaged or compressed, or an image has no label or several.
    """
    shown = tree.shown(file)
    samples: dict[str, _Sample] = {}
    try:
        with tree.opened(file) as opened, tarfile.open(fileobj=cast(BinaryIO, _SmallReads(opened)), mode="r:") as shard:
            end = tree.size(file)
            before = -1
            while (member := shard.next()) is not None:
                shard.members.clear()  # type: ignore[attr-defined]  # else all of them stay in memory
                if member.size < 0 or member.offset <= before:
                    raise tarfile.ReadError("its members go backwards")
                before = member.offset
                if not member.isreg() or member.issparse():
                    continue
                if member.offset_data + member.size > end:
                    raise tarfile.ReadError("it ends too early")
                _add(samples, member, shard)
                if len(samples) > MAX_ROWS:
                    raise UserError(f"{shown!r} has more than {MAX_ROWS:,} images; give fewer.")
    except (tarfile.TarError, EOFError, ValueError, OSError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"{shown!r} cannot be read as a shard ({str(error)[:200]}); give whole .tar files that are not compressed."
        ) from error
    for key, sample in samples.items():
        if sample.image is None:
            continue
        label = _label(shown, key, sample.labels)
        yield _Place(file, *sample.image), label, f"{shown}:{sample.image_name}"


def _add(samples: dict[str, _Sample], member: tarfile.TarInfo, shard: tarfile.TarFile) -> None:
    """Note what a member is of its sample: the key ends at the first dot of the name, as in WebDataset."""
    folder, name = os.path.split(member.name)
    key, _, suffix = name.partition(".")
    if not key or name.startswith("."):  # a Mac's ._files and the like
        return
    sample = samples.setdefault(os.path.join(folder, key), _Sample())
    if is_image_name(name):
        if sample.image is not None:
            raise ValueError(f"{member.name[:80]!r} is the second image of its key")
        if member.size > MAX_FILE_SIZE:
            raise ValueError(f"{member.name[:80]!r} has {member.size:,} bytes")
        sample.image, sample.image_name = (member.offset_data, member.size), member.name
    elif suffix.lower() in _LABEL_SUFFIXES:
        if member.size > _MOST_LABEL_BYTES:
            raise ValueError(f"{member.name[:80]!r} has {member.size:,} bytes")
        content = shard.extractfile(member)
        sample.labels[suffix.lower()] = b"" if content is None else content.read()


def _label(shard: str, key: str, found: Mapping[str, bytes]) -> str | tuple[str, ...]:
    """The label or labels of a sample.

    Raises:
        UserError: it has none, or one that is no name of a class.
    """
    for suffix in _LABEL_SUFFIXES:
        if suffix not in found:
            continue
        try:
            text = found[suffix].decode().strip()
            label = _of_json(text) if suffix == "json" else text
        except (ValueError, RecursionError):
            label = None
        if label is None and suffix == "json" and "txt" in found:
            continue
        names = label if isinstance(label, tuple) else (label,)
        if not all(isinstance(name, str) and name and len(name.encode()) <= MAX_LABEL_SIZE for name in names):
            break
        return label if label is not None else ""
    raise UserError(
        f"The image {key!r} of {shard!r} has no label; put its class into {os.path.basename(key)}.cls, .txt, or under "
        f'"label" in .json beside it.'
    )


def _of_json(text: str) -> str | tuple[str, ...] | None:
    """The label or labels in a JSON object, number or text."""
    found = json.loads(text)
    if isinstance(found, dict):
        found = next((found[key] for key in _JSON_KEYS if key in found), None)
    if isinstance(found, list) and all(isinstance(each, str | int) for each in found):
        return tuple(str(each).strip() for each in found)
    return str(found).strip() if isinstance(found, str | int) else None


def _is_tar(path: str) -> bool:
    return path.lower().endswith(".tar")
