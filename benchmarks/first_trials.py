"""Which plain configurations should a study try first? Head's start, learning rates, clipping, length, moving average.

    python benchmarks/first_trials.py [--seeds 2] [--out benchmarks-first-trials.jsonl] [--quick]

Every combination of the arms below as one L2 run with frozen batch norm on 10 photos a class of four development sets
(the folder that DELTA_TUNE_TEST_DATA names), MobileNetV2 at 96 px, seeds of head, order and augmentation; the splits
stay. Scored: accuracy on the photos of test after the last epoch, beside the linear probe on the frozen network; and on
the way, to see what a long schedule has in hand where a short one has ended.

The rule, fixed before the first result: an arm replaces another as default if its test accuracy is higher by at least
1 point in the mean over sets and seeds, all else paired, and higher on at least three of the four sets. Runs are
appended to the file as they end, and those in it are not run again.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from development_data import DATA, MISSING, WEIGHTS

from delta_tune import Task, TrialConfig, prepare, run_trial
from delta_tune.labels.one_label_metrics import classification_metrics
from delta_tune.models.network_state import rebuild
from delta_tune.report.predictions import split_logits
from delta_tune.training.workplace import ThisProcess

STARTS = ("random", "probe")
RATES = ((1e-4, 1.0), (1e-4, 10.0), (3e-4, 1.0), (3e-4, 10.0), (1e-3, 1.0), (1e-3, 10.0), (3e-3, 1.0))
"""lr and head_lr_multiplier."""
LENGTHS = ((6, 1.5), (12, 1.5), (12, 0.0))
"""Epochs and average_epochs."""
STEADY = ((1e-3, None), (2e-3, None), (1e-3, 5.0), (2e-3, 5.0), (1e-3, 10.0), (2e-3, 10.0), (4e-3, 10.0))
"""lr and max_grad_norm from the fitted head."""
ON_THE_WAY = (1, 2, 3, 4, 6, 8, 12, 16, 20)
"""Epochs that are scored as well."""
PROBE = {"regularizer": "linear_probe"}
PENALISED = (
    {"regularizer": "l2"},
    {"regularizer": "delta_uniform", "alpha": 0.3},
    {"regularizer": "delta_uniform", "alpha": 3.0},
)
PIXELS, PER_CLASS = 96, 10
SETS: dict[str, tuple[str, dict[str, float]]] = {
    "flowers17": ("flowers17", {}),
    "clothing": ("clothing", {}),
    "trashnet96": ("trashnet96", {"val_fraction": 0.1, "test_fraction": 0.3}),
    "ants_bees": ("ants_bees/train", {"val_fraction": 0.2, "test_fraction": 0.5}),
}


def arms() -> list[dict[str, Any]]:
    """The configurations, the shorter ones first."""
    found = [PROBE]
    for (epochs, average), (lr, norm) in itertools.product(((6, 1.5), (12, 1.5), (12, 0.0), (24, 0.0)), STEADY):
        found.append(
            {"regularizer": "l2", "max_epochs": epochs, "average_epochs": average}
            | {"lr": lr, "max_grad_norm": norm, "head_lr_multiplier": 1.0, "head_start": "probe"}
        )
    for method, (epochs, average), lr in itertools.product(
        PENALISED, ((6, 1.5), (12, 1.5), (12, 0.0), (24, 1.5)), (3e-4, 1e-3, 2e-3)
    ):
        found.append(
            {**method, "max_epochs": epochs, "average_epochs": average, "lr": lr}
            | {"max_grad_norm": None, "head_lr_multiplier": 1.0, "head_start": "probe"}
        )
    for (epochs, average), (lr, multiplier), start in itertools.product(LENGTHS, RATES, STARTS):
        found.append(
            {"regularizer": "l2", "max_epochs": epochs, "average_epochs": average}
            | {"lr": lr, "max_grad_norm": None, "head_lr_multiplier": multiplier, "head_start": start}
        )
    return found


def load(name: str) -> Task:
    """A development set with few photos for training; validation, which decides nothing here, is cut short."""
    folder, fractions = SETS[name]
    weights = str(WEIGHTS / "mobilenet_v2.pth")
    task = prepare(DATA / folder, "mobilenet_v2", weights, image_size=PIXELS, train_per_class=PER_CLASS, **fractions)
    return task.on(dataclasses.replace(task.dataset, val=task.dataset.val.first(8)))


def run(task: Task, arm: dict[str, Any], seed: int) -> dict[str, Any]:
    """One run: test accuracy and loss after its last epoch, accuracies on the way, and the seconds of its epochs."""
    config = TrialConfig(**arm, seed=seed)
    if config.method.trains_backbone:
        scored = [each for each in (*ON_THE_WAY, config.last_epoch) if each <= config.last_epoch]
        result = run_trial(task, config, also_score={"test": scored})
        row = result.epochs[-1] if result.state == "completed" else {}
        scores = {"test": row.get("test_accuracy"), "test_loss": row.get("test_loss")}
        scores["on_the_way"] = {
            each["epoch"]: each["test_accuracy"] for each in result.epochs if "test_accuracy" in each
        }
    else:
        result, test = run_trial(task, config), task.dataset.for_name("test")
        network = rebuild(
            task.backbone,
            {name: value.numpy() for name, value in (result.model_state or {}).items()},
            torch.device("cpu"),
        )
        logits = split_logits(task, test, network, ThisProcess())
        labels = torch.from_numpy(np.array(test.labels))
        found = classification_metrics(logits, labels)
        scores = {"test": found["accuracy"], "test_loss": found["loss"]}
    return {"state": result.state, **scores, "seconds": sum(row["seconds"] for row in result.epochs)}


def table(rows: list[dict[str, Any]]) -> None:
    """Print each arm's test accuracy by set, and what each choice gains with all else paired."""
    sets = list(SETS)
    cells: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        cells[json.dumps(row["arm"])][row["set"]].append(row["test"] or 0.0)
    print(f"{'test accuracy, mean over seeds':<88}" + "".join(f"{name:>12}" for name in sets) + f"{'mean':>8}")
    means = {}
    for arm, by_set in cells.items():
        scores = {name: 100 * statistics.mean(by_set[name]) for name in sets if name in by_set}
        means[arm] = scores
        text = ", ".join(f"{k} {v}" for k, v in json.loads(arm).items())
        print(f"{text:<88}" + "".join(f"{scores.get(n, float('nan')):>12.1f}" for n in sets), end="")
        print(f"{statistics.mean(scores.values()):>8.1f}")
    for name, choices in (("head_start", STARTS), ("max_epochs", (6, 12)), ("average_epochs", (0.0, 1.5))):
        for one, other in itertools.pairwise(choices):
            gains = defaultdict(list)
            for arm, scores in means.items():
                twin = json.dumps(json.loads(arm) | {name: other})
                if json.loads(arm).get(name) == one and twin in means:
                    for each in scores.keys() & means[twin].keys():
                        gains[each].append(means[twin][each] - scores[each])
            if gains:
                by_set = {each: statistics.mean(values) for each, values in gains.items()}
                listed = ", ".join(f"{each} {by_set[each]:+.1f}" for each in sets if each in by_set)
                print(f"{name} {one} → {other}: {statistics.mean(by_set.values()):+.1f} points ({listed})")


def main() -> None:
    """Run what is missing, then print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=2, help="(2)")
    parser.add_argument("--out", type=Path, default=Path("benchmarks-first-trials.jsonl"), help="(%(default)s)")
    parser.add_argument("--quick", action="store_true", help="one set, one seed, the six shortest arms")
    parser.add_argument("--threads", type=int, default=1, help="of torch (1)")
    options = parser.parse_args()
    if not DATA.exists():
        parser.error(MISSING)
    torch.set_num_threads(options.threads)
    done = [json.loads(line) for line in options.out.read_text().splitlines()] if options.out.exists() else []
    known = {(row["set"], json.dumps(row["arm"]), row["seed"]) for row in done}
    names, chosen, seeds = (list(SETS)[:1], arms()[:6], 1) if options.quick else (list(SETS), arms(), options.seeds)
    tasks: dict[str, Task] = {}
    for seed, arm, name in itertools.product(range(seeds), chosen, names):
        if (name, json.dumps(arm), seed) in known:
            continue
        if name not in tasks:
            tasks[name] = load(name)
        row = {"set": name, "arm": arm, "seed": seed} | run(tasks[name], arm, seed)
        done.append(row)
        with options.out.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)
    table(done)


if __name__ == "__main__":
    main()
