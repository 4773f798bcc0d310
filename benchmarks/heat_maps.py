"""Whether heat maps show what a network's answer depends on, by layer and method.

    python benchmarks/heat_maps.py [--study FOLDER --images FOLDER] [--count N] [--json FILE]

In each photo the quarter of the pixels that is brightest in the heat map of the predicted class is blurred ("hidden"),
or everything else is ("alone"). The figures are the mean probability of that class then: a map that shows what the
answer depends on has a low one hidden and a high one alone. "other photo" is the same with the map of another photo of
the set: what a map gains on it is of the photo itself, and not of where such photos usually have their subject. Methods
are LayerCAM and Grad-CAM at the last block of at least so many positions a side; `*` marks what `predict --explain`
draws.

Without --study it is MobileNetV2 as it was trained on ImageNet, at 224 pixels, with the test photos of flowers17. The
photos and the weights are in the folder that DELTA_TUNE_TEST_DATA names.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torchvision
from captum.attr import LayerGradCam
from development_data import DATA, WEIGHTS
from torch import Tensor
from torch.nn import functional

from delta_tune.data.augmentation import center_crop
from delta_tune.data.images import Preprocessing, open_picture, stored_square
from delta_tune.explanation.heat_maps import heat_maps
from delta_tune.inference.ensemble import members_of
from delta_tune.inference.model import Model, load
from delta_tune.labels.one_label import ONE_LABEL
from delta_tune.models.hooked_layers import HEAT_MAP_SIDE, heat_map_layer

SIDES = (2, 5, HEAT_MAP_SIDE, 20)
SHARE, BATCH = 0.25, 16
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225), "interpolation": "bilinear"}


def imagenet_model() -> Model:
    """MobileNetV2 of ImageNet, whose classes are numbers."""
    network = torchvision.models.mobilenet_v2()
    network.load_state_dict(torch.load(WEIGHTS / "mobilenet_v2.pth", weights_only=True))
    config = {
        "backbone": {"model": "mobilenet_v2", "head": "classifier.1"},
        "classes": [str(number) for number in range(1000)],
        "preprocessing": {"image_size": 224, "stored_size": 256, **IMAGENET},
    }
    return Model(network.eval(), config)


def probabilities(model: Model, images: Tensor) -> Tensor:
    """(N, K)"""
    with torch.no_grad():
        return torch.cat([(model.network(part) / model.temperature).softmax(1) for part in images.split(BATCH)])


def grad_cam(model: Model, layer: str, images: Tensor, classes: list[int]) -> np.ndarray:
    """captum's own, of the first network, enlarged to the input: (N, S, S)."""
    member, found = members_of(model.network)[0], []
    method = LayerGradCam(member, member.get_submodule(layer))
    for start in range(0, len(images), BATCH):
        part, wanted = images[start : start + BATCH], classes[start : start + BATCH]
        found.append(method.attribute(part, target=wanted, relu_attributions=True).detach())
    return functional.interpolate(torch.cat(found), images.shape[2:], mode="bilinear")[:, 0].numpy()


def hidden_and_alone(model: Model, images: Tensor, classes: Tensor, maps: np.ndarray) -> tuple[float, float]:
    """Mean probability of the class with the brightest quarter of the pixels blurred, and with all others blurred."""
    size = images.shape[3]
    brightest = torch.from_numpy(np.array(maps)).flatten(1).topk(int(SHARE * size * size), 1).indices
    is_bright = torch.zeros(len(images), size * size).scatter_(1, brightest, 1).view(-1, 1, size, size)
    width = size // 3 | 1
    padded = functional.pad(images, (width // 2,) * 4, mode="reflect")
    blurred = functional.avg_pool2d(padded, width, 1)
    found = []
    for share in (is_bright, 1 - is_bright):
        shown = probabilities(model, share * blurred + (1 - share) * images)
        found.append(float(shown.gather(1, classes[:, None]).mean()))
    return found[0], found[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", type=Path)
    parser.add_argument("--images", type=Path, default=DATA / "flowers17" / "test")
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    model = imagenet_model() if given.study is None else load(given.study)
    sizes: Preprocessing = model.preprocessing
    files = sorted(file for file in given.images.rglob("*") if file.is_file())
    files = files[:: max(1, len(files) // given.count)][: given.count]
    images = center_crop(torch.from_numpy(np.stack([stored_square(open_picture(f), sizes) for f in files])), sizes)
    intact = probabilities(model, images)
    classes = intact.argmax(1)
    print(f"{len(files)} photos, {sizes.image_size} pixels, mean probability {intact.max(1).values.mean():.3f}\n")
    print("| map | hidden | alone | hidden, other photo | alone, other photo |\n|---|---|---|---|---|")
    other, rows = np.roll(np.arange(len(files)), len(files) // 3), []

    def row(name: str, maps: np.ndarray) -> None:
        figures = [
            *hidden_and_alone(model, images, classes, maps),
            *hidden_and_alone(model, images, classes, maps[other]),
        ]
        rows.append({"map": name, "figures": figures})
        print(f"| {name} | {' | '.join(f'{each:.3f}' for each in figures)} |", flush=True)

    methods: dict[str, Callable[[str], np.ndarray]] = {
        "LayerCAM": lambda layer: heat_maps(model.network, layer, images, classes.tolist(), ONE_LABEL),
        "Grad-CAM": lambda layer: grad_cam(model, layer, images, classes.tolist()),
    }
    member, head = members_of(model.network)[0], model.config["backbone"]["head"]
    usual = heat_map_layer(member, head, sizes.image_size)
    for layer in dict.fromkeys(heat_map_layer(member, head, sizes.image_size, least=least) for least in SIDES):
        for name, method in methods.items():
            drawn = " *" if (name, layer) == ("LayerCAM", usual) else ""
            row(f"{name} {layer.side} × {layer.side}{drawn}", method(layer.name))
    middle = -((np.arange(sizes.image_size) - (sizes.image_size - 1) / 2) ** 2)
    row("the middle", np.repeat((middle[:, None] + middle)[None], len(files), axis=0).astype(np.float32))
    if given.json:
        given.json.write_text(json.dumps({"photos": len(files), "rows": rows}, indent=2))


if __name__ == "__main__":
    main()
