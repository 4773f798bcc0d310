"""Learning curves of configurations that all run to their end, for choosing how the search stops and samples.

    python benchmarks/record_curves.py [--quick] [--configurations 240] [--out benchmarks/curves.parquet]

flowers17 with 10 photos a class for training, EfficientNet-Lite0 at 96 px, 12 epochs. Half of the configurations are
DELTA's; a quarter each has a cosine, a step, a constant learning rate, and a constant one with averaged weights. After
each epoch 170 validation photos are scored, as a search would see them, and after each of the last three also 510 that
neither training nor search sees: a configuration's final score is the mean of these three.
Configurations follow from their number alone. The table is replaced after every trial and what is in it is not run
again, so the program may be stopped at any time. It takes hours on two cores.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import torch
from development_data import DATA, MISSING

import delta_tune
from delta_tune.cluster.connection import ray_cluster
from delta_tune.cluster.shared_objects import get_shared, put_shared
from delta_tune.config import TrialConfig
from delta_tune.filesystem.atomic import atomic_write
from delta_tune.spaces.space import Space, SpaceTrial
from delta_tune.spaces.validation import random_answers
from delta_tune.training.trial import run_trial

EPOCHS = 12
METHODS = ("delta", "l2", "delta", "l2_sp", "delta", "delta_uniform")
SCHEDULES = ("cosine", "step", "constant", "averaged")
COLUMNS = ("train_loss", "val_loss", "val_accuracy", "test_loss", "test_accuracy", "lr", "seconds", "eval_seconds")


def curves_space(trial: SpaceTrial) -> dict[str, Any]:
    """What is searched in the recorded study: `search_spaces/methods.py` without frozen features, and the schedule."""
    regularizer = trial.suggest_categorical("regularizer", ["delta", "delta_uniform", "l2_sp", "l2"])
    schedule = trial.suggest_categorical("_schedule", list(SCHEDULES))
    trial.suggest_float("lr", 1e-4, 1e-2, log=True)
    trial.suggest_categorical("batch_norm", ["frozen", "train"])
    trial.suggest_categorical("head_lr_multiplier", [1.0, 10.0])
    config: dict[str, Any] = {"schedule": "constant", "average_epochs": 1.0} if schedule == "averaged" else {}
    config = config or {"schedule": schedule}
    if regularizer == "l2":
        trial.suggest_float("weight_decay", 1e-5, 1e-2, log=True)
        return config
    trial.suggest_float("beta", 1e-4, 1e-1, log=True)
    if regularizer == "l2_sp":
        trial.suggest_float("alpha", 1e-3, 1.0, log=True)
        return config
    trial.suggest_float("alpha", 1e-2, 30, log=True)
    if regularizer == "delta":
        trial.suggest_float("attention_temperature", 0.5, 20, log=True)
    return config


def proposal(number: int) -> tuple[dict[str, Any], TrialConfig]:
    """Coordinates and configuration of trial `number`."""
    fixed = {"regularizer": METHODS[number % len(METHODS)]}
    fixed["_schedule"] = SCHEDULES[number // len(METHODS) % len(SCHEDULES)]
    base = TrialConfig(max_epochs=EPOCHS, head_start="random", max_grad_norm=None)
    space = Space(name="curves", function=curves_space, base=base, fixed=fixed)
    found = space.propose(random_answers(np.random.default_rng([7, number])))
    return {**fixed, **found.params}, found.config


def record(number: int, shelf: str, epochs: int) -> list[dict[str, Any]]:
    """The rows of one trial; those of one that diverges end early."""
    torch.set_num_threads(1)
    params, config = proposal(number)
    config = dataclasses.replace(config, max_epochs=epochs)
    result = run_trial(get_shared(shelf), config, also_score={"test": range(epochs - 2, epochs + 1)})
    told = {"number": number, "state": result.state, "params": json.dumps(params)}
    rows = [told | {"epoch": row["epoch"], **{name: row.get(name) for name in COLUMNS}} for row in result.epochs]
    return rows or [told | {"epoch": 0, **dict.fromkeys(COLUMNS)}]


def read(file: Path) -> list[dict[str, Any]]:
    return pq.read_table(file).to_pylist() if file.exists() else []


def write(file: Path, rows: list[dict[str, Any]]) -> None:
    kinds = {"number": pa.int32(), "epoch": pa.int32(), "state": pa.string(), "params": pa.string()}
    kinds |= dict.fromkeys(COLUMNS, pa.float32())
    rows = sorted(rows, key=lambda row: (row["number"], row["epoch"]))
    table = pa.table({name: pa.array([row[name] for row in rows], type=kind) for name, kind in kinds.items()})
    with atomic_write(file) as partial:
        pq.write_table(table, partial, compression="zstd")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two configurations of two epochs, to a temporary file")
    parser.add_argument("--configurations", type=int, default=240)
    parser.add_argument("--hours", type=float, default=float("inf"), help="begin no further trial after so many")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("curves.parquet"))
    arguments = parser.parse_args()
    if not (DATA / "flowers17").exists():
        parser.error(MISSING)
    out, count, epochs = arguments.out, arguments.configurations, EPOCHS
    if arguments.quick:
        out, count, epochs = Path(tempfile.mkdtemp()) / "curves.parquet", 2, 2
    rows = read(out)
    left = sorted(set(range(count)) - {row["number"] for row in rows})
    print(f"torch {torch.__version__}, {count - len(left)} of {count} configurations are recorded in {out}", flush=True)
    task = delta_tune.prepare(
        DATA / "flowers17" / "train",
        "timm:tf_efficientnet_lite0",
        "demo",
        image_size=96,
        val_fraction=0.15625,
        test_fraction=0.46875,
        train_per_class=10,
    )
    print(f"train {len(task.dataset.train)}, val {len(task.dataset.val)}, test {len(task.dataset.for_name('test'))}")
    task.measurements.measure([proposal(number)[1] for number in range(count)], say=print)
    until = time.monotonic() + 3600 * arguments.hours
    with ray_cluster("local") as cluster, put_shared(task, "curves"):
        task_of_ray: Any = ray.remote(num_cpus=1)(record)
        running: list[Any] = []
        while running or left:
            while left and len(running) < cluster.cpus and time.monotonic() < until:
                running.append(task_of_ray.remote(left.pop(0), "curves", epochs))
            if not running:
                break
            (done,), running = ray.wait(running)
            rows += (curve := ray.get(done))
            write(out, rows)
            last = curve[-1]
            print(f"{time.strftime('%H:%M:%S')} {last['number']:4d} {last['state']:10s}{last['params'][:90]}", end=" ")
            print(f"{100 * (last['test_accuracy'] or 0):5.1f} %, load {os.getloadavg()[0]:.1f}", flush=True)


if __name__ == "__main__":
    main()
