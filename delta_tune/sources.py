"""Where examples come from: image folders, Parquet, torchvision, the demo. Listed here, read when asked."""

from __future__ import annotations

import inspect
import json
import os
import re
import threading
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from delta_tune.config import UserError, nearest
from delta_tune.trees import Tree, open_tree

ALLOWED_DATA = (
    "an image folder (DIR/<class>/* or DIR/{train,val,test}/<class>/*), a Parquet file or folder (either may be at an "
    "address such as s3://bucket/folder), torchvision:NAME, or demo"
)
CACHE = Path("~/.cache/delta_tune")

SPLIT_NAMES = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
_IMAGE_SUFFIXES = frozenset(
    f".{suffix}"
    for names in ("avif bmp gif ico jfif jp2 jpe jpeg jpg", "pbm pgm png pnm ppm tga tif tiff webp")
    for suffix in names.split()
)

# The classification sets of torchvision: the value of `split` for train, val and test ("" = none) …
_BY_SPLIT = {
    **dict.fromkeys(["DTD", "FGVCAircraft", "Flowers102", "PCAM"], ("train", "val", "test")),
    **dict.fromkeys(["CLEVRClassification", "ImageNet", "Imagenette"], ("train", "val", "")),
    **dict.fromkeys(["Food101", "GTSRB", "STL10", "StanfordCars", "SVHN"], ("train", "", "test")),
    "Country211": ("train", "valid", "test"),
    "OxfordIIITPet": ("trainval", "", "test"),
    "RenderedSST2": ("train", "val", "test"),
}
_BY_FLAG = ("CIFAR10", "CIFAR100", "FashionMNIST", "KMNIST", "MNIST", "USPS")  # … train=True or False …
_WHOLE = ("Caltech101", "Caltech256", "EuroSAT", "FakeData", "SEMEION", "SUN397")  # … and those without splits.


@dataclass(frozen=True, kw_only=True, slots=True)
class Examples:
    """One split as found."""

    labels: Sequence[str]
    """Class of each example, by name (N)."""
    names: Sequence[str]
    """Name of each example to the user (N): its path, or file and row."""
    read: Callable[[int], bytes | Image.Image]
    """The file or the image of one example; called from many threads."""
    readers: int = 0
    """Threads that should read at a time; 0 for as many as there are processors."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """The splits that the data come with: train, and perhaps val and test."""

    name: str
    splits: Mapping[str, Examples]
    notes: tuple[str, ...] = ()


def images_in(folder: str | Path) -> list[Path]:
    """The image files of a folder, by name; those of folders in it are not looked for.

    Raises:
        UserError: there are none.
    """
    found = sorted(file for file in Path(folder).iterdir() if file.suffix.lower() in _IMAGE_SUFFIXES)
    if not found:
        raise UserError(f"There are no images in {folder}; give image files, or a folder of them.")
    return found


def find_source(data: str | Path, *, seed: int) -> Source:
    """List the examples of `data` (a `Path` is always a file or folder, never `demo`).

    Raises:
        UserError: it is not there, or is nothing of what is allowed.
    """
    if data == "demo":
        return from_demo(seed)
    if isinstance(data, str) and data.startswith("torchvision:"):
        return from_torchvision(data.removeprefix("torchvision:"))
    tree = open_tree(data)
    root = tree.root
    if tree.is_file(root):
        if not root.endswith(".parquet"):
            raise UserError(f"{str(data)!r} is a file, but no .parquet file; data is {ALLOWED_DATA}.")
        return Source(name=tree.name.removesuffix(".parquet"), splits={"train": from_parquet(tree, [root])})
    if not tree.is_folder(root):
        above = os.path.dirname(root)
        siblings = [os.path.basename(path) for path in tree.folders(above) + tree.files(above)]
        raise UserError(
            f"There is no {str(data)!r}{nearest(os.path.basename(root), siblings)}; data is {ALLOWED_DATA}."
        )
    files = [file for folder in (root, *tree.folders(root)) for file in tree.files(folder) if file.endswith(".parquet")]
    return from_parquet_folder(tree, sorted(files, key=Path)) if files else from_image_folder(tree)


# ---------------------------------------------------------------------------------------------------- image folders


def from_image_folder(tree: Tree) -> Source:
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


def _class_names(tree: Tree, root: str) -> dict[str, str]:
    """Of the folders that may be classes or splits, by name: their paths."""
    named = {os.path.basename(path): path for path in tree.folders(root)}
    return {name: path for name, path in named.items() if not name.startswith("__MACOSX")}


def _class_folders(tree: Tree, root: str, *, may_be_empty: bool) -> tuple[Examples, int]:
    """The images in the class folders of one split, and how many other files there are."""
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


# ---------------------------------------------------------------------------------------------------------- Parquet


def from_parquet_folder(tree: Tree, files: list[str]) -> Source:
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
    return Source(
        name=tree.name, splits={split: from_parquet(tree, found) for split, found in splits.items()}, notes=notes
    )


def from_parquet(tree: Tree, files: list[str]) -> Examples:
    """The rows of some files. Images are read a row group at a time, so that a file need not fit into memory."""
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
        except OSError as error:  # a whole row group is no damaged image, which might be left out
            raise UserError(f"{tree.shown(file)!r} cannot be read any more ({error}); try again.") from error
        return pc.struct_field(images, "bytes") if pa.types.is_struct(images.type) else images

    lock = threading.Lock()  # two threads that want the same row group would both read it

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
                f"{file!r} has no column {column!r}{nearest(column, schema.names)}: its columns are "
                f"{', '.join(schema.names)}; rename them to image (encoded bytes, or a struct with bytes) and label."
            )
    kind = schema.field("image").type
    if pa.types.is_struct(kind):
        kind = kind.field("bytes").type if kind.get_field_index("bytes") >= 0 else kind
    if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
        raise UserError(f"The column image of {file!r} is {kind}; give encoded bytes, or a struct with bytes.")


def _label_names(file: str, table: Any, schema: Any) -> list[str]:
    """Labels by name, with the names of Hugging Face's ClassLabel where the file brings them."""
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


# ------------------------------------------------------------------------------------------------------ torchvision


def from_torchvision(name: str) -> Source:
    from torchvision import datasets

    known = sorted([*_BY_SPLIT, *_BY_FLAG, *_WHOLE], key=str.lower)
    if name not in known:
        raise UserError(
            f"'torchvision:{name}' is no data set for classification of torchvision{nearest(name, known)}; "
            f"there are {', '.join(known)}."
        )
    kind = getattr(datasets, name)
    if name in _BY_SPLIT:
        arguments: dict[str, dict[str, Any]] = {
            split: {"split": value}
            for split, value in zip(("train", "val", "test"), _BY_SPLIT[name], strict=True)
            if value
        }
    elif name in _BY_FLAG:
        arguments = {"train": {"train": True}, "test": {"train": False}}
    else:
        arguments = {"train": {}}
    root = CACHE.expanduser()
    common: dict[str, Any] = {"root": str(root), "download": True}
    common = {key: value for key, value in common.items() if key in inspect.signature(kind).parameters}
    # FakeData draws its images from the global generator, one at a time; the others read files or index an array.
    lock = threading.Lock() if name == "FakeData" else nullcontext()
    splits = {}
    for split, chosen in arguments.items():
        try:
            root.mkdir(parents=True, exist_ok=True)
            dataset = kind(**common, **chosen)
        except (OSError, RuntimeError, ImportError) as error:
            raise UserError(
                f"torchvision cannot provide {name} ({error}); go online, or put its files into {str(root)!r}."
            ) from error
        splits[split] = _torchvision_examples(name, split, dataset, lock)
    return Source(name=name.lower(), splits=splits)


def _torchvision_examples(name: str, split: str, dataset: Any, lock: Any) -> Examples:
    def read(index: int) -> Image.Image:
        with lock:
            image: Image.Image = dataset[index][0]
        return image

    return Examples(
        labels=_torchvision_labels(dataset), names=[f"{name}:{split}:{i}" for i in range(len(dataset))], read=read
    )


def _torchvision_labels(dataset: Any) -> list[str]:
    """Labels by name, without decoding where the data set keeps a list of them (each kind calls it differently)."""
    for attribute in ("targets", "_labels", "labels", "y", "_samples"):
        found = getattr(dataset, attribute, None)
        if found is not None and len(found) == len(dataset):
            numbers = [int(label[-1] if attribute == "_samples" else label) for label in found]
            break
    else:
        numbers = [int(dataset[index][1]) for index in range(len(dataset))]
    classes = getattr(dataset, "classes", None) or getattr(dataset, "categories", None) or []
    names = [entry if isinstance(entry, str) else ", ".join(entry) for entry in classes]
    if len(set(names)) == len(names) > max(numbers):
        return [names[number] for number in numbers]
    return [str(number) for number in numbers]  # none, or not unique: ImageNet has two cranes


# ------------------------------------------------------------------------------------------------------------- demo


def from_demo(seed: int) -> Source:
    """The handwritten digits that scikit-learn brings: 997 for training, 300 validation, 500 test."""
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ModuleNotFoundError as error:
        raise UserError('The demo needs scikit-learn; run: pip install "delta-tune[demo]".') from error
    digits, labels = load_digits(return_X_y=True)
    pixels = np.round(digits.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    # A black border: some strokes touch the edge, and the random crop cuts an eighth of the side off.
    pixels = np.pad(pixels, ((0, 0), (1, 1), (1, 1)))
    rest, test = train_test_split(np.arange(len(labels)), test_size=500, stratify=labels, random_state=seed)
    train, val = train_test_split(rest, test_size=300, stratify=labels[rest], random_state=seed)

    def examples(rows: Any) -> Examples:
        rows = np.sort(rows)
        return Examples(
            labels=[str(label) for label in labels[rows]],
            names=[f"digits:{row}" for row in rows],
            read=lambda index: Image.fromarray(pixels[rows[index]]),
        )

    return Source(name="demo", splits={"train": examples(train), "val": examples(val), "test": examples(test)})
