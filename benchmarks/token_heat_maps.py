"""At which block of a vision transformer heat maps show best what its answer depends on.

    python benchmarks/token_heat_maps.py [--epochs 60] [--count 100] [--json FILE]

No pretrained transformer need be there: two small ones (timm's test_vit, 6 blocks of 64 dimensions at 160 pixels) are
trained on the photos of flowers17 from random weights, one that answers by its class token and one by the mean of all
tokens. For each, LayerCAM is made at the output of the last four blocks and at the norm before their attention. The
columns are those of heat_maps.py, of the test photos. The photos are in the folder that DELTA_TUNE_TEST_DATA names.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from development_data import DATA
from heat_maps import BATCH, hidden_and_alone, probabilities
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from delta_tune.explanation.heat_maps import heat_maps
from delta_tune.inference.model import Model
from delta_tune.labels.one_label import ONE_LABEL
from delta_tune.models.hooked_layers import MapLayer, heat_map_layer
from delta_tune.models.map_layout import MapLayout

SIZE, STORED, CLASSES, SIDE = 160, 180, 17, 10
VARIANTS: dict[str, dict[str, Any]] = {"class token": {}, "mean": {"class_token": False, "global_pool": "avg"}}


def photos(split: str) -> tuple[Tensor, Tensor]:
    """Squares (N, 3, STORED, STORED) in [-1, 1], and classes (N,)."""
    files = sorted(file for file in (DATA / "flowers17" / split).rglob("*") if file.is_file())
    names = sorted({file.parent.name for file in files})
    squares = [np.asarray(Image.open(file).convert("RGB").resize((STORED, STORED))) for file in files]
    images = torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2).float() / 127.5 - 1
    return images, torch.tensor([names.index(file.parent.name) for file in files])


def train(network: nn.Module, images: Tensor, labels: Tensor, epochs: int) -> None:
    """AdamW with one cycle of the learning rate, random crops and flips."""
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=0.05)
    steps = epochs * (len(images) // (2 * BATCH))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1.5e-3, total_steps=steps, pct_start=0.1)
    for _ in range(epochs):
        for rows in torch.randperm(len(images)).split(2 * BATCH)[: len(images) // (2 * BATCH)]:
            side = int(torch.randint(110, STORED + 1, ()))
            top, left = torch.randint(0, STORED - side + 1, (2,)).tolist()
            crop = images[rows, :, top : top + side, left : left + side]
            crop = functional.interpolate(crop, (SIZE, SIZE), mode="bilinear")
            crop = crop.flip(3) if torch.rand(()) < 0.5 else crop
            loss = functional.cross_entropy(network(crop), labels[rows], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    images, labels = photos("train")
    test, true = photos("test")
    margin, every = (STORED - SIZE) // 2, max(1, len(test) // given.count)
    test, true = test[::every, :, margin : margin + SIZE, margin : margin + SIZE], true[::every]
    rows: list[dict[str, Any]] = []
    for name, keywords in VARIANTS.items():
        torch.manual_seed(0)
        network = timm.create_model("test_vit", num_classes=CLASSES, **keywords)
        train(network, images, labels, given.epochs)
        sizes = {"image_size": SIZE, "stored_size": STORED, "interpolation": "bilinear", "mean": (0.5,) * 3}
        preprocessing = sizes | {"std": (0.5,) * 3}
        config = {"backbone": {"model": "timm:test_vit", "head": "head"}, "classes": [str(k) for k in range(CLASSES)]}
        model = Model(network.eval(), config | {"preprocessing": preprocessing})
        intact = probabilities(model, test)
        answers = intact.argmax(1)
        accuracy, sure = float((answers == true).float().mean()), float(intact.max(1).values.mean())
        print(f"\n{name}: accuracy {accuracy:.3f}, mean probability {sure:.3f}, {len(test)} photos\n")
        print("| map | hidden | alone | hidden, other photo | alone, other photo |\n|---|---|---|---|---|")
        other, layout = np.roll(np.arange(len(test)), len(test) // 3), MapLayout(True, network.num_prefix_tokens)
        usual = heat_map_layer(network, "head", SIZE).name
        for number in range(len(network.blocks) - 4, len(network.blocks)):
            for layer in (f"blocks.{number}.norm1", f"blocks.{number}"):
                maps = heat_maps(network, MapLayer(layer, SIDE, layout), test, answers.tolist(), ONE_LABEL)
                if not maps.any():
                    print(f"| {layer} | nothing depends on it | | | |", flush=True)
                    continue
                figures = [
                    *hidden_and_alone(model, test, answers, maps),
                    *hidden_and_alone(model, test, answers, maps[other]),
                ]
                rows.append({"network": name, "layer": layer, "figures": figures})
                shown = " | ".join(f"{each:.3f}" for each in figures)
                print(f"| {layer}{' *' if layer == usual else ''} | {shown} |", flush=True)
    if given.json:
        given.json.write_text(json.dumps({"photos": len(test), "rows": rows}, indent=2))


if __name__ == "__main__":
    main()
