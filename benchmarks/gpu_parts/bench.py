"""What all sections work with: a device, a task of generated photos and random weights, and the time that is left."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from PIL import Image

from delta_tune.attention.layer_attention import LayerAttention
from delta_tune.config import TrialConfig
from delta_tune.models.architectures import build_unfilled
from delta_tune.training.task import Task, prepare

MOST_TURNS = 7
CLASSES = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """How much each section computes."""

    model: str
    image_size: int
    images: int
    """Photos for training; a multiple of CLASSES."""
    val_images: int
    batch_size: int
    few: int
    """Photos where the CPU computes too, or each channel costs a forward."""
    channels: int
    """Channels a layer that the usual loop switches off."""
    copied_bytes: int
    """Bytes of the copy that measures bandwidth."""
    sharers: tuple[int, ...]
    """Numbers of trials that share the GPU."""


FULL = Sizes(
    model="resnet50", image_size=224, images=2048, val_images=256, batch_size=32, few=48, channels=16,
    copied_bytes=2**30, sharers=(1, 2, 4, 8),
)  # fmt: skip
TINY = Sizes(
    model="timm:test_resnet", image_size=64, images=16, val_images=8, batch_size=8, few=8, channels=3,
    copied_bytes=2**20, sharers=(1,),
)  # fmt: skip


@dataclass(kw_only=True)
class Bench:
    """One process's part in the benchmark."""

    device: torch.device
    sizes: Sizes
    task: Task = field(repr=False)
    few: Task = field(repr=False)
    """The same with `sizes.few` photos for training."""
    settings: dict[str, Any]
    """Keywords of `prepare` and `tune` for the same task."""
    ends: float = 0.0
    """When the section should end, as `time.monotonic` counts."""
    simulated: bool = False
    """Whether the device is a simulated one: real numbers, no speed."""

    def config(self, regularizer: Any, **settings: Any) -> TrialConfig:
        """A configuration in this benchmark's sizes."""
        values: dict[str, Any] = {"batch_size": self.sizes.batch_size, "lr": 0.001}
        values["max_epochs"] = 1 if self.simulated else 2
        return TrialConfig(regularizer=regularizer, **values | settings)

    def turns(self, least: int = 2) -> Iterator[int]:
        """0, 1, 2, … until the section should end: at least `least`, at most MOST_TURNS."""
        for turn in range(1 if self.simulated else MOST_TURNS):
            if turn >= least and time.monotonic() >= self.ends:
                return
            yield turn

    def wait(self) -> None:
        """Let the device finish."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def seconds(self, run: Callable[[], Any]) -> float:
        """How long `run` takes, the device's work included."""
        self.wait()
        start = time.perf_counter()
        run()
        self.wait()
        return time.perf_counter() - start

    def in_turns(self, ways: Mapping[str, Callable[[], Any]], repeats: int = 1) -> dict[str, list[float]]:
        """Seconds of each way, turn by turn, each of `repeats` calls; a call of each warms up."""
        for run in ways.values():
            run()
        times: dict[str, list[float]] = {name: [] for name in ways}
        for _ in self.turns():
            for name, run in ways.items():
                times[name].append(self.seconds(lambda run=run: [run() for _ in range(repeats)]) / repeats)
        return times


def ratios(times: Mapping[str, list[float]], to: str) -> dict[str, list[float]]:
    """Ratios to one way, turn by turn: what slows one turn slows all in it."""
    return {name: [own / base for own, base in zip(each, times[to], strict=True)] for name, each in times.items()}


def median(values: list[float]) -> float:
    """The median as a float."""
    return float(statistics.median(values))


def settings_for(folder: Path, sizes: Sizes) -> dict[str, Any]:
    """Keywords of `prepare` and `tune` for the photos and weights in the folder; made unless they are there."""
    photos, weights = folder / "photos", folder / "weights.safetensors"
    if not weights.exists():
        _make_photos(photos, sizes)
        _make_weights(weights, sizes)
    return {"data": str(photos), "model": sizes.model, "weights": str(weights), "image_size": sizes.image_size}


def open_bench(folder: Path, sizes: Sizes, device: torch.device, *, simulated: bool = False) -> Bench:
    """The bench for the photos and weights in the folder."""
    settings = settings_for(folder, sizes)
    few = prepare(**settings, train_per_class=sizes.few // CLASSES)
    few = few.on(dataclasses.replace(few.dataset, val=few.dataset.val.first(sizes.few)))
    return Bench(device=device, sizes=sizes, task=prepare(**settings), few=few, settings=settings, simulated=simulated)


def unbuilt(task: Task) -> Task:
    """The same task and measurements with no network built: one that is built holds its weights in one precision."""
    copy = task.on(task.dataset)
    copy.measurements = task.measurements
    return copy


def shortened(task: Task, batches: int, batch_size: int) -> Task:
    """The task with fewer training photos and one of validation; what was measured of all stays."""
    data = task.dataset
    count = min(batches * batch_size, len(data.train))
    copy = task.on(dataclasses.replace(data, train=data.train.first(count), val=data.val.first(1)))
    copy.measurements = task.measurements
    return copy


def made_up_attention(task: Task) -> None:
    """Channel losses that were not measured: attention would cost more than what they are for."""
    generator = np.random.default_rng(0)
    task.measurements.attention["exact"] = {
        layer: LayerAttention(
            losses=generator.normal(size=task.backbone.channels[layer]).astype(np.float32), reliability=1.0, images=56
        )
        for layer in task.backbone.layers
    }


def _make_photos(folder: Path, sizes: Sizes) -> None:
    """JPEG files of smooth noise around a colour and a pattern of each class."""
    rng = np.random.default_rng(0)
    patterns = rng.normal(0, 25, (CLASSES, 8, 8, 3))
    side = sizes.image_size * 8 // 7
    for split, count in (("train", sizes.images), ("val", sizes.val_images), ("test", sizes.val_images)):
        for label in range(CLASSES):
            (folder / split / f"class-{label}").mkdir(parents=True)
        for i in range(count):
            label = i % CLASSES
            pixels = np.clip(128 + patterns[label] + rng.normal(0, 40, (8, 8, 3)), 0, 255).astype(np.uint8)
            image = Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC)
            image.save(folder / split / f"class-{label}" / f"{i:05}.jpg", quality=90)


def _make_weights(file: Path, sizes: Sizes) -> None:
    """Random weights, with the running statistics of the batch norms that belong to them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build_unfilled(sizes.model).train()
        for module in model.modules():
            if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
                module.reset_parameters()
            elif isinstance(module, torch.nn.BatchNorm2d):
                torch.nn.init.uniform_(module.weight, 0.5, 1.0)
                torch.nn.init.normal_(module.bias, std=0.1)
                module.reset_running_stats()
                module.momentum = None  # the mean over all batches
        with torch.no_grad():
            for _ in range(2):
                model(torch.randn(16, 3, sizes.image_size, sizes.image_size))
    partial = file.with_suffix(".partial")
    safetensors.torch.save_file(model.state_dict(), partial)
    partial.rename(file)
