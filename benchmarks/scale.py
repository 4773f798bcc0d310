"""What many trials cost the driver: time and memory a trial as their number grows.

    python benchmarks/scale.py [--trials 3000] [--slots 64] [--minutes 5] [--epoch-seconds 2] [--quick] [--json FILE]

First the driver's path alone: searcher (TPE on `search_spaces/delta.py`), rungs, recorder, tables and progress are
driven by hand with simulated epochs. Times are the processor's, a trial, over the trials since the row before: a part
whose column grows, grows faster than linearly as a whole. `fastest` is trials a second of wall clock if the driver did
nothing else.

Then Ray Tune with the same driver and a trial that only reports, and beside it Tune alone as it comes (random search,
`reuse_actors`, FIFO), each for so many minutes from the end of its first trial, on logical slots: one process a slot.
Figures are of the last half of the trials, when all processes have started.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import ray
from ray import tune
from ray.tune.search import Searcher
from rich.console import Console

from delta_tune.background import run_every
from delta_tune.cluster.connection import ray_cluster
from delta_tune.cluster.resources import Resources
from delta_tune.config import TrialConfig
from delta_tune.console.progress import Progress
from delta_tune.results.columns import EPOCH_COLUMNS
from delta_tune.results.layout import BEST_FILE, CHECKPOINTS, trial_name
from delta_tune.results.tables import StudyTables
from delta_tune.search import runner
from delta_tune.search.asha import AshaScheduler
from delta_tune.search.messages import TrialAssignment
from delta_tune.search.optuna_search import OptunaSearcher
from delta_tune.search.recorder import Recorder
from delta_tune.search.session import Session
from delta_tune.spaces.space import Proposal, load_space
from delta_tune.spaces.validation import check_space

EPOCHS = 12
EPOCH_SECONDS = 2.0
"""Tune fills its slots only where a trial takes longer than a process to start: else the first ones do all the work."""
MARKS = (100, 300, 1000, 3000, 10000)
METRIC = "val_accuracy"
LOOK_S = 0.5
MANY = 100_000
"""More trials than Tune comes to in the minutes it has."""
SPACE = Path(__file__).parent.parent / "search_spaces" / "delta.py"


def mib() -> float:
    return psutil.Process().memory_info().rss / 2**20


def epoch_row(config: dict[str, Any], epoch: int) -> dict[str, Any]:
    """An epoch as a worker reports it: a score that rises to a level of its learning rate's."""
    level = 0.5 + 0.4 * math.exp(-((math.log10(config["lr"]) + 2.5) ** 2)) + 0.05 * random.random()
    row = dict.fromkeys(EPOCH_COLUMNS, 0.5) | {METRIC: level * (1 - 0.5**epoch), "seconds": 0.01, "eval_seconds": 0.0}
    return row | {"epoch": epoch, "node": "f" * 56, "began": time.time(), "ended": time.time()}


class Driver:
    """The driver's parts of a study, as `Study` puts them together."""

    def __init__(self, folder: Path, trials: int, *, epochs: int = EPOCHS, grace_period: int = 1) -> None:
        checked = check_space(load_space(SPACE, TrialConfig(max_epochs=epochs), {}), seed=0)
        self.out = (folder / "progress.txt").open("w")
        self.progress = Progress(console=Console(file=self.out, highlight=False, soft_wrap=True))
        self.tables = StudyTables(folder, METRIC)
        self.rungs = AshaScheduler(
            metric=METRIC, max_epochs=epochs, grace_period=grace_period, reduction_factor=4, num_val=1000
        )
        self.searcher = OptunaSearcher(
            checked,
            metric=METRIC,
            sampler="tpe",
            seed=0,
            max_epochs=epochs,
            num_trials=trials,
            on_proposal=self.proposed,
        )
        self.recorder = Recorder(self.tables, self.rungs, self.progress, trials)
        self.telling: Callable[[], Any] = lambda: Timer().of("record")

    def proposed(self, number: int, proposal: Proposal) -> None:
        with self.telling():
            self.tables.add(number, proposal.config, proposal.params, proposal.helpers)
            self.recorder.asked(number)


class Timer:
    """Processor seconds by part."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {"propose": 0.0, "learn": 0.0, "rungs": 0.0, "record": 0.0}

    @contextmanager
    def of(self, part: str) -> Iterator[None]:
        began = time.process_time()
        try:
            yield
        finally:
            self.seconds[part] += time.process_time() - began


def simulated(trials: int, slots: int) -> list[dict[str, float]]:
    """A study of simulated trials through the driver's own parts, as Tune would call them."""
    random.seed(0)
    with tempfile.TemporaryDirectory() as out:
        driver, timer = Driver(Path(out), trials), Timer()
        driver.telling = lambda: timer.of("record")
        rows: list[dict[str, float]] = []
        events = ended = started = 0
        live: dict[str, tuple[SimpleNamespace, int]] = {}
        wall, mark = time.perf_counter(), {"ended": 0, "events": 0, "wall": 0.0, **timer.seconds}
        print(
            f"{'trials':>7}  {'propose':>8}  {'learn':>8}  {'rungs':>8}  {'record':>8}  {'all':>8} ms a trial", end=""
        )
        print(f"  {'fastest':>8}  {'events/s':>8}  {'MiB':>6}")
        while True:
            while len(live) < slots:
                before = timer.seconds["record"]
                with timer.of("propose"):
                    config = driver.searcher.suggest(f"t{started}")
                timer.seconds["propose"] -= timer.seconds["record"] - before
                if config is None or config == Searcher.FINISHED:
                    break
                trial = SimpleNamespace(trial_id=f"t{started}", config=config, status="RUNNING", last_result={})
                folder = Path(out) / CHECKPOINTS / trial_name(TrialAssignment.from_config(config).number)
                folder.mkdir(parents=True)
                (folder / BEST_FILE).touch()
                driver.rungs.on_trial_add(None, trial)
                live[trial.trial_id] = trial, 0
                started += 1
            if not live:
                break
            name, (trial, epoch) = next(iter(live.items()))
            del live[name]
            trial.last_result = result = epoch_row(trial.config, epoch + 1)
            with timer.of("rungs"):
                stop = driver.rungs.on_trial_result(None, trial, result) == "STOP"
            events += 1
            with timer.of("record"):
                driver.recorder.on_trial_result(0, [], trial, result)
                driver.recorder.on_step_end(0, [])
            if not stop:
                with timer.of("learn"):
                    driver.searcher.on_trial_result(name, result)
                live[name] = trial, epoch + 1
                continue
            with timer.of("learn"):
                driver.rungs.on_trial_complete(None, trial, result)
                driver.searcher.on_trial_complete(name, result)
            with timer.of("record"):
                driver.recorder.on_trial_complete(0, [], trial)
            ended += 1
            if ended in MARKS or ended == trials:
                now = {"ended": ended, "events": events, "wall": time.perf_counter() - wall, **timer.seconds}
                since = {name: now[name] - mark[name] for name in now}
                parts = {name: 1e3 * since[name] / since["ended"] for name in timer.seconds}
                rows.append(
                    {"trials": ended, **parts, "all": sum(parts.values()), "mib": mib()}
                    | {
                        name: since[figure] / since["wall"]
                        for name, figure in (("fastest", "ended"), ("eps", "events"))
                    }
                )
                mark = now
                told = [f"{rows[-1][name]:8.2f}" for name in (*parts, "all")]
                print(f"{ended:7d}  {'  '.join(told)}{'':12}", end="")
                print(f"{rows[-1]['fastest']:8.1f}  {rows[-1]['eps']:8.1f}  {rows[-1]['mib']:6.0f}", flush=True)
        driver.recorder.stop_the_rest()
        sizes = {file.name: file.stat().st_size // 1024 for file in Path(out).glob("*.parquet")}
        print(f"tables, KiB: {sizes}; {events} epochs", flush=True)
        driver.out.close()
    return rows


class Watch:
    """Finished trials, processor time and memory of this process."""

    def __init__(self, finished: Callable[[], int]) -> None:
        self.samples: list[tuple[float, int, float, float]] = []
        self._finished = finished

    def sample(self) -> None:
        """Look at this process once."""
        self.samples.append((time.perf_counter(), self._finished(), time.process_time(), mib()))

    def left(self, minutes: float) -> Callable[[], float]:
        """Seconds until so many minutes after the first trial's end: a process takes its time to start."""
        first = math.inf

        def seconds() -> float:
            nonlocal first
            if self._finished():
                first = min(first, time.monotonic())
            return first + 60 * minutes - time.monotonic()

        return seconds

    def told(self, what: str) -> dict[str, float]:
        """Of the last half of the trials."""
        end = self.samples[-1]
        half = next(sample for sample in self.samples if sample[1] >= end[1] / 2)
        first = next(sample for sample in self.samples if sample[1] > 0)
        count = max(1, end[1] - half[1])
        figures = {
            "trials": end[1],
            "wall_ms": 1e3 * (end[0] - half[0]) / count,
            "driver_ms": 1e3 * (end[2] - half[2]) / count,
            "first_half_driver_ms": 1e3 * (half[2] - first[2]) / max(1, half[1] - first[1]),
            "kib": 1024 * (end[3] - half[3]) / count,
            "mib": end[3],
        }
        print(
            f"{what:14s}{end[1]:6d} trials, {figures['wall_ms']:.0f} ms of wall clock a trial; of the driver's "
            f"processor {figures['driver_ms']:.1f} ms ({figures['first_half_driver_ms']:.1f} in the first half) and "
            f"{figures['kib']:.0f} KiB; {figures['mib']:.0f} MiB at the end",
            flush=True,
        )
        return figures


class Deadline(tune.Stopper):  # type: ignore[misc]
    """Ends the run when no seconds are left."""

    def __init__(self, left: Callable[[], float]) -> None:
        self._left = left

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._left() <= 0

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its settings at the start of a run, and a thread looks on here."""
        return {}


def reports_only(config: dict[str, Any], settings: Any = None, *, epoch_seconds: float) -> None:
    """A trial without a network: what is left is Tune and the driver."""
    for epoch in range(1, EPOCHS + 1):
        time.sleep(epoch_seconds)
        tune.report(epoch_row(config, epoch))


def ours(slots: int, minutes: float, epoch_seconds: float) -> dict[str, float]:
    # Workers need not import torch for this
    runner.run_tune_trial = partial(reports_only, epoch_seconds=epoch_seconds)  # type: ignore
    runner.WorkerSettings = SimpleNamespace  # type: ignore
    with tempfile.TemporaryDirectory() as out:
        driver = Driver(Path(out), MANY)
        resources = Resources(cpus_per_trial=1, gpus_per_trial=0, slots=slots)
        session = Session(resources=resources, measuring=None, progress=driver.progress)  # type: ignore[arg-type]
        watch = Watch(lambda: len(driver.tables.trials) - len(driver.tables.open))
        with run_every(LOOK_S, watch.sample):
            runner.run_trials(
                [],
                driver.searcher,
                driver.rungs,
                driver.recorder,
                session,
                folder=Path(out),
                metric=METRIC,
                share_maps=False,
                left=watch.left(minutes),
            )
        driver.recorder.stop_the_rest()
        driver.out.close()
        states = [row["state"] for row in driver.tables.trials.values()]
        files = [file for file in (Path(out) / "ray").rglob("*") if file.is_file()]
        told = watch.told("ours")
        told |= {state: states.count(state) for state in set(states)}
        told |= {"epochs": sum(map(len, driver.tables.epochs.values())) / told["trials"]}
        told |= {"files": len(files) / told["trials"], "file_kib": sum(f.stat().st_size for f in files) / 1024}
        print(
            f"{'':14s}{told['epochs']:.1f} reports a trial (Tune alone: {EPOCHS}); Tune's folder: {told['files']:.1f} "
            f"files a trial, {told['file_kib']:.0f} KiB in all",
            flush=True,
        )
    return told


def bare(minutes: float, epoch_seconds: float) -> dict[str, float]:
    """Tune as it comes."""

    def trial(config: dict[str, Any]) -> None:
        reports_only(config, epoch_seconds=epoch_seconds)

    ended = 0

    class Count(tune.Callback):  # type: ignore[misc]
        def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            nonlocal ended
            ended += 1

    watch = Watch(lambda: ended)
    with tempfile.TemporaryDirectory() as out:
        tuner = tune.Tuner(
            tune.with_resources(trial, {"cpu": 1}),
            param_space={"lr": tune.loguniform(1e-4, 1e-2)},
            tune_config=tune.TuneConfig(num_samples=MANY, reuse_actors=True, metric=METRIC, mode="max"),
            run_config=tune.RunConfig(
                storage_path=out, verbose=0, callbacks=[Count()], stop=Deadline(watch.left(minutes))
            ),
        )
        with run_every(LOOK_S, watch.sample):
            tuner.fit()
    return watch.told("Tune alone")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=3000, help="simulated ones; 0 for none")
    parser.add_argument("--slots", type=int, default=64)
    parser.add_argument("--minutes", type=float, default=5.0, help="of each of the two runs on Ray; 0 for none")
    parser.add_argument("--epoch-seconds", type=float, default=EPOCH_SECONDS, help="an epoch's sleep on Ray")
    parser.add_argument("--quick", action="store_true", help="300 trials, and a minute on 8 slots")
    parser.add_argument("--json", type=Path, help="write the same figures here")
    arguments = parser.parse_args()
    trials, slots, minutes = arguments.trials, arguments.slots, arguments.minutes
    if arguments.quick:
        trials, slots, minutes = min(trials, 300), min(slots, 8), min(minutes, 1.0)
    print(
        f"ray {ray.__version__}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; {slots} slots, {EPOCHS} epochs"
    )
    figures: dict[str, Any] = {
        "ray": ray.__version__,
        "slots": slots,
        "simulated": simulated(trials, slots) if trials else [],
    }
    if minutes:
        # One machine starts all slots' processes: niced and given a minute each, as Ray has it, they never come
        patient = {"worker_niceness": 0, "worker_register_timeout_seconds": 900}
        ray.init(
            "local",
            num_cpus=slots,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
            _system_config=patient,
        )
        with ray_cluster("local"):
            figures["ours"] = ours(slots, minutes, arguments.epoch_seconds)
            figures["bare"] = bare(minutes, arguments.epoch_seconds)
        ray.shutdown()
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
