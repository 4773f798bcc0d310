"""Do the starting points of search_spaces/transformer.py beat a linear probe and SGD on a pretrained transformer?

    nice -n 19 python benchmarks/pretrained_transformer.py --weights FILE [--model NAME] [--image-size 98]
    python benchmarks/pretrained_transformer.py --show
    python benchmarks/pretrained_transformer.py --quick

FILE has the weights of `--model` under the names of timm, torchvision or transformers; this program fetches none. At 98
pixels a ViT with patches of 14 pixels has 7 × 7 of them, which a CPU trains in minutes.

The sets have 10 or 18 photos a class for training, as many for validation, and about 500 others for test. The arms are
fixed: the linear probe, the first two starting points of `search_spaces/delta.py` (SGD), and five of
`search_spaces/transformer.py` (AdamW) with one at the end of its range of learning rates, which was added when other
arms had run. All train five epochs, and all arms of a set and seed have the same photos.

The rules, fixed before any test accuracy was seen. Of each run the first epoch with the best accuracy on val is scored
on test, once; a run that diverges is not, and its pairs are left out. Arms are compared pairwise over the sets and
seeds that both have: the mean difference, and the 95 % t interval over these pairs. Seeds of one set share photos, so
the interval is too narrow, and no allowance is made for the number of comparisons. The order of the starting points
changes only if an arm is above the first one, with an interval above 0, a mean gain of at least 0.5 points, and no set
on which its mean is lower. The ranges change only if a learning rate at their end is best by the same measure.

A row is appended to `pretrained_transformer.jsonl` after each run, and what is there is not run again, so it may be
stopped at any time; the runs go seed by seed, and within a seed arm by arm. `--show` only prints the tables.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import timm
import torch
from anytime_parts.tasks import DIGITS, link_splits
from development_data import DATA, MISSING
from record_curves import photos_of
from rich.console import Console
from rich.table import Table
from scipy import stats

import delta_tune
from delta_tune.config import TrialConfig
from delta_tune.models.network_state import build_network
from delta_tune.report.predictions import split_logits
from delta_tune.training.task import Task
from delta_tune.training.trial import run_trial

MODEL, IMAGE_SIZE, EPOCHS = "timm:vit_small_patch14_dinov2.lvd142m", 98, 5
QUICK_MODEL, QUICK_IMAGE_SIZE = "timm:test_vit", 64
SETS = ("flowers17-10", "clothing-10", "trashnet96-18")
ADAMW: dict[str, Any] = {"regularizer": "l2", "optimizer": "adamw", "warmup_epochs": 0.5, "batch_size": 16}
DECAYED = ADAMW | {"weight_decay": 0.05}
ARMS: dict[str, dict[str, Any]] = {
    "linear probe": {"regularizer": "linear_probe"},
    "AdamW 5e-5, .75": DECAYED | {"lr": 5e-5, "layer_decay": 0.75},
    "SGD .001, batch 8": {"regularizer": "l2", "lr": 0.001, "batch_size": 8},
    "AdamW 1e-4, .75": DECAYED | {"lr": 1e-4, "layer_decay": 0.75},
    "AdamW 2e-5, 1": DECAYED | {"lr": 2e-5, "layer_decay": 1.0},
    "delta_uniform 1e-4, .75": ADAMW | {"regularizer": "delta_uniform", "lr": 1e-4, "layer_decay": 0.75, "alpha": 1.0},
    "AdamW 2e-4, .65": DECAYED | {"lr": 2e-4, "layer_decay": 0.65},
    "AdamW 3e-4, .75": DECAYED | {"lr": 3e-4, "layer_decay": 0.75},
    "SGD .002, batch 16": {"regularizer": "l2", "lr": 0.002, "batch_size": 16},
}
"""In the order in which they are run; the number after AdamW's learning rate is the layer decay."""
FILE = Path(__file__).with_name("pretrained_transformer.jsonl")

Key = tuple[str, int]
"""Set and seed."""


@functools.cache
def fingerprint(weights: Path) -> str:
    """Of the file."""
    with weights.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:12]


@functools.cache
def task_of(name: str, seed: int, model: str, weights: Path, image_size: int, work: Path) -> Task:
    """The photos of a set and the network, once per process."""
    folder = Path(tempfile.mkdtemp(dir=work))
    link_splits(photos_of(name, folder, seed), folder / "photos")
    return delta_tune.prepare(str(folder / "photos"), model, str(weights), image_size=image_size, seed=seed)


def measure(task: Task, settings: dict[str, Any], seed: int, epochs: int) -> dict[str, Any]:
    """Scores of a run: of all epochs on val, and on test those of the best one."""
    config = TrialConfig(**settings, max_epochs=epochs, seed=seed)
    task.measurements.measure([config])  # once for a study: its time does not count
    began = time.process_time()
    result = run_trial(task, config)
    seconds, test = time.process_time() - began, task.dataset.for_name("test")
    row: dict[str, Any] = {"settings": settings, "state": result.state, "seconds": seconds}
    row["images"] = {split: len(task.dataset.for_name(split)) for split in ("train", "val", "test")}
    for score in ("train_loss", "val_accuracy", "val_loss"):
        row[score] = [each[score] for each in result.epochs]
    if result.state == "completed":
        assert result.model_state is not None
        answers = split_logits(task, test, build_network(task.backbone, result.model_state))
        labels = torch.as_tensor(test.labels).long()
        row["best_epoch"] = result.best_epoch
        row["test_accuracy"] = 100 * float((answers.argmax(1) == labels).float().mean())
        row["test_loss"] = float(torch.nn.functional.cross_entropy(answers, labels))
    return row


def read(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def difference(first: dict[Key, float], second: dict[Key, float]) -> str:
    """First minus second over the keys of both: mean, 95 % t interval and number of pairs."""
    gains = [first[key] - second[key] for key in first if key in second]
    if not gains:
        return ""
    if len(gains) == 1:
        return f"{gains[0]:+.1f} (1)"
    half = stats.t.ppf(0.975, len(gains) - 1) * np.std(gains, ddof=1) / len(gains) ** 0.5
    return f"{np.mean(gains):+.1f} [{np.mean(gains) - half:+.1f}, {np.mean(gains) + half:+.1f}] ({len(gains)})"


def show(rows: Sequence[dict[str, Any]]) -> None:
    """Print the accuracy of each arm on each set, and the differences between all arms."""
    console = Console(width=220)
    for network in dict.fromkeys((row["model"], row["weights"], row["image_size"], row["epochs"]) for row in rows):
        own = [row for row in rows if (row["model"], row["weights"], row["image_size"], row["epochs"]) == network]
        sets = list(dict.fromkeys(row["set"] for row in own))
        arms = list(dict.fromkeys(row["arm"] for row in own))
        model, weights, image_size, epochs = network
        title = f"{model}, weights {weights}, {image_size} pixels, {epochs} epochs; accuracy on test (val) in percent"
        table = Table("arm", *sets, "best epochs", "train loss, last", "CPU s a run", title=title)
        scores: dict[str, dict[Key, float]] = {}
        for arm in arms:
            of_arm = [row for row in own if row["arm"] == arm and row["state"] == "completed"]
            scores[arm] = {(row["set"], row["seed"]): row["test_accuracy"] for row in of_arm}
            cells = []
            for name in sets:
                of_set = [row for row in of_arm if row["set"] == name]
                told = [f"{row['test_accuracy']:.1f} ({100 * max(row['val_accuracy']):.1f})" for row in of_set]
                cells.append(", ".join(told))
            diverged = sum(row["arm"] == arm for row in own) - len(of_arm)
            cells.append(
                " ".join(str(row["best_epoch"]) for row in of_arm) + (f", {diverged} diverged" * bool(diverged))
            )
            cells.append(f"{np.mean([row['train_loss'][-1] for row in of_arm]):.3f}" if of_arm else "")
            cells.append(f"{np.mean([row['seconds'] for row in of_arm]):.0f}" if of_arm else "")
            table.add_row(arm, *cells)
        console.print(table)
        pairs = Table("first", "second", "first − second, points", *sets)
        for i, first in enumerate(arms):
            for second in arms[i + 1 :]:
                both = [key for key in scores[first] if key in scores[second]]
                of_sets = []
                for name in sets:
                    gains = [scores[first][key] - scores[second][key] for key in both if key[0] == name]
                    of_sets.append(f"{np.mean(gains):+.1f}" if gains else "")
                pairs.add_row(first, second, difference(scores[first], scores[second]), *of_sets)
        console.print(pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--weights", type=Path, metavar="FILE", help="the network's pretrained weights")
    parser.add_argument("--image-size", type=int, default=IMAGE_SIZE, metavar="PIXELS")
    parser.add_argument(
        "--sets", nargs="+", default=SETS, help="NAME-IMAGES of a class, names as in anytime_parts/tasks.py"
    )
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=ARMS, metavar="ARM", help=", ".join(ARMS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--file", type=Path, default=FILE)
    parser.add_argument("--quick", action="store_true", help="digits, a small network of drawn weights, not kept")
    parser.add_argument("--show", action="store_true", help="run nothing")
    given = parser.parse_args()
    if given.show:
        show(read(given.file))
        return
    work = Path(tempfile.mkdtemp(prefix="pretrained-transformer-"))
    if given.quick:
        given.model, given.image_size, given.file = QUICK_MODEL, QUICK_IMAGE_SIZE, work / FILE.name
        given.sets, given.seeds, given.epochs = (DIGITS,), [0, 1], 1
        given.weights = work / "drawn.safetensors"
        torch.manual_seed(0)
        safetensors.torch.save_file(timm.create_model(QUICK_MODEL.partition(":")[2]).state_dict(), given.weights)
    if given.weights is None:
        parser.error("--weights FILE is needed")
    if not given.quick and not DATA.exists():
        parser.error(MISSING)
    torch.set_num_threads(1)
    base = {"model": given.model, "weights": fingerprint(given.weights), "image_size": given.image_size}
    base |= {"epochs": given.epochs}
    wanted = [
        {"set": name, "seed": seed, "arm": arm} for seed in given.seeds for arm in given.arms for name in given.sets
    ]
    known = [{name: row[name] for name in (*base, "set", "seed", "arm")} for row in read(given.file)]
    for run in wanted:
        if base | run in known:
            continue
        began = time.monotonic()
        task = task_of(run["set"], run["seed"], given.model, given.weights, given.image_size, work)
        row = base | run | measure(task, ARMS[run["arm"]], run["seed"], given.epochs)
        with given.file.open("a") as lines:
            lines.write(json.dumps(row) + "\n")
        told = f"{run['set']} {run['seed']} {run['arm']}: {row['state']}, test {row.get('test_accuracy', 0):.1f}"
        took = f"{row['seconds']:.0f} s of CPU in {time.monotonic() - began:.0f} s, load {os.getloadavg()[0]:.1f}"
        print(f"{time.strftime('%H:%M:%S')} {told}, {took}", flush=True)
    show(read(given.file))


if __name__ == "__main__":
    main()
