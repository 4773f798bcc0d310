"""The usual script: Ray Tune with Optuna and ASHA around a function that fine-tunes, as one writes it by hand.

    python usual.py FOLDER OUT --model NAME --weights FILE --image-size N --seconds S [--seed N]

FOLDER holds {train,val,test}/<class>/. What its author chose: SGD with momentum and a cosine over 20 epochs, batches of
32, random crops and flips, a new head that is trained at the same rate as the rest, batch norm in training mode; the
learning rate from 0.0003 to 0.03 and the weight decay from 1e-5 to 1e-2, both log-uniform; ASHA from the first epoch
on, which lets every second trial pass; a trial per core with one thread. A trial keeps the weights of its best epoch.
The range of the learning rate lies around what was best for MobileNetV2 on flowers17 with ten photos a class, on which
0.003, 0.01 and 0.03 come to 82, 70 and 58 % of the validation photos: nobody has to find it far from the middle.

OUT/versions/ has the model with the best validation accuracy that was reported so far, each time there was a new one,
and versions.jsonl the moments: this and nothing else is here for the benchmark.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import psutil
import ray
import safetensors.torch
import timm
import torch
from ray import tune
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.optuna import OptunaSearch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

EPOCHS, BATCH = 20, 32


def build(name: str, weights: str, classes: int) -> nn.Module:
    """The pretrained network with a new head."""
    model = timm.create_model(name)
    model.load_state_dict(safetensors.torch.load_file(weights))
    model.reset_classifier(classes)
    return model


def transform(name: str, image_size: int, *, train: bool) -> transforms.Compose:
    """Images to tensors: a random crop and flip for training, else the centre."""
    config = timm.get_pretrained_cfg(name)
    crop = [transforms.RandomCrop(image_size), transforms.RandomHorizontalFlip()]
    return transforms.Compose(
        [
            transforms.Resize(image_size * 256 // 224),
            *(crop if train else [transforms.CenterCrop(image_size)]),
            transforms.ToTensor(),
            transforms.Normalize(config.mean, config.std),
        ]
    )


def classify(model: nn.Module, loader: DataLoader[Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Predicted and true class of each image."""
    model.eval()
    with torch.inference_mode():
        pairs = [(model(images).argmax(1), labels) for images, labels in loader]
    predicted, labels = zip(*pairs, strict=True)
    return torch.cat(predicted), torch.cat(labels)


def fine_tune(config: dict[str, Any], options: argparse.Namespace) -> None:
    """A trial."""
    torch.manual_seed(options.seed)
    torch.set_num_threads(1)
    train, val = (
        ImageFolder(f"{options.folder}/{split}", transform(options.model, options.image_size, train=split == "train"))
        for split in ("train", "val")
    )
    train_loader, val_loader = DataLoader(train, BATCH, shuffle=True), DataLoader(val, BATCH)
    # Not train.classes: cloudpickle takes the word for torch.classes, which it cannot pickle
    model = build(options.model, options.weights, len(train.class_to_idx))
    optimizer = torch.optim.SGD(model.parameters(), lr=config["lr"], momentum=0.9, weight_decay=config["weight_decay"])
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS * len(train_loader))
    best, checkpoint = -1.0, os.path.join(tune.get_context().get_trial_dir(), "best.pth")
    for _ in range(EPOCHS):
        model.train()
        for images, labels in train_loader:
            loss = functional.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
        predicted, labels = classify(model, val_loader)
        accuracy = float((predicted == labels).float().mean())
        if accuracy > best:
            best = accuracy
            torch.save(model.state_dict(), f"{checkpoint}.new")
            os.replace(f"{checkpoint}.new", checkpoint)
        tune.report({"val_accuracy": accuracy, "checkpoint": checkpoint})


class Versions(tune.Callback):
    """Keeps what is best so far. A trial waits in `report` meanwhile, so its checkpoint is of the epoch reported."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.best, self.count = folder, -1.0, 0

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        if result["val_accuracy"] <= self.best:
            return
        self.best, self.count = result["val_accuracy"], self.count + 1
        os.link(result["checkpoint"], self.folder / f"{self.count}.pth")
        told = {"file": f"{self.count}.pth", "monotonic": time.monotonic(), "val_accuracy": self.best}
        with open(self.folder / "versions.jsonl", "a") as file:
            file.write(json.dumps(told) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", required=True, help="name in timm")
    parser.add_argument("--weights", required=True, help="safetensors file")
    parser.add_argument("--image-size", type=int, required=True)
    parser.add_argument(
        "--seconds", type=float, required=True, help="from the start of this process to the end of the search"
    )
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    versions = options.out / "versions"
    versions.mkdir(parents=True)
    ray.init("local", include_dashboard=False, log_to_driver=False)
    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(fine_tune, options=options), {"cpu": 1}),
        param_space={"lr": tune.loguniform(3e-4, 3e-2), "weight_decay": tune.loguniform(1e-5, 1e-2)},
        tune_config=tune.TuneConfig(
            metric="val_accuracy",
            mode="max",
            search_alg=OptunaSearch(seed=options.seed),
            scheduler=ASHAScheduler(max_t=EPOCHS, grace_period=1, reduction_factor=2),
            num_samples=-1,
            time_budget_s=max(1.0, options.seconds - (time.time() - psutil.Process().create_time())),
        ),
        run_config=tune.RunConfig(
            storage_path=str(options.out), name="tune", verbose=0, callbacks=[Versions(versions)]
        ),
    )
    tuner.fit()


if __name__ == "__main__":
    main()
