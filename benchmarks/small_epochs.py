"""What a trial of short epochs does beside its forward and backward passes.

    python benchmarks/small_epochs.py [--quick] [--json FILE]

timm's smallest residual network on a few random images, so that an epoch takes about 50 ms on one thread: the pace of a
small set on a GPU. In turns, so that a busy machine slows all alike: a trial of plain L2 with its checkpoints on disk,
and a bare loop of the same batches, augmentation, network and optimizer, which scores each epoch but saves, reports and
remembers nothing. "Outside" is the share of a trial's time that is in neither a forward nor a backward pass; "ratio" is
the trial's time to the bare loop's. Asked are at most 25 % and 2. With PYTHONPATH at another checkout, such as a
`git worktree`, the program measures that version.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import safetensors.torch
import timm
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

import delta_tune
from delta_tune.config import TrialConfig
from delta_tune.data.augmentation import augment, center_crop
from delta_tune.data.batches import shuffled_batches
from delta_tune.labels.one_label_metrics import classification_metrics
from delta_tune.models.backbones import build_target
from delta_tune.training import trial
from delta_tune.training.task import Task, prepare
from delta_tune.training.trial import run_trial

NET, IMAGE_SIZE, TRAIN, VAL, BATCH = "test_resnet", 64, 16, 8, 16
ASKED = {"outside": 0.25, "ratio": 2.0}


def small_task(folder: Path) -> Task:
    """Three classes of random images; the network's weights are random too."""
    rng = np.random.default_rng(0)
    for split, count in (("train", TRAIN), ("val", VAL)):
        for name in ("blue", "green", "red"):
            (folder / "images" / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 256, (IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / "images" / split / name / f"{i}.png")
    torch.manual_seed(0)
    safetensors.torch.save_file(timm.create_model(NET, pretrained=False).state_dict(), folder / "net.safetensors")
    return prepare(folder / "images", f"timm:{NET}", str(folder / "net.safetensors"), image_size=IMAGE_SIZE)


class Passes:
    """Seconds in forward passes of the trained network and in backward passes."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def timed(self, function: Any) -> Any:
        """The function, its time counted."""

        def call(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            result = function(*args, **kwargs)
            self.seconds += time.perf_counter() - began
            return result

        return call

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Count while the block runs."""

        def build(*args: Any) -> nn.Module:
            model = build_target(*args)
            model.forward = self.timed(model.forward)  # type: ignore[method-assign]
            return model

        backward = mock.patch.object(torch.Tensor, "backward", self.timed(torch.Tensor.backward))
        with mock.patch.object(trial, "build_target", build), backward:
            yield


def of_a_trial(task: Task, config: TrialConfig) -> tuple[float, float]:
    """Seconds of a trial, and those in passes."""
    passes = Passes()
    with tempfile.TemporaryDirectory() as folder, passes.counted():
        began = time.perf_counter()
        run_trial(task, config, lambda row: None, checkpoint=Path(folder))
        return time.perf_counter() - began, passes.seconds


def of_a_bare_loop(task: Task, config: TrialConfig) -> float:
    """Seconds of what the trial computes, in plain torch."""
    began = time.perf_counter()
    train, val, preprocessing = task.dataset.train, task.dataset.val, task.backbone.preprocessing
    model = build_target(task.backbone, 3, torch.Generator().manual_seed(0)).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=config.lr, momentum=config.momentum, nesterov=True)
    for epoch in range(config.max_epochs):
        generator = torch.Generator().manual_seed(epoch)
        model.train()
        for indices in shuffled_batches(len(train), config.batch_size, generator):
            images = torch.from_numpy(train.images.batch(indices))
            inputs = augment(images, config.augmentation, preprocessing, generator)
            loss = F.cross_entropy(model(inputs), torch.from_numpy(train.labels[indices]))
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        model.eval()
        with torch.inference_mode():
            images = torch.from_numpy(val.images.batch(np.arange(len(val))))
            classification_metrics(model(center_crop(images, preprocessing)), torch.from_numpy(np.array(val.labels)))
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="3 turns of 40 epochs, not 7 of 200: half a minute")
    parser.add_argument("--json", type=Path, help="write the same figures here")
    arguments = parser.parse_args()
    turns, epochs = (3, 40) if arguments.quick else (7, 200)
    torch.set_num_threads(1)
    config = TrialConfig(regularizer="l2", batch_norm="train", batch_size=BATCH, max_epochs=epochs, lr=1e-3)
    rows: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        task = small_task(Path(folder))
        of_a_trial(task, config), of_a_bare_loop(task, config)  # the first of everything is slow
        for _ in range(turns):
            (seconds, passes), bare = of_a_trial(task, config), of_a_bare_loop(task, config)
            rows.append({"epoch_ms": 1e3 * seconds / epochs, "outside": 1 - passes / seconds, "ratio": seconds / bare})
    print(f"{Path(delta_tune.__file__).parents[1]}, torch {torch.__version__}, load {os.getloadavg()[0]:.1f}")
    print(f"{'':10s}{'median':>8s}  {'least':>8s}  {'most':>8s}  {'asked':>8s}")
    for name in rows[0]:
        found = [row[name] for row in rows]
        asked = f"{ASKED[name]:8.2f}" if name in ASKED else f"{'':8s}"
        print(f"{name:10s}{statistics.median(found):8.2f}  {min(found):8.2f}  {max(found):8.2f}  {asked}")
    if arguments.json:
        arguments.json.write_text(json.dumps({"torch": torch.__version__, "epochs": epochs, "rows": rows}) + "\n")


if __name__ == "__main__":
    main()
