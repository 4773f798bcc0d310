"""Does a study on twice as many nodes take half as long?

    python benchmarks/nodes.py [--quick] [--json FILE]

Studies with our driver (searcher, rungs that stop nothing, tables) on Ray clusters of 1, 2 and 4 nodes that are
processes of this machine, with two logical CPUs each. Trials sleep instead of training, so that the machine's own
cores, which all nodes share, are not what is measured. Wall time is from the first trial's start to the last one's end;
ideal is the trials' time divided by the slots.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ray
from ray import tune
from ray.cluster_utils import Cluster
from scale import METRIC, Driver, epoch_row

from delta_tune.cluster.resources import Resources
from delta_tune.search import runner
from delta_tune.search.session import Session

NODES = (1, 2, 4)
SLOTS_PER_NODE = 2
EPOCHS = 4


def sleeping(config: dict[str, Any], settings: Any, *, epoch_seconds: float) -> None:
    """A trial without a network."""
    began = time.time()
    for epoch in range(1, EPOCHS + 1):
        time.sleep(epoch_seconds)
        tune.report({**epoch_row(config, epoch), "began": began, "ended": time.time()})


def study(nodes: int, trials: int, epoch_seconds: float) -> dict[str, float]:
    """Wall seconds of a study."""
    args = {"num_cpus": SLOTS_PER_NODE, "object_store_memory": 150 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args={**args, "include_dashboard": False})
    try:
        for _ in range(nodes - 1):
            cluster.add_node(**args)
        cluster.wait_for_nodes()
        ray.init(cluster.address, namespace="delta_tune", log_to_driver=False, logging_level="ERROR")
        with tempfile.TemporaryDirectory() as out:
            driver = Driver(Path(out), trials, epochs=EPOCHS, grace_period=EPOCHS)
            slots = nodes * SLOTS_PER_NODE
            resources = Resources(cpus_per_trial=1, gpus_per_trial=0, slots=slots)
            session = Session(resources=resources, measuring=None, progress=driver.progress)  # type: ignore[arg-type]
            runner.run_trials(
                [], driver.searcher, driver.rungs, driver.recorder, session, folder=Path(out), metric=METRIC,
                share_maps=False,
            )  # fmt: skip
            rows = list(driver.tables.trials.values())
            driver.out.close()
    finally:
        ray.shutdown()
        cluster.shutdown()
    assert [row["state"] for row in rows] == ["completed"] * trials
    wall = max(row["ended"] for row in rows) - min(row["began"] for row in rows)
    return {"nodes": nodes, "slots": slots, "wall": wall, "ideal": trials * EPOCHS * epoch_seconds / slots}


def main() -> None:
    """Print a row for each number of nodes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=96)
    parser.add_argument("--epoch-seconds", type=float, default=1.0)
    parser.add_argument("--quick", action="store_true", help="32 trials")
    parser.add_argument("--json", type=Path, help="write the same figures here")
    arguments = parser.parse_args()
    trials = 32 if arguments.quick else arguments.trials
    runner.run_tune_trial = partial(sleeping, epoch_seconds=arguments.epoch_seconds)  # type: ignore
    runner.WorkerSettings = SimpleNamespace  # type: ignore
    print(f"ray {ray.__version__}, {os.cpu_count()} cores; {trials} trials of {EPOCHS * arguments.epoch_seconds:g} s")
    print(f"{'nodes':>5} {'slots':>5} {'wall s':>7} {'ideal s':>8} {'above ideal':>12} {'times one node':>15}")
    figures = []
    for nodes in NODES:
        found = study(nodes, trials, arguments.epoch_seconds)
        figures.append(found)
        above, faster = found["wall"] / found["ideal"] - 1, figures[0]["wall"] / found["wall"]
        print(
            f"{nodes:>5} {found['slots']:>5} {found['wall']:>7.1f} {found['ideal']:>8.1f} {100 * above:>10.0f} % "
            f"{faster:>15.2f}",
            flush=True,
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
