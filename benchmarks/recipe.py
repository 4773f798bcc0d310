"""What does each ingredient of the recipe gain, for one run and for the mean of several?

    python benchmarks/recipe.py [--quick] [--sets SET …] [--arms ARM …] [--splits 0 …] [--backbone NAME] [--processes 1]

An arm is a base with some fields changed (`ARMS`). Each arm is run as a study's final runs are: on nine tenths of train
and validation, each time without another tenth; run n of every arm has the same photos and the same seed. The test
photos are about 500 that no run sees. Of each arm: the mean accuracy and cross entropy of the runs, of the mean of
their weights (`mean`), and of their mean probabilities (`ensemble`); those of `mean` at 32 pixels more than it was
trained with (`larger`); and the seconds of training.

`base` has half of the epochs of `long`, which was the first base, at twice the learning rate. `small` is the best arm
of the first round, around which the second went. Name another base with `--base`.

The rule, fixed before any test accuracy was seen: an ingredient comes into the default space if `mean` gains at least
0.5 points on the mean of the tasks and loses at least 1 point on none, in no more time than the base plus a tenth.

A row is appended to FILE after each arm, and what is there is not run again, so the program may be stopped at any time.
`--show` only prints the table. Two arms at once want two cores.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np
import torch
from anytime_parts.tasks import BACKBONES, DIGITS, link_splits
from combination import accuracy, logits_of, loss, probabilities, weights_of
from development_data import DATA, MISSING
from record_curves import photos_of
from rich.console import Console
from rich.table import Table

import delta_tune
from delta_tune.config import TrialConfig
from delta_tune.data.resampling import hold_out_folds
from delta_tune.study.time_budget import FOLDS
from delta_tune.training.task import Task

SETS = ("flowers17-10", "clothing-10", "trashnet96-10")
LARGER = 32
BASE: dict[str, Any] = {"regularizer": "l2", "lr": 0.002, "max_epochs": 6}
LONG = {"lr": 0.001, "max_epochs": 12}
DELTA = {"regularizer": "delta", "alpha": 1.0}
SMALL = {"batch_size": 8, "lr": 0.001}
ARMS: dict[str, dict[str, Any]] = {
    "base": {},
    "long": LONG,
    "long, average 2": LONG | {"average_epochs": 2},
    "long, smoothing .1": LONG | {"label_smoothing": 0.1},
    "3 epochs": {"max_epochs": 3},
    "3 epochs, lr .004": {"max_epochs": 3, "lr": 0.004},
    "co_tuning": {"regularizer": "co_tuning"},
    "bi_tuning .1": {"regularizer": "bi_tuning", "contrast": 0.1},
    "trivial": {"augmentation": "trivial"},
    "delta": DELTA,
    "adamw 1e-4": {"optimizer": "adamw", "lr": 1e-4},
    "adamw 3e-4": {"optimizer": "adamw", "lr": 3e-4},
    "layer decay .9": {"layer_decay": 0.9},
    "erasing .25": {"random_erasing": 0.25},
    "mixup .2": {"mixup": 0.2},
    "average 1": {"average_epochs": 1},
    "smoothing .1": {"label_smoothing": 0.1},
    "batch 16": {"batch_size": 16},
    "batch 8": {"batch_size": 8},
    "small": SMALL,
    "small, contrast .1": SMALL | {"regularizer": "bi_tuning", "contrast": 0.1},
    "small, delta": SMALL | DELTA,
    "small, adamw 1e-4": SMALL | {"optimizer": "adamw", "lr": 1e-4},
    "small, layer decay .9": SMALL | {"layer_decay": 0.9},
    "small, resized crop": SMALL | {"augmentation": "resized_crop_flip"},
    "small, mixup .2": SMALL | {"mixup": 0.2},
    "small, average 1": SMALL | {"average_epochs": 1},
    "small, trivial": SMALL | {"augmentation": "trivial"},
    "small, smoothing .1": SMALL | {"label_smoothing": 0.1},
    "small, erasing .25": SMALL | {"random_erasing": 0.25},
    "small, lr .0005": SMALL | {"lr": 0.0005},
    "small, co_tuning .3": SMALL | {"regularizer": "co_tuning", "co_tuning": 0.3},
    "small, early size .7": SMALL | {"early_size": 0.7},
    "small, 4 epochs": SMALL | {"max_epochs": 4},
    "batch 16, contrast .1": {"regularizer": "bi_tuning", "contrast": 0.1, "batch_size": 16},
    "batch 16, delta": DELTA | {"batch_size": 16},
    "resized crop": {"augmentation": "resized_crop_flip"},
    "early size .7": {"early_size": 0.7},
    "lr .001": {"lr": 0.001},
    "lr .004": {"lr": 0.004},
    "cutmix 1": {"cutmix": 1.0},
    "layer decay .75": {"layer_decay": 0.75},
    "co_tuning .3": {"regularizer": "co_tuning", "co_tuning": 0.3},
    "bi_tuning 1": {"regularizer": "bi_tuning"},
    "delta_uniform": {"regularizer": "delta_uniform", "alpha": 1.0},
    "l2_sp": {"regularizer": "l2_sp", "alpha": 0.1, "beta": 0.01},
    "weight decay 1e-3": {"weight_decay": 1e-3},
    "delta, co_tuning": DELTA | {"co_tuning": 1.0},
    "delta, contrast .1": DELTA | {"contrast": 0.1},
    "balanced": {"class_weights": "balanced"},
    "drop path .1": {"drop_path": 0.1},
}


@functools.cache
def tasks_of(name: str, split: int, backbone: str, work: Path) -> tuple[Task, Task]:
    """The task, and the same photos at a larger size, once per process."""
    folder = Path(tempfile.mkdtemp(dir=work))
    link_splits(photos_of(name, folder, split), folder / "photos")
    used = BACKBONES[backbone]
    sizes = used.image_size, used.image_size + LARGER
    task, larger = (
        delta_tune.prepare(str(folder / "photos"), used.model, used.weights, image_size=size, seed=split)
        for size in sizes
    )
    return dataclasses.replace(task, cache=None), larger


def measure(name: str, split: int, backbone: str, arm: str, runs: int, quick: bool, work: Path) -> dict[str, Any]:
    """The row of an arm on one split of a set."""
    torch.set_num_threads(1)
    task, larger = tasks_of(name, split, backbone, work)
    settings = BASE | ARMS[arm] | ({"max_epochs": 2} if quick else {})
    test, large = task.dataset.for_name("test"), larger.dataset.for_name("test")
    labels = np.asarray(test.labels)
    seconds, files = 0.0, []
    with tempfile.TemporaryDirectory(dir=work) as folder:
        for n, data in enumerate(hold_out_folds(task.dataset, FOLDS, split)[:runs]):
            fold = task.on(data)
            config = TrialConfig(**settings, seed=100 * split + n)
            fold.measurements.measure([config])  # once for a study: its time does not count
            began = time.process_time()
            files.append(weights_of(fold, config, Path(folder) / f"{n}.safetensors"))
            seconds += time.process_time() - began
        single = [logits_of(task, [file], test) for file in files]
        mean, mean_larger = logits_of(task, files, test), logits_of(larger, files, large)
    together = np.mean([probabilities(each) for each in single], axis=0)
    return {
        **{"set": name, "split": split, "backbone": backbone, "arm": arm, "runs": runs, "settings": settings},
        "single": float(np.mean([accuracy(each, labels) for each in single])),
        "mean": accuracy(mean, labels),
        "ensemble": accuracy(together, labels),
        "larger": accuracy(mean_larger, np.asarray(large.labels)),
        "single_loss": float(np.mean([loss(each, test) for each in single])),
        "mean_loss": loss(mean, test),
        "ensemble_loss": float(-np.log(together[np.arange(len(labels)), labels]).mean()),
        "seconds": seconds,
    }


def read(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


Key = tuple[str, str, int]
"""Network, set and split."""


def of_arm(rows: Sequence[dict[str, Any]], arm: str) -> dict[Key, dict[str, Any]]:
    """The arm's rows."""
    return {(row["backbone"], row["set"], row["split"]): row for row in rows if row["arm"] == arm}


def show(rows: Sequence[dict[str, Any]], base: str) -> None:
    """The gains over the base, in points: means over the splits of each task, and over the tasks."""
    tasks = sorted({(row["backbone"], row["set"]) for row in rows})
    table = Table(
        "arm", *(f"{backbone[:9]} {name}" for backbone, name in tasks), "single", "mean", "ensemble", "larger"
    )
    for column in ("±", "loss", "time", "verdict"):
        table.add_column(column)
    scores = ("single", "mean", "ensemble", "larger", "mean_loss")
    bases = of_arm(rows, base)
    for arm in dict.fromkeys(row["arm"] for row in rows):
        own = of_arm(rows, arm)
        both = [key for key in own if key in bases]
        if not both:
            continue
        found = {score: {key: own[key][score] - bases[key][score] for key in both} for score in scores}
        paired = found["mean"]
        of_task = [[gain for key, gain in paired.items() if key[:2] == task] for task in tasks]
        cells = [f"{np.mean(each):+.1f} ({len(each)})" if each else "" for each in of_task]
        means = {score: float(np.mean(list(each.values()))) for score, each in found.items()}
        error = float(np.std(list(paired.values()), ddof=1) / len(paired) ** 0.5) if len(paired) > 1 else float("nan")
        ratio = float(np.median([own[key]["seconds"] / bases[key]["seconds"] for key in both]))
        per_task = [float(np.mean(each)) for each in of_task if each]
        good = np.mean(per_task) >= 0.5 and min(per_task) > -1 and ratio <= 1.1
        told = [f"{means[score]:+.1f}" for score in scores[:4]] + [f"{error:.1f}", f"{means['mean_loss']:+.3f}"]
        table.add_row(arm, *cells, *told, f"× {ratio:.2f}", "in" if good else "")
    Console(width=220).print(table)
    for backbone, name in tasks:
        of_base = [row for key, row in bases.items() if key[:2] == (backbone, name)]
        if of_base:
            scored = (f"{score} {np.mean([row[score] for row in of_base]):.1f}" for score in scores[:4])
            print(f"{base}, {backbone}, {name}: {', '.join(scored)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="digits, two arms, two runs of two epochs")
    parser.add_argument("--sets", nargs="+", default=SETS, help="names as in anytime_parts/tasks.py")
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=ARMS, metavar="ARM", help=", ".join(ARMS))
    parser.add_argument("--base", default="base", choices=ARMS, metavar="ARM", help="what gains are measured against")
    parser.add_argument("--splits", type=int, nargs="+", default=[0], help="seeds of train and val")
    parser.add_argument("--backbone", default="mobilenet_v2", choices=BACKBONES)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--file", type=Path, default=Path(__file__).with_name("recipe.jsonl"))
    parser.add_argument("--show", action="store_true", help="run nothing")
    arguments = parser.parse_args()
    sets, arms, runs, file = arguments.sets, arguments.arms, arguments.runs, arguments.file
    if arguments.show:
        show(read(file), arguments.base)
        return
    if not DATA.exists():
        parser.error(MISSING)
    work = Path(tempfile.mkdtemp(prefix="recipe-"))
    if arguments.quick:
        sets, arms, runs, file = (DIGITS,), ["base", "average 2"], 2, work / "recipe.jsonl"
    known = {(row["set"], row["split"], row["backbone"], row["arm"]) for row in read(file)}
    left = [
        (name, split, arguments.backbone, arm)
        for split in arguments.splits
        for arm in arms
        for name in sets
        if (name, split, arguments.backbone, arm) not in known
    ]
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(arguments.processes, mp_context=spawn) as pool:
        jobs = [pool.submit(measure, *each, runs, arguments.quick, work) for each in left]
        for job in as_completed(jobs):
            row = job.result()
            with file.open("a") as lines:
                lines.write(json.dumps(row) + "\n")
            scores = ("single", "mean", "ensemble", "larger", "seconds")
            told = " ".join(f"{score} {row[score]:.1f}" for score in scores)
            where = f"{time.strftime('%H:%M:%S')} {row['set']} {row['split']}"
            print(f"{where} {row['arm']}: {told}, load {os.getloadavg()[0]:.1f}", flush=True)
    show(read(file), arguments.base)


if __name__ == "__main__":
    main()
