"""Does any treatment of unequal classes help the rare ones, and at what cost in accuracy?

    python benchmarks/imbalance.py [--quick] [--sets SET …] [--arms ARM …] [--splits 0 1] [--show]

Each arm is one run (MobileNetV2 at 97 px, learning rate 0.001, batches of 8, 6 epochs, the weights after the last) on:

- `clothing-30`, `trashnet96-30`: 30 % of the photos of every class, a fifth of them for validation, so that the classes
  are as unequal as they are; all other photos are the test split (about 2,650 and 1,770).
- `flowers17-long`: 60 to 5 photos a class, falling exponentially in an order of the classes that the split draws, a
  fifth for validation; 20 others of every class are the test split.

Split n is drawn with seed n; all arms have the same photos, seed and start on it. `+ shift` has no runs of its own: it
is an arm's network with the shift of logits that `results/logit_shift.py` chooses on the validation split for macro F1,
none if its rule says so. `delta_uniform` arms have alpha 1.

The rule, fixed before any test score was seen: a field comes into the default space if macro F1 gains at least 0.5
points on the mean of the tasks under plain L2 and accuracy loses 1 point or more on none. Otherwise it stays a field.
The issue asks for one point of macro F1 on clothing.

A row is appended to `imbalance.jsonl` after each run and what is there is not run again, so the program may be stopped
at any time. One core; about a minute a run.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import os
import random
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from anytime_parts.tasks import BACKBONES, DIGITS, Files, drawn, files_in, link_splits, write_digits
from combination import weights_of
from development_data import DATA, MISSING
from rich.console import Console
from rich.table import Table

import delta_tune
from delta_tune.config import TrialConfig
from delta_tune.labels.one_label_metrics import classification_metrics
from delta_tune.models.network_state import build_network
from delta_tune.report.predictions import split_logits
from delta_tune.results.logit_shift import STRENGTHS, choose_shift
from delta_tune.study.final_model import mean_weights
from delta_tune.training.class_shares import log_shares
from delta_tune.training.task import Task

SETS = ("clothing-30", "flowers17-long", "trashnet96-30")
VAL_SHARE = 0.2
MOST, FEWEST, TEST_EACH = 60, 5, 20
BACKBONE = BACKBONES["mobilenet_v2"]
BASE: dict[str, Any] = {"regularizer": "l2", "lr": 0.001, "batch_size": 8, "max_epochs": 6}
DELTA = {"regularizer": "delta_uniform", "alpha": 1.0}
WEIGHTED, SAMPLED, ADJUSTED = {"class_weights": "balanced"}, {"sampling": "balanced"}, {"logit_adjustment": 1.0}
ARMS: dict[str, dict[str, Any]] = {
    "none": {},
    "class_weights": WEIGHTED,
    "sampling": SAMPLED,
    "adjustment 1": ADJUSTED,
    "adjustment .5": {"logit_adjustment": 0.5},
    "delta_uniform": DELTA,
    "delta_uniform, class_weights": DELTA | WEIGHTED,
    "delta_uniform, adjustment 1": DELTA | ADJUSTED,
    "class_weights, smoothing .1": WEIGHTED | {"label_smoothing": 0.1},
    "smoothing .1": {"label_smoothing": 0.1},
}
SCORES = ("macro_f1", "balanced_accuracy", "accuracy")
SHIFT = " + shift"


def photos_of(name: str, seed: int, work: Path) -> dict[str, Files]:
    """The files of train, val and test of a task."""
    base, _, kind = name.partition("-")
    if base == "digits":
        write_digits(work / base)
    folder = work / base if base == "digits" else DATA / base
    parts = [path for path in (folder / "train", folder / "validation", folder / "test") if path.is_dir()] or [folder]
    whole: Files = {}
    for part in parts:
        for label, paths in files_in(part).items():
            whole.setdefault(label, []).extend(paths)
    rng = random.Random(seed)
    if kind == "long":
        order = rng.sample(sorted(whole), len(whole))
        fall = (FEWEST / MOST) ** (1 / (len(order) - 1))
        counts = {label: round(MOST * fall**place) for place, label in enumerate(order)}
    else:
        counts = {label: round(len(paths) * int(kind) / 100) for label, paths in whole.items()}
    found: dict[str, Files] = {"train": {}, "val": {}, "test": {}}
    for label, paths in whole.items():
        used, rest = drawn({label: paths}, counts[label], rng)
        val, train = drawn(used, max(1, round(VAL_SHARE * counts[label])), rng)
        test = drawn(rest, TEST_EACH, rng)[0] if kind == "long" else rest
        for split, files in (("train", train), ("val", val), ("test", test)):
            found[split] |= files
    return found


@functools.cache
def task_of(name: str, split: int, work: Path) -> Task:
    """The task, once per process."""
    folder = Path(tempfile.mkdtemp(dir=work))
    link_splits(photos_of(name, split, folder), folder / "photos")
    task = delta_tune.prepare(
        str(folder / "photos"), BACKBONE.model, BACKBONE.weights, image_size=BACKBONE.image_size, seed=split
    )
    return dataclasses.replace(task, cache=None)


def percent(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """The scores, in percent."""
    found = classification_metrics(torch.from_numpy(logits), torch.from_numpy(labels))
    return {score: 100 * found[score] for score in SCORES}


def measure(name: str, split: int, arm: str, epochs: int | None, work: Path) -> dict[str, Any]:
    """The row of an arm on a split of a set."""
    task = task_of(name, split, work)
    settings = BASE | ARMS[arm] | ({"max_epochs": epochs} if epochs else {})
    config = TrialConfig(**settings, seed=split)
    task.measurements.measure([config])  # once for a study: its time does not count
    began = time.process_time()
    with tempfile.TemporaryDirectory(dir=work) as folder:
        file = weights_of(task, config, Path(folder) / "run.safetensors")
        seconds = time.process_time() - began
        network = build_network(task.backbone, mean_weights([file]))
    val, test = (task.dataset.for_name(part) for part in ("val", "test"))
    logits = {part: split_logits(task, task.dataset.for_name(part), network).numpy() for part in ("val", "test")}
    known, labels = np.array(val.labels), np.array(test.labels)
    shares = log_shares(np.array(task.dataset.train.labels), len(task.dataset.classes)).numpy()
    shift = choose_shift(logits["val"], known, shares, "val_macro_f1")
    chosen = 0.0 if shift is None else shift.strength
    return {
        **{"set": name, "split": split, "arm": arm, "settings": settings, "seconds": seconds},
        "images": {"train": len(task.dataset.train), "val": len(val), "test": len(test)},
        "val": percent(logits["val"], known),
        "test": percent(logits["test"], labels),
        "shift": chosen,
        "shifted": percent(logits["test"] - chosen * shares, labels),
        "macro_f1_by_shift": {
            f"{tau:g}": percent(logits["test"] - tau * shares, labels)["macro_f1"] for tau in STRENGTHS
        },
    }


def read(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


Key = tuple[str, int]
"""Set and split."""


def scores_by_arm(rows: Sequence[dict[str, Any]]) -> dict[str, dict[Key, dict[str, float]]]:
    """The test scores of the arms, and of each with a shift of its logits."""
    found: dict[str, dict[Key, dict[str, float]]] = {}
    for arm in ARMS:
        own = [row for row in rows if row["arm"] == arm]
        if own:
            found[arm] = {(row["set"], row["split"]): row["test"] for row in own}
            found[arm + SHIFT] = {(row["set"], row["split"]): row["shifted"] for row in own}
    return found


def show(rows: Sequence[dict[str, Any]]) -> None:
    """The gains over the same method without a treatment, in points: means over the splits, and over the sets."""
    found = scores_by_arm(rows)
    sets = list(dict.fromkeys(row["set"] for row in rows))
    table = Table("arm", *(f"{name}: F1, balanced, accuracy" for name in sets), "F1", "± 1 s.e.", "accuracy", "rule")
    for arm, own in found.items():
        base = found.get("delta_uniform" if arm.startswith("delta_uniform") else "none", {})
        both = [key for key in own if key in base]
        if own is base or not both:
            continue
        gains = {score: {key: own[key][score] - base[key][score] for key in both} for score in SCORES}
        of_set = {name: [key for key in both if key[0] == name] for name in sets}
        cells = [
            f"{', '.join(f'{np.mean([gains[score][key] for key in keys]):+.1f}' for score in SCORES)} ({len(keys)})"
            if keys
            else ""
            for keys in of_set.values()
        ]
        means = {
            score: [float(np.mean([gains[score][key] for key in keys])) for keys in of_set.values() if keys]
            for score in SCORES
        }
        each = list(gains["macro_f1"].values())
        error = float(np.std(each, ddof=1) / len(each) ** 0.5) if len(each) > 1 else float("nan")
        good = np.mean(means["macro_f1"]) >= 0.5 and min(means["accuracy"]) > -1
        told = [f"{np.mean(means['macro_f1']):+.2f}", f"{error:.2f}", f"{np.mean(means['accuracy']):+.2f}"]
        table.add_row(arm, *cells, *told, "in" if good else "")
    Console(width=200).print(table)
    for arm in ("none", "delta_uniform"):
        for name in sets:
            keys = [key for key in found.get(arm, {}) if key[0] == name]
            if keys:
                told = ", ".join(f"{score} {np.mean([found[arm][key][score] for key in keys]):.1f}" for score in SCORES)
                print(f"{arm}, {name}: {told} ({len(keys)} splits)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="digits, two arms, one epoch")
    parser.add_argument("--sets", nargs="+", default=SETS, help="NAME-PERCENT or NAME-long")
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=ARMS, metavar="ARM", help=", ".join(ARMS))
    parser.add_argument("--splits", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--file", type=Path, default=Path(__file__).with_name("imbalance.jsonl"))
    parser.add_argument("--show", action="store_true", help="run nothing")
    arguments = parser.parse_args()
    if arguments.show:
        show(read(arguments.file))
        return
    if not DATA.exists():
        parser.error(MISSING)
    work = Path(tempfile.mkdtemp(prefix="imbalance-"))
    sets, arms, splits, file, epochs = arguments.sets, arguments.arms, arguments.splits, arguments.file, None
    if arguments.quick:
        sets, arms, splits, epochs = (f"{DIGITS.partition('-')[0]}-long",), ["none", "sampling"], [0], 1
        file = work / "imbalance.jsonl"
    torch.set_num_threads(1)
    known = {(row["set"], row["split"], row["arm"]) for row in read(file)}
    for split in splits:
        for arm in arms:
            for name in sets:
                if (name, split, arm) in known:
                    continue
                row = measure(name, split, arm, epochs, work)
                with file.open("a") as lines:
                    lines.write(json.dumps(row) + "\n")
                told = ", ".join(f"{score} {row['test'][score]:.1f}" for score in SCORES)
                shifted = f"shift {row['shift']:g}: {row['shifted']['macro_f1']:.1f}"
                where = f"{time.strftime('%H:%M:%S')} {name} {split} {arm}"
                print(f"{where}: {told}, {shifted}, {row['seconds']:.0f} s, load {os.getloadavg()[0]:.1f}", flush=True)
    show(read(file))


if __name__ == "__main__":
    main()
