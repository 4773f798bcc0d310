"""What does combining runs gain? Seeds of one split, and runs on folds of train and validation; means and ensembles.

    python benchmarks/combination.py [--quick] [--sets SET …] [--splits 1] [--runs 5] [--json FILE] [--work DIR]

One configuration (plain L2 from the fitted head, MobileNetV2 at 97 px, 12 epochs, the weights after the last) is run
several times on sets of photos with a test split that no run sees. The arms, fixed before any test score was seen:

- `one split`: the study's train, other seeds. Validation is not trained on.
- `folds`: what a study's final runs do (but with a seed each), nine tenths of train and validation, each time without
  another tenth.

Of each arm: the mean accuracy of single runs, of all of them averaged (`mean`), of their probabilities averaged
(`ensemble`), and of both with a picture's mirror image averaged in (`flip`). Of the folds' mean also the expected
calibration error on test without and with the temperature fitted to what the runs predict of images held out.
The least gain that counts is 0.5 points on the mean over the sets. Runs are kept in DIR, and not done again.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from anytime_parts.tasks import BACKBONES, DIGITS, link_splits, splits_of
from development_data import DATA, MISSING
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from torch.nn import functional as F

import delta_tune
from delta_tune.config import TrialConfig
from delta_tune.data.dataset import Split
from delta_tune.data.resampling import hold_out_folds, merge_val_into_train
from delta_tune.inference.ensemble import Flipped
from delta_tune.models.network_state import build_network
from delta_tune.report.predictions import split_logits
from delta_tune.results.calibration import expected_calibration_error, fit_temperature
from delta_tune.study.final_model import mean_weights
from delta_tune.study.time_budget import FOLDS
from delta_tune.training.checkpoint import last_weights
from delta_tune.training.task import Task
from delta_tune.training.trial import run_trial

SETS = ("flowers17-10", "clothing-10", "trashnet96-10")
BACKBONE = BACKBONES["mobilenet_v2"]
CONFIG = TrialConfig(regularizer="l2", lr=0.001, max_epochs=12)
Logits = NDArray[np.float32]


def weights_of(task: Task, config: TrialConfig, file: Path) -> Path:
    """The file of a run's last weights; the run is made if there is none."""
    if not file.exists():
        with tempfile.TemporaryDirectory(dir=file.parent) as folder:
            state = run_trial(task, config, checkpoint=Path(folder)).state
            assert state == "completed", f"{file.name} {state}"
            last_weights(Path(folder)).replace(file)
    return file


def logits_of(task: Task, files: Sequence[Path], split: Split, *, flip: bool = False) -> Logits:
    """Of the mean of these networks."""
    network = build_network(task.backbone, mean_weights(files))
    found: Logits = split_logits(task, split, Flipped(network) if flip else network).numpy()
    return found


def probabilities(logits: Logits) -> NDArray[np.float32]:
    """Softmax of each row."""
    found: NDArray[np.float32] = torch.from_numpy(logits).softmax(1).numpy()
    return found


def accuracy(scores: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """Percent."""
    return 100 * float(np.mean(scores.argmax(1) == labels))


def loss(logits: Logits, split: Split) -> float:
    """Mean cross entropy."""
    return F.cross_entropy(torch.from_numpy(logits), torch.from_numpy(np.asarray(split.labels))).item()


def measure(name: str, seed: int, runs: int, epochs: int, work: Path) -> list[dict[str, Any]]:
    """A row for each arm on one split of a set."""
    folder = work / f"{name}-{seed}"
    if not (folder / "photos").exists():
        folder.mkdir(parents=True, exist_ok=True)
        link_splits(splits_of(name, seed, folder), folder / "photos")
    task = delta_tune.prepare(
        str(folder / "photos"), BACKBONE.model, BACKBONE.weights, image_size=BACKBONE.image_size, seed=seed
    )
    test = task.dataset.for_name("test")
    labels = np.asarray(test.labels)
    folds = [task.on(data) for data in hold_out_folds(task.dataset, FOLDS, seed)][:runs]
    rows = []
    for arm, tasks in (("one split", [task] * runs), ("folds", folds)):
        config = dataclasses.replace(CONFIG, max_epochs=epochs)
        files = [
            weights_of(each, dataclasses.replace(config, seed=100 * seed + n), folder / f"{arm[:3]}-{n}.safetensors")
            for n, each in enumerate(tasks)
        ]
        single = [logits_of(task, [file], test) for file in files]
        flipped = [logits_of(task, [file], test, flip=True) for file in files]
        mean, mean_flipped = logits_of(task, files, test), logits_of(task, files, test, flip=True)

        row = {
            "set": name,
            "split": seed,
            "arm": arm,
            "single": float(np.mean([accuracy(each, labels) for each in single])),
            "single, flip": float(np.mean([accuracy(each, labels) for each in flipped])),
            "mean": accuracy(mean, labels),
            "mean, flip": accuracy(mean_flipped, labels),
            "ensemble": accuracy(np.sum([probabilities(each) for each in single], axis=0), labels),
            "ensemble, flip": accuracy(np.sum([probabilities(each) for each in flipped], axis=0), labels),
        }
        if arm == "folds":
            every = merge_val_into_train(task.dataset).train
            losses = [loss(logits_of(task, [file], every), every) for file in files]
            row |= {"loss of runs": float(np.mean(losses)), "loss of mean": loss(logits_of(task, files, every), every)}
            held = [logits_of(each, [file], each.dataset.val) for each, file in zip(tasks, files, strict=True)]
            known = np.concatenate([each.dataset.val.labels for each in tasks])
            temperature = fit_temperature(np.concatenate(held), known)
            row |= {
                "held-out": 100 * float(np.mean(np.concatenate(held).argmax(1) == known)),
                "temperature": temperature,
                "calibration error": 100 * expected_calibration_error(probabilities(mean), labels),
                "calibrated": 100 * expected_calibration_error(probabilities(mean / np.float32(temperature)), labels),
            }
        rows.append(row)
    return rows


def show(rows: Sequence[dict[str, Any]]) -> None:
    """A table of all rows, and the mean gains over a single run of one split."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    table = Table(*names)
    for row in rows:
        cells = (row.get(name, "") for name in names)
        table.add_row(*(f"{cell:.2f}" if isinstance(cell, float) else str(cell) for cell in cells))
    console = Console(width=200)
    console.print(table)
    base = np.mean([row["single"] for row in rows if row["arm"] == "one split"])
    for arm in ("one split", "folds"):
        own = [row for row in rows if row["arm"] == arm]
        gains = {name: np.mean([row[name] for row in own]) - base for name in own[0] if name in names[3:9]}
        told = ", ".join(f"{name} {gain:+.1f}" for name, gain in gains.items())
        console.print(f"{arm}, mean gain over a single run of one split: {told}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="digits, two runs of two epochs")
    parser.add_argument("--sets", nargs="+", default=SETS, help="names as in anytime_parts/tasks.py")
    parser.add_argument("--splits", type=int, default=1, help="seeds of train and val")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--work", type=Path, help="where runs are kept (a temporary folder)")
    arguments = parser.parse_args()
    if not DATA.exists():
        parser.error(MISSING)
    sets, runs, epochs = arguments.sets, arguments.runs, CONFIG.max_epochs
    if arguments.quick:
        sets, runs, epochs = (DIGITS,), 2, 2
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        for name in sets:
            for seed in range(arguments.splits):
                rows += measure(name, seed, runs, epochs, arguments.work or Path(temporary))
                print(json.dumps(rows[-2:]), flush=True)
    show(rows)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
