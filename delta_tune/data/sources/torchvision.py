"""Data sets of torchvision as a data source."""

from __future__ import annotations

import inspect
import threading
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from PIL import Image

from delta_tune.config import UserError, did_you_mean
from delta_tune.data.sources.base import Examples, Source

CACHE = Path("~/.cache/delta_tune")

# The classification sets of torchvision: the value of `split` for train, val and test ("" = none) …
BY_SPLIT = {
    **dict.fromkeys(["DTD", "FGVCAircraft", "Flowers102", "PCAM"], ("train", "val", "test")),
    **dict.fromkeys(["CLEVRClassification", "ImageNet", "Imagenette"], ("train", "val", "")),
    **dict.fromkeys(["Food101", "GTSRB", "STL10", "StanfordCars", "SVHN"], ("train", "", "test")),
    "Country211": ("train", "valid", "test"),
    "OxfordIIITPet": ("trainval", "", "test"),
    "RenderedSST2": ("train", "val", "test"),
}
BY_FLAG = ("CIFAR10", "CIFAR100", "FashionMNIST", "KMNIST", "MNIST", "USPS")  # … train=True or False …
WHOLE = ("Caltech101", "Caltech256", "EuroSAT", "FakeData", "SEMEION", "SUN397")  # … and those without splits.


def from_torchvision(name: str) -> Source:
    from torchvision import datasets

    known = sorted([*BY_SPLIT, *BY_FLAG, *WHOLE], key=str.lower)
    if name not in known:
        raise UserError(
            f"'torchvision:{name}' is no data set for classification of torchvision{did_you_mean(name, known)}; "
            f"there are {', '.join(known)}."
        )
    kind = getattr(datasets, name)
    if name in BY_SPLIT:
        arguments: dict[str, dict[str, Any]] = {
            split: {"split": value}
            for split, value in zip(("train", "val", "test"), BY_SPLIT[name], strict=True)
            if value
        }
    elif name in BY_FLAG:
        arguments = {"train": {"train": True}, "test": {"train": False}}
    else:
        arguments = {"train": {}}
    root = CACHE.expanduser()
    common: dict[str, Any] = {"root": str(root), "download": True}
    common = {key: value for key, value in common.items() if key in inspect.signature(kind).parameters}
    # FakeData draws images from the global generator, so one at a time; the others read files or index an array.
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
    """Label names, without decoding images if the data set has a list of labels (under various attribute names)."""
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
    return [str(number) for number in numbers]  # missing or not unique: ImageNet has two classes named crane
