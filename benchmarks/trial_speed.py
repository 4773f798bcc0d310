"""What a DELTA epoch costs in plain L2 epochs, alone and in a study, and what the data costs.

    python benchmarks/trial_speed.py [--quick] [--json FILE] [--nets mobilenet_v2 tf_efficientnet_lite0]

One thread a trial, as studies on CPUs have it. First table: epochs of each method in this process, in turns, so that a
busy machine slows all alike; `delta, found` reads the source's maps that another trial left. Second: `seconds` of the
epochs of whole studies on two slots, eight trials of each method. Third: the share of an epoch that decoded images,
crops and flips take, and crops and flips against torchvision's transforms, image by image in a DataLoader.

Needs the photos and weights in the folder that DELTA_TUNE_TEST_DATA names; --quick takes random images and weights.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import ray
import torch
from development_data import DATA, MISSING, WEIGHTS
from PIL import Image
from torchvision.transforms import v2

import delta_tune
from delta_tune.cluster.connection import ray_cluster
from delta_tune.cluster.source_map_store import RaySourceMaps, shared_source_maps, source_map_budget
from delta_tune.config import TrialConfig
from delta_tune.data.augmentation import augment
from delta_tune.training.task import Task
from delta_tune.training.trial import run_trial

NETS = {
    "mobilenet_v2": ("mobilenet_v2", str(WEIGHTS / "mobilenet_v2.pth"), 129),
    "tf_efficientnet_lite0": ("timm:tf_efficientnet_lite0", "demo", 96),
}
TRIALS = 8


@dataclass(frozen=True, slots=True)
class Row:
    """Seconds of an epoch (median), its ratio to plain L2's and the smallest and largest ratio seen."""

    table: str
    net: str
    what: str
    seconds: float
    ratio: float
    low: float
    high: float

    @property
    def line(self) -> str:
        return (
            f"{self.net:22s}{self.what:24s}{self.seconds:9.2f} s {self.ratio:6.2f}  ({self.low:.2f} to {self.high:.2f})"
        )


def compared(table: str, net: str, times: dict[str, list[float]], to: str = "l2") -> list[Row]:
    """Ratios turn by turn: what slows one turn slows all in it."""
    rows = []
    for what, seconds in times.items():
        ratios = [own / base for own, base in zip(seconds, times[to], strict=True)]
        rows.append(
            Row(table, net, what, statistics.median(seconds), statistics.median(ratios), min(ratios), max(ratios))
        )
    return rows


def epochs_alone(net: str, task: Task, turns: int) -> list[Row]:
    """Each method's second epoch in this process; the first warms up."""
    torch.set_num_threads(1)
    base = {"max_epochs": 2, "lr": 0.001}
    times: dict[str, list[float]] = {}
    with ray_cluster("local"), shared_source_maps("benchmark", source_map_budget()):
        maps = RaySourceMaps("benchmark")
        run_trial(task, TrialConfig(**base), maps=maps)

        def epoch(regularizer: Any, store: RaySourceMaps | None = None) -> float:
            config = TrialConfig(**base, regularizer=regularizer)
            return float(run_trial(task, config, maps=store).epochs[-1]["seconds"])

        for _ in range(turns):
            for regularizer in ("l2", "l2_sp", "delta"):
                times.setdefault(regularizer, []).append(epoch(regularizer))
            times.setdefault("delta, found", []).append(epoch("delta", maps))
    return compared("alone", net, times)


def studies(net: str, settings: dict[str, Any], rounds: int) -> list[Row]:
    """Epochs of studies of eight trials, none of them pruned."""

    def space_of(method: str) -> Callable[[Any], dict[str, Any]]:
        def space(trial: Any) -> dict[str, Any]:
            trial.suggest_float("lr", 1e-4, 2e-3, log=True)
            return {"regularizer": method}

        return space

    times: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as out, ray_cluster("local"):
        for turn in range(rounds):
            for method in ("l2", "delta"):
                result = delta_tune.tune(
                    **settings,
                    space=space_of(method),
                    num_trials=TRIALS,
                    max_epochs=2,
                    grace_period=2,
                    out=out,
                    name=f"{method}-{turn}",
                    verbose=0,
                )
                seconds = pq.read_table(result.path / "epochs.parquet")["seconds"].to_pylist()
                times.setdefault(method, []).append(statistics.mean(seconds))
                while ray.available_resources().get("CPU", 0) < ray.cluster_resources()["CPU"]:
                    time.sleep(0.1)
    return compared("study", net, times)


def data_share(net: str, task: Task, epoch_seconds: float) -> list[Row]:
    """An epoch's images from the decoded pixels to the network's input, in seconds and as a share of an epoch."""
    torch.set_num_threads(1)
    train, preprocessing = task.dataset.train, task.backbone.preprocessing
    order = np.random.default_rng(0).permutation(len(train.labels))
    batches = [order[i : i + 32] for i in range(0, len(order), 32)]
    generator = torch.Generator().manual_seed(0)

    def ours(kind: Any) -> Callable[[], None]:
        def run() -> None:
            for indices in batches:
                augment(torch.from_numpy(train.images.batch(indices)), kind, preprocessing, generator)

        return run

    size = preprocessing.image_size
    crops = {
        "crop_flip": v2.RandomCrop(size),
        "resized_crop_flip": v2.RandomResizedCrop(size, scale=(0.2, 1), antialias=True),
    }
    images = [Image.fromarray(train.images.batch(np.array([i]))[0]) for i in range(len(order))]

    def theirs(kind: str) -> Callable[[], None]:
        steps = [crops[kind], v2.RandomHorizontalFlip(), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
        transform = v2.Compose([*steps, v2.Normalize(preprocessing.mean, preprocessing.std)])
        dataset = [(image, transform) for image in images]
        loader = torch.utils.data.DataLoader(
            dataset, batch_size=32, shuffle=True, collate_fn=lambda items: torch.stack([t(i) for i, t in items])
        )
        return lambda: [None for _ in loader] and None

    rows = []
    for kind in crops:
        times: dict[str, list[float]] = {"ours": [], "torchvision": []}
        for _ in range(5):
            for name, run in (("ours", ours(kind)), ("torchvision", theirs(kind))):
                start = time.perf_counter()
                run()
                times[name].append(time.perf_counter() - start)
        for row in compared("data", net, times, to="ours"):
            rows.append(Row(row.table, net, f"{kind}, {row.what}", row.seconds, row.ratio, row.low, row.high))
        share = statistics.median(times["ours"]) / epoch_seconds
        rows.append(Row("data", net, f"{kind}, of an epoch", statistics.median(times["ours"]), share, share, share))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer photos and turns: under 5 minutes on two cores")
    parser.add_argument("--json", type=Path, help="write the same figures here")
    parser.add_argument("--nets", nargs="+", choices=NETS, default=None)
    arguments = parser.parse_args()
    if not (DATA / "flowers17").exists():
        parser.error(MISSING)
    nets = arguments.nets or (["mobilenet_v2"] if arguments.quick else list(NETS))
    print(f"torch {torch.__version__}, ray {ray.__version__}, load {os.getloadavg()[0]:.1f}")
    rows: list[Row] = []
    for net in nets:
        model, weights, size = NETS[net]
        settings = {"data": str(DATA / "flowers17"), "model": model, "weights": weights, "image_size": size}
        settings |= {"train_per_class": 6 if arguments.quick else 20, "val_fraction": 0.05}
        task = delta_tune.prepare(**settings)
        task.measurements.measure([TrialConfig()])
        print(f"{net} at {size} px, {len(task.dataset.train.labels)} photos")
        alone = epochs_alone(net, task, 2 if arguments.quick else 4)
        print("epochs alone, against l2", *(row.line for row in alone), sep="\n", flush=True)
        rows += alone
        found = studies(net, settings, 1 if arguments.quick else 2)
        print(f"epochs in studies of {TRIALS} trials, against l2", *(row.line for row in found), sep="\n", flush=True)
        rows += found
        found = data_share(net, task, alone[0].seconds)
        print("data of an epoch", *(row.line for row in found), sep="\n", flush=True)
        rows += found
    if arguments.json:
        figures = {"torch": torch.__version__, "ray": ray.__version__, "quick": arguments.quick}
        arguments.json.write_text(json.dumps(figures | {"rows": [asdict(row) for row in rows]}, indent=1) + "\n")


if __name__ == "__main__":
    main()
