"""What a search costs beside its trials, and whether its processes grow.

    python benchmarks/overhead.py [--quick] [--json FILE]

Studies of the demo's digits on two slots with Optuna, ASHA, tables and checkpoints: 32 trials of about ten seconds, and
300 of one to two. Overhead is (slots × (end of the last trial − start of the first) − Σ (seconds + eval_seconds)) /
Σ (…), idle slots at the end apart; start-up is from the call to the first trial, attention from the cache. Growth is of
the resident memory of driver and workers, the last fifth of the study against the second.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

import psutil
import ray
import torch

import delta_tune
from delta_tune.background import run_every
from delta_tune.cluster.connection import ray_cluster
from delta_tune.results.study_record import StudyRecord


class Memory:
    """Resident memory of this process and of the trials' processes."""

    def __init__(self) -> None:
        self.driver: list[float] = []
        self.workers: list[float] = []
        self._me = psutil.Process()

    def sample(self) -> None:
        """Look at all processes once."""
        self.driver.append(self._me.memory_info().rss / 2**20)
        largest = 0.0
        for process in self._me.children(recursive=True):
            try:
                if "ray::ImplicitFunc" in " ".join(process.cmdline()):
                    largest = max(largest, (process.memory_info().rss - process.memory_info().shared) / 2**20)
            except psutil.NoSuchProcess:
                continue
        if largest:
            self.workers.append(largest)


def growth(samples: list[float]) -> tuple[float, float]:
    """Medians of the second and of the last fifth."""
    fifth = max(1, len(samples) // 5)
    return statistics.median(samples[fifth : 2 * fifth] or samples), statistics.median(samples[-fifth:])


def study(what: str, out: str, **settings: Any) -> dict[str, Any]:
    memory = Memory()
    with run_every(1, memory.sample):
        result = delta_tune.tune(data="demo", out=out, name=what.replace(" ", "-"), verbose=0, **settings)
    record = StudyRecord.read(result.path)
    use = record.time_use
    assert use is not None
    trials = result.trials.num_rows
    columns = [result.trials[name].to_pylist() for name in ("train_seconds", "eval_seconds")]
    lengths = [training + validation for training, validation in zip(*columns, strict=True)]
    driver, worker = growth(memory.driver), growth(memory.workers)
    shares = {name: 100 * getattr(use, name) / use.total for name in ("inside", "between", "tail")}
    print(
        f"{what:24s}{trials:5d} trials of {statistics.median(lengths):5.1f} s  overhead {100 * use.overhead:5.1f} %  "
        f"(of the slots' time inside trials {shares['inside']:.1f} %, between them {shares['between']:.1f} %, "
        f"idle at the end {shares['tail']:.1f} %)",
        f"{'':24s}ready after {record.ready_seconds:.1f} s, median start {statistics.median(starts(result)):.2f} s",
        f"{'':24s}resident MiB in the second and the last fifth: driver {driver[0]:.0f}, {driver[1]:.0f}; "
        f"largest worker {worker[0]:.0f}, {worker[1]:.0f}",
        sep="\n",
        flush=True,
    )
    return {"what": what, "trials": trials, **dataclasses.asdict(use), "overhead": use.overhead} | {
        "ready_seconds": record.ready_seconds,
        "start_seconds": starts(result),
        "driver_mib": memory.driver,
        "worker_mib": memory.workers,
    }


def starts(result: delta_tune.StudyResult) -> list[float]:
    """From asking for a trial to its first batch, without the first of each slot, which starts a process."""
    return [seconds for seconds in result.trials["start_seconds"].to_pylist() if seconds is not None][2:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="8 and 40 trials: under 5 minutes on two cores")
    parser.add_argument("--json", type=Path, help="write the same figures here")
    arguments = parser.parse_args()
    print(f"torch {torch.__version__}, ray {ray.__version__}, load {os.getloadavg()[0]:.1f}")
    long, short = (8, 40) if arguments.quick else (32, 300)
    rows = []
    with tempfile.TemporaryDirectory() as out:
        for name, per_class in (("warm-long", 10), ("warm-short", 4)):  # attention is in the cache afterwards
            once = {"num_trials": 2, "max_epochs": 1, "grace_period": 1, "train_per_class": per_class}
            delta_tune.tune(data="demo", out=out, name=name, verbose=0, **once)
        rows.append(study("trials of ten seconds", out, num_trials=long, max_epochs=4, grace_period=2))
        with ray_cluster("local"):
            short_trials = {"num_trials": short, "max_epochs": 1, "grace_period": 1, "train_per_class": 4}
            rows.append(study("trials of a second", out, **short_trials))
    if arguments.json:
        figures = {"torch": torch.__version__, "ray": ray.__version__, "quick": arguments.quick}
        arguments.json.write_text(json.dumps(figures | {"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
