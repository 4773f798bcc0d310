"""How exactly timm, torchvision and transformers repeat what `predict` says, with their own preprocessing.

    python benchmarks/library_folders.py STUDY PHOTOS [--count 100] [--json FILE]

The model of a study is exported with `--format timm`, `torchvision` and `hf`. The Python of each folder's README.md
then predicts the photos, `--count` of PHOTOS and its subfolders evenly spread, in a process that cannot import
delta_tune. Told are the share of photos with the same most probable class, the mean and the largest difference of a
photo's probabilities, and the accuracy, if each photo lies in a folder that is named like its class. A row "pixels" has
the same network with the photos prepared as `predict` prepares them: what remains of the difference is then the
arithmetic's. A format that cannot hold the model has its sentence instead.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from delta_tune.config import UserError
from delta_tune.data.augmentation import center_crop
from delta_tune.data.images import read_square
from delta_tune.export.formats import FOLDERS
from delta_tune.export.library_network import build, library_network
from delta_tune.export.model_as_folder import export_folder
from delta_tune.inference.inputs import Images
from delta_tune.inference.model import Model, load

PREDICT = """
import json, sys
sys.modules["delta_tune"] = None
blocks, photos, classes = json.load(open(sys.argv[1]))
load, per_photo = blocks[0].replace('print(classify("photo.jpg", top_k=3))', ""), "".join(blocks[1:])
exec(load)
found = []
for photo in photos:
    if per_photo:
        exec(per_photo.replace('"photo.jpg"', "photo"))
    else:
        scores = {each["label"]: each["score"] for each in classify(photo, top_k=len(classes))}
        probabilities = [scores[name] for name in classes]
    found.append(probabilities)
json.dump(found, open(sys.argv[2], "w"))
"""
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


def evenly_spread(folder: Path, count: int) -> list[str]:
    """`count` photos of a folder and its subfolders, or all of them, in the order of their names."""
    photos = sorted(str(file) for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES)
    return [photos[index] for index in np.unique(np.linspace(0, len(photos) - 1, count).astype(int))]


def in_the_library(folder: Path, photos: list[str], classes: tuple[str, ...]) -> np.ndarray:
    """Probabilities (N, K) by the Python of the folder's README.md, in a process of its own."""
    blocks = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    given, found = folder.parent / "given.json", folder.parent / "found.json"
    given.write_text(json.dumps([blocks, photos, classes]))
    command = [sys.executable, "-c", PREDICT, str(given), str(found)]
    subprocess.run(command, cwd=folder.parent, check=True, capture_output=True)
    return np.array(json.loads(found.read_text()))


def with_our_pixels(model: Model, photos: list[str]) -> np.ndarray:
    """Probabilities (N, K) of the library's network for photos that are prepared as `predict` prepares them."""
    library = "timm" if model.config["backbone"]["model"].startswith("timm:") else "torchvision"
    made = library_network(model, library, library)
    network = build(library, made.name, len(model.classes), made.keywords)
    network.load_state_dict(made.state)
    squares = torch.from_numpy(np.stack([read_square(photo, model.preprocessing) for photo in photos]))
    with torch.inference_mode():
        return model.kind.probabilities(network(center_crop(squares, model.preprocessing))).numpy()


def compared(found: np.ndarray, expected: np.ndarray, labels: list[str], classes: tuple[str, ...]) -> dict[str, Any]:
    apart = np.abs(found - expected).max(1)
    same = found.argmax(1) == expected.argmax(1)
    return {
        "photos": len(expected),
        "same": float(same.mean()),
        "mean_difference": float(apart.mean()),
        "largest_difference": float(apart.max()),
        "accuracy": accuracy(found, labels, classes),
    }


def accuracy(found: np.ndarray, labels: list[str], classes: tuple[str, ...]) -> float | None:
    """Share of the photos whose most probable class is the name of their folder; None if that is no class."""
    if not set(labels) <= set(classes):
        return None
    return float(np.mean([classes[row.argmax()] == label for row, label in zip(found, labels, strict=True)]))


def expected_of(model: Model, photos: Images) -> np.ndarray:
    return np.array([list(each.probabilities.values()) for each in model.predict(photos)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", metavar="STUDY")
    parser.add_argument("photos", metavar="PHOTOS", type=Path)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--json", type=Path, metavar="FILE")
    given = parser.parse_args()
    model, photos = load(given.study), evenly_spread(given.photos, given.count)
    expected = expected_of(model, photos)
    labels = [Path(photo).parent.name for photo in photos]
    rows: dict[str, Any] = {"predict": compared(expected, expected, labels, model.classes)}
    print(f"accuracy of predict: {rows['predict']['accuracy']}\n")
    print("| | same class | mean difference | largest difference | accuracy |\n|---|---|---|---|---|")
    for kind in ("pixels", *FOLDERS):
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place) / "model"
            try:
                if kind == "pixels":
                    found = with_our_pixels(model, photos)
                else:
                    export_folder(model, kind, folder)
                    found = in_the_library(folder, photos, model.classes)
            except UserError as error:
                rows[kind] = {"refused": str(error)}
                print(f"| {kind} | {error} |")
                continue
        rows[kind] = row = compared(found, expected, labels, model.classes)
        print(
            f"| {kind} | {100 * row['same']:.1f} % of {row['photos']} | {row['mean_difference']:.4f} | "
            f"{row['largest_difference']:.4f} | {row['accuracy']} |"
        )
    if given.json:
        given.json.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
