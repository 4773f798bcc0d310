"""Learning curves of configurations that all run to their end, for choosing how a study searches, names and combines.

    python benchmarks/record_curves.py [--quick] [--configurations 60] [--processes 1] [--weights DIR]

Three sets of photos, with 10 a class for training and 10 a class for validation; MobileNetV2 at 97 px, 12 epochs. The
configurations are those of the spaces as shipped: their starting points, then random ones, from
`search_spaces/delta.py` and `search_spaces/methods.py` in turn, each method of the latter as often as the others. They
follow from their number alone and are the same for every set. Numbers below 24 are of the spaces at commit d2adc45.
`curves/SET.parquet` has a row per epoch. A configuration's last row also has the logits of all validation photos and of
about 500 that neither training nor validation has, and the latter's with the weights of the best epoch by
`val_accuracy`, which is what a study kept before. The labels stand in the file's metadata.
A table is replaced after every run and what is in it is not run again, so the program may be stopped at any time. It
takes hours on two cores. `--weights DIR` keeps the weights after the last epoch there, for `combination.py`.
`curves.parquet` is an earlier recording of another network from random heads, by this program at commit 0d2ed44.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import multiprocessing
import os
import random
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import safetensors.torch
import torch
from anytime_parts.tasks import BACKBONES, DIGITS, Files, drawn, files_in, link_splits, splits_of
from development_data import DATA, MISSING

import delta_tune
from delta_tune.config import METRICS, TrialConfig
from delta_tune.filesystem.atomic import atomic_write
from delta_tune.models.network_state import build_network
from delta_tune.report.predictions import split_logits
from delta_tune.spaces.space import load_space
from delta_tune.spaces.validation import check_space, random_answers
from delta_tune.training.checkpoint import last_weights
from delta_tune.training.task import Task
from delta_tune.training.trial import run_trial

CURVES = Path(__file__).with_name("curves")
SETS = ("flowers17-10", "clothing-10", "trashnet96-10")
SPACES = ("delta.py", "methods.py")
EPOCHS, UNSEEN, SPLIT_SEED = 12, 510, 0
BACKBONE = BACKBONES["mobilenet_v2"]
SCORES = ("train_loss", *METRICS, "lr", "seconds", "eval_seconds")
LOGITS = ("val_logits", "test_logits", "best_test_logits")


@functools.cache
def proposals(count: int) -> tuple[tuple[str, dict[str, Any], TrialConfig], ...]:
    """Space, coordinates and configuration of the first `count` numbers."""
    base, folder, found = TrialConfig(max_epochs=EPOCHS), Path(__file__).parents[1] / "search_spaces", []
    spaces = {name: check_space(load_space(str(folder / name), base, {}), 0) for name in SPACES}
    for number in range(count):
        name, turn = SPACES[number % len(SPACES)], number // len(SPACES)
        checked = spaces[name]
        space = checked.space
        rng = np.random.default_rng([19, number])
        point = dict(checked.points[turn]) if turn < len(checked.points) else {}
        if not point and space.balance:
            point = {space.balance: checked.choices[turn % len(checked.choices)]}
        proposal = space.with_fixed(**point).propose(random_answers(rng))
        found.append((name, {**point, **proposal.params}, proposal.config))
    return tuple(found)


def photos_of(name: str, work: Path, seed: int = SPLIT_SEED) -> dict[str, Files]:
    """Train and val of a set, and as test what neither has, about `UNSEEN` photos in the classes' proportions."""
    splits = splits_of(name, seed, work)
    used = {path for split in ("train", "val") for paths in splits[split].values() for path in paths}
    folder = work / "digits" if name == DIGITS else DATA / name.partition("-")[0]
    parts = [path for path in (folder / "train", folder / "validation", folder / "test") if path.is_dir()] or [folder]
    rest: Files = {}
    for part in parts:
        for label, paths in files_in(part).items():
            rest.setdefault(label, []).extend(path for path in paths if path not in used)
    share = min(1.0, UNSEEN / sum(map(len, rest.values())))
    splits["test"], _ = drawn(rest, share, random.Random(seed))
    return splits


@functools.cache
def task_of(name: str) -> Task:
    """The task of a set, once per process."""
    work = Path(tempfile.mkdtemp(prefix=f"{name}-"))
    link_splits(photos_of(name, work), work / "photos")
    task = delta_tune.prepare(str(work / "photos"), BACKBONE.model, BACKBONE.weights, image_size=BACKBONE.image_size)
    return dataclasses.replace(task, cache=None)


def record(name: str, number: int, epochs: int, weights: Path | None) -> list[dict[str, Any]]:
    """The rows of one run; those of one that diverges end early."""
    torch.set_num_threads(1)
    space, params, config = proposals(number + 1)[number]
    config, task = dataclasses.replace(config, max_epochs=epochs), task_of(name)
    told = {"number": number, "space": space, "params": json.dumps(params)}
    told["config"] = json.dumps(config.record())
    with tempfile.TemporaryDirectory() as folder:
        result = run_trial(task, config, checkpoint=Path(folder))
        told["state"] = result.state
        rows = [told | {"epoch": row["epoch"], **{score: row.get(score) for score in SCORES}} for row in result.epochs]
        if result.state != "completed":
            return rows or [told | {"epoch": 0}]
        last, best = last_weights(Path(folder)), Path(folder) / f"best-{result.best_epoch}.safetensors"
        rows[-1] |= {
            "val_logits": logits(task, last, "val"),
            "test_logits": logits(task, last, "test"),
            "best_test_logits": logits(task, best, "test"),
        }
        if weights is not None:
            weights.mkdir(parents=True, exist_ok=True)
            last.replace(weights / f"{name}-{number}.safetensors")
    return rows


def logits(task: Task, file: Path, split: str) -> list[np.float16]:
    """Of a network with these weights, row by row."""
    network = build_network(task.backbone, safetensors.torch.load_file(file))
    return list(split_logits(task, task.dataset.for_name(split), network).numpy().astype(np.float16).ravel())


def read(file: Path) -> list[dict[str, Any]]:
    return pq.read_table(file).to_pylist() if file.exists() else []


def write(file: Path, rows: list[dict[str, Any]], labels: dict[str, Any]) -> None:
    kinds: dict[str, pa.DataType] = {"number": pa.int32(), "epoch": pa.int32()}
    kinds |= dict.fromkeys(("space", "params", "config", "state"), pa.string())
    kinds |= dict.fromkeys(SCORES, pa.float32()) | dict.fromkeys(LOGITS, pa.list_(pa.float16()))
    rows = sorted(rows, key=lambda row: (row["number"], row["epoch"]))
    table = pa.table({name: pa.array([row.get(name) for row in rows], type=kind) for name, kind in kinds.items()})
    file.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(file) as partial:
        pq.write_table(table.replace_schema_metadata({"labels": json.dumps(labels)}), partial, compression="zstd")


def labels_of(name: str) -> dict[str, Any]:
    """`classes`, and the label of each photo of `val` and `test` in the order of the logits."""
    dataset = task_of(name).dataset
    splits = {split: [int(label) for label in dataset.for_name(split).labels] for split in ("val", "test")}
    return {"classes": len(dataset.classes), **splits}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="digits, four configurations of one epoch, not kept")
    parser.add_argument("--configurations", type=int, default=60)
    parser.add_argument("--sets", nargs="+", default=SETS, help="names as in anytime_parts/tasks.py")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--weights", type=Path, help="folder for the weights after the last epoch")
    parser.add_argument("--out", type=Path, default=CURVES)
    arguments = parser.parse_args()
    if not DATA.exists():
        parser.error(MISSING)
    out, count, epochs, sets = arguments.out, arguments.configurations, EPOCHS, arguments.sets
    if arguments.quick:
        out, count, epochs, sets = Path(tempfile.mkdtemp()), 4, 1, (DIGITS,)
    rows = {name: read(out / f"{name}.parquet") for name in sets}
    known = {(name, row["number"]) for name in sets for row in rows[name]}
    left = [(name, number) for number in range(count) for name in sets if (name, number) not in known]
    print(f"torch {torch.__version__}: {len(known)} runs are recorded in {out}, {len(left)} are left", flush=True)
    labels = {name: labels_of(name) for name in {name for name, _ in left}}
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(arguments.processes, mp_context=spawn) as pool:
        runs = {pool.submit(record, name, number, epochs, arguments.weights): name for name, number in left}
        for run in as_completed(runs):
            name, found = runs[run], run.result()
            rows[name] += found
            write(out / f"{name}.parquet", rows[name], labels[name])
            last = found[-1]
            score = f"{100 * last['val_accuracy']:5.1f} %" if last.get("val_accuracy") is not None else "none"
            told = f"{last['number']:4d} {last['state']:10s} val {score} {last['params'][:90]}"
            print(f"{time.strftime('%H:%M:%S')} {name:14s}{told}, load {os.getloadavg()[0]:.1f}", flush=True)


if __name__ == "__main__":
    main()
