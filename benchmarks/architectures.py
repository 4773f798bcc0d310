"""What works with which architecture: one small network of each family of timm and torchvision, with random weights.

    python benchmarks/architectures.py --out benchmarks/architectures.jsonl [--only NAME ...] [--minutes N]

Each network is built at the smallest of a few image sizes that it takes, its weights are drawn and saved, and loaded
again as a user's. It then has to train one step by every method, to lose as much by switching channels off as a naive
loop says, to predict after it was saved and loaded, and to be exported to every format, whose files check themselves.
A line of JSON for each network tells what did not work and why; lines that are there are not made again, so that the
program can be ended and started anew. docs/generate.py makes docs/reference/architectures.md of the file.

Each network is examined in a process of its own, which ends after `--minutes`. Tests ask the same, but for files in all
formats, of some of these networks: tests/models/test_architecture_contract.py has three of them in the default run, one
of each kind under the marker `slow`, and over thirty more under `exhaustive`.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from architecture_names import NAMES
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from delta_tune.attention.ablation import Ablation
from delta_tune.attention.channel_losses import ablation_losses_per_image
from delta_tune.config import METHODS, TrialConfig, UserError
from delta_tune.data.augmentation import center_crop
from delta_tune.export.formats import FOLDERS, SUFFIXES
from delta_tune.export.model_as_folder import export_folder
from delta_tune.export.model_file import export_model
from delta_tune.inference.model import Model, load
from delta_tune.inference.model_folder import save_model
from delta_tune.models.architectures import build_unfilled
from delta_tune.models.backbones import build_target
from delta_tune.models.map_layout import CHANNELS_FIRST
from delta_tune.training.task import Task, prepare
from delta_tune.training.trial import run_trial

SIZES = (64, 96, 224, 240, 256)
"""Tried in this order, up to the first that the network takes."""
CLASSES = ("a", "b", "c")
PER_CLASS = {"train": 2, "val": 2, "test": 1}
LEAST_LOSS = 1e-5
TOLERANCE = 2e-3
"""Of the naive loop's losses in parts of the largest: random networks have large logits."""


def write_images(folder: Path) -> None:
    """A folder of noise around a colour per class."""
    rng = np.random.default_rng(0)
    for split, count in PER_CLASS.items():
        for number, name in enumerate(CLASSES):
            (folder / split / name).mkdir(parents=True)
            for index in range(count):
                pixels = rng.integers(0, 160, (80, 80, 3))
                pixels[..., number] += 60
                Image.fromarray(pixels.astype(np.uint8)).save(folder / split / name / f"{index}.png")


def draw_weights(network: nn.Module, seed: int = 0) -> nn.Module:
    """Give a network drawn weights, norms and their statistics included."""
    generator = torch.Generator().manual_seed(seed)
    for key, value in network.state_dict().items():
        if value.is_floating_point():
            drawn = torch.randn(value.shape, generator=generator)
            value.copy_(1 + 0.1 * drawn if value.ndim <= 1 else drawn * (1 / value[0].numel()) ** 0.5)
            if key.endswith("running_var"):
                value.abs_()
            elif key.endswith(("bias", "running_mean")):
                value.sub_(1)
    return network


def task_of(model: str, size: int, folder: Path) -> Task:
    """The task of a network of random weights, in a file, and of the images in `folder`/images.

    Raises:
        UserError: the network is refused.
    """
    images, weights = folder / "images", folder / "weights.safetensors"
    if not images.exists():
        write_images(images)
    state = draw_weights(built(model, size)).state_dict()
    save_file({name: value.clone() for name, value in state.items()}, weights)  # CoaT's share memory
    task = prepare(images, model, str(weights), image_size=size)
    task.probe_images = 6
    return task


def built(model: str, size: int) -> nn.Module:
    """The architecture for images of a size, its weights still open.

    Raises:
        UserError: it is unknown, or does not take images of this size.
    """
    try:
        return build_unfilled(model, image_size=size)
    except (RuntimeError, ValueError, AssertionError) as error:
        raise UserError(f"{model} cannot be built for images of {size} pixels: {error}") from error


def step(task: Task, method: str) -> str:
    """Why one step of a method fails; empty if it ends with finite losses."""
    config = TrialConfig.from_record(
        {"regularizer": method, "max_epochs": 1, "batch_size": 6, "lr": 1e-4, "max_grad_norm": 1.0}
        | {"attention_estimator": "first_order"}
    )
    result = run_trial(task, config)
    if result.state != "completed":
        return f"{result.state}: {result.error}"
    wrong = [name for name, value in result.epochs[-1].items() if isinstance(value, float) and not np.isfinite(value)]
    return f"not finite: {', '.join(wrong)}" if wrong else ""


def probe(task: Task) -> tuple[nn.Module, Tensor, Tensor]:
    """A network with a drawn head, two images and their labels."""
    network = build_target(task.backbone, len(CLASSES), torch.Generator().manual_seed(0)).eval()
    head = network.get_submodule(task.backbone.head)
    head.weight.data *= 30  # of logits that are nearly 0 nothing would depend on a channel
    pixels = torch.from_numpy(task.dataset.train.images.batch(np.array([0, 3])))
    return network, center_crop(pixels, task.backbone.preprocessing), torch.tensor([0, 1])


def attention(task: Task) -> tuple[dict[str, str], float]:
    """Why layers need a forward pass for each channel (empty: they have shortcuts), and how far a naive loop is off.

    The distance is in parts of the largest loss, over the first, a middle and the last channel of the first and the
    last layer.
    """
    network, images, labels = probe(task)
    backbone = task.backbone
    layouts = {layer: backbone.layouts.get(layer, CHANNELS_FIRST) for layer in backbone.layers}
    notes = Ablation(network, images, backbone.layers, layouts).notes
    reasons = dict.fromkeys(backbone.layers, "") | dict(note.split(": ", 1) for note in notes)
    two = tuple(dict.fromkeys((backbone.layers[0], backbone.layers[-1])))
    found = ablation_losses_per_image(network, images, labels, two, layouts=layouts)
    apart, largest = 0.0, 0.0
    for layer in two:
        count = backbone.channels[layer]
        assert found[layer].shape == (2, count), f"{layer} has losses of shape {tuple(found[layer].shape)}"
        assert found[layer].isfinite().all(), f"{layer} has losses that are not finite"
        for channel in sorted({0, count // 2, count - 1}):
            wanted = naive_loss(network, images, labels, layer, channel)
            apart = max(apart, float((found[layer][:, channel] - wanted).abs().max()))
            largest = max(largest, float(wanted.abs().max()))
    assert largest > LEAST_LOSS, f"switching channels off changes losses by {largest:.1g} at most"
    return reasons, apart / largest


def naive_loss(network: nn.Module, images: Tensor, labels: Tensor, layer: str, channel: int) -> Tensor:
    """The definition: cross entropy with the channel 0 everywhere, less the intact one, (B,)."""
    module = network.get_submodule(layer)

    def off(_: nn.Module, args: Any, output: Tensor) -> Tensor:
        changed = output.clone()
        is_last = isinstance(module, nn.Linear) or output.ndim == 3
        changed[(..., channel) if is_last else (slice(None), channel)] = 0
        return changed

    with torch.no_grad():
        before = nn.functional.cross_entropy(network(images).double(), labels, reduction="none")
        with module.register_forward_hook(off):
            after = nn.functional.cross_entropy(network(images).double(), labels, reduction="none")
    return (after - before).float()


def saved_model(task: Task, folder: Path) -> Model:
    """The network of `probe`, saved as a study's model and loaded again."""
    network, _, _ = probe(task)
    save_file({name: value.clone() for name, value in network.state_dict().items()}, folder / "best.safetensors")
    origin = {"config": {"regularizer": "delta"}, "metrics": {}}
    save_model(task.backbone, CLASSES, [folder / "best.safetensors"], origin, folder / "best")
    return load(folder / "best")


def prediction_gap(task: Task, model: Model) -> float:
    """Largest difference of the loaded model's probabilities from those of the network that was saved."""
    network, images, _ = probe(task)
    pixels = task.dataset.train.images.batch(np.array([0, 3]))
    found = [list(each.probabilities.values()) for each in model.predict(list(pixels))]
    with torch.no_grad():
        wanted = network(images).softmax(1)
    return float((torch.tensor(found) - wanted).abs().max())


def export(model: Model, kind: str, folder: Path) -> str:
    """Why a format cannot hold a model; empty if it can. Files check themselves when they are written."""
    if kind in FOLDERS:
        export_folder(model, kind, folder / FOLDERS[kind])
    else:
        export_model(
            model, kind, folder / f"model{SUFFIXES[kind]}", inputs="pixels" if kind == "state_dict" else "normalized"
        )
    return ""


def fault(function: Callable[[], Any]) -> str:
    """What a function says is wrong, or how it fails; empty if nothing is wrong."""
    try:
        return function() or ""
    except UserError as error:
        return str(error)
    except Exception as error:  # whatever it is, it is told
        return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"[:300]


def examined(model: str, folder: Path) -> dict[str, Any]:
    """What works with an architecture: a row of the table."""
    row: dict[str, Any] = {"model": model, "family": family(model)}
    task = None
    for size in SIZES:
        try:
            task = task_of(model, size, folder)
            break
        except UserError as error:
            row |= {"image_size": size, "refused": str(error)}
    if task is None:
        return row
    backbone = task.backbone
    parameters = sum(each.size for name, each in backbone.state.items()) / 1e6
    row |= {"image_size": size, "refused": "", "parameters": round(parameters, 1), "head": backbone.head}
    row["layers"] = {layer: backbone.channels[layer] for layer in backbone.layers}
    row["layouts"] = {
        layer: [layout.channels_last, layout.prefix_tokens]
        for layer in backbone.layers
        if (layout := backbone.layouts.get(layer)) is not None
    }
    row["methods"] = {method: fault(lambda method=method: step(task, method)) for method in METHODS}

    def measured() -> str:
        row["full_passes"], apart = attention(task)
        row["attention_gap"] = apart
        return "" if apart <= TOLERANCE else f"losses differ from the naive loop's by {apart:.2g}"

    row["attention"] = fault(measured)
    found: list[Model] = []

    def predicted() -> str:
        found.append(saved_model(task, folder))
        apart = prediction_gap(task, found[0])
        return "" if apart <= 1e-4 else f"probabilities differ by {apart:.2g} after loading"

    row["predict"] = fault(predicted)
    if found:
        kinds = [*SUFFIXES, *FOLDERS]
        row["exports"] = {kind: fault(lambda kind=kind: export(found[0], kind, folder)) for kind in kinds}
    return row


def family(model: str) -> str:
    """timm's module of a network, or torchvision's."""
    if model.startswith("timm:"):
        from timm.models import model_entrypoint

        return model_entrypoint(model.removeprefix("timm:")).__module__.rpartition(".")[2]
    from torchvision.models import get_model_builder

    return f"torchvision {get_model_builder(model).__module__.rpartition('.')[2]}"


def known(file: Path) -> Iterator[dict[str, Any]]:
    """The rows of a file; none if there is none."""
    return map(json.loads, file.read_text().splitlines()) if file.exists() else iter(())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".jsonl"))
    parser.add_argument("--only", nargs="+", default=NAMES, metavar="NAME")
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(examined(given.one, Path(folder))))
        return
    there = {row["model"] for row in known(given.out)}
    versions = {name: metadata.version(name) for name in ("timm", "torchvision", "torch")}
    for name in given.only:
        if name in there:
            continue
        command = [sys.executable, "-W", "ignore", __file__, "--one", name]
        try:
            ended = subprocess.run(
                command, capture_output=True, text=True, timeout=60 * given.minutes, env=os.environ, check=False
            )
            last = ended.stdout.splitlines()[-1] if ended.stdout.strip() else ""
            row = json.loads(last) if ended.returncode == 0 else {"refused": f"it ended: {ended.stderr.strip()[-200:]}"}
        except subprocess.TimeoutExpired:
            row = {"refused": f"it took more than {given.minutes:g} minutes"}
        row = {"model": name, "family": family(name)} | row | {"versions": versions}
        with given.out.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(name, row["refused"] or "works", flush=True)


if __name__ == "__main__":
    main()
