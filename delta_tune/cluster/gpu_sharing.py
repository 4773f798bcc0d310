"""How many trials share a GPU, from the memory and GPU time that one short trial takes."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray
import torch

from delta_tune.cluster.assigned_gpu import use_assigned_gpu
from delta_tune.cluster.failures import BrokenGpuError, ExternalFailure, device_faults_named, external_cause
from delta_tune.config import HEAVIEST, TrialConfig, UserError
from delta_tune.console.format import format_bytes
from delta_tune.training.speed import assume_relationship
from delta_tune.training.task import Task
from delta_tune.training.trial import Row, run_trial

CONTEXT_BYTES = 600 * 2**20
"""GPU memory of CUDA and its libraries per process, outside torch's allocator."""
SPARE = 1.1
"""Factor on the measured peak: other images, other kernels."""
STEPS = 16
"""Least number of steps that are measured."""
MEASURE_S = 600.0
"""For the measurement, with the wait for a GPU that is free."""
LOOK_S = 1.0
SAFE_LR = 1e-6
"""The measured trial must not diverge, and its time does not depend on it."""
SMALLEST_SHARE = 0.0001
"""Ray counts in units of it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Footprint:
    """What one trial needs of a GPU."""

    peak: int
    """Peak bytes held by torch's allocator."""
    total: int
    """The GPU's memory in bytes."""
    busy: float
    """Share of an epoch's wall clock in which the GPU computed, in (0, 1]."""
    images_per_second: float
    """0 if the trial ran out of memory."""

    @property
    def sentence(self) -> str:
        """A sentence for the study's plan."""
        if not self.images_per_second:
            return f"measured: the heaviest trial ran out of the {format_bytes(self.total)} of a GPU"
        return (
            f"measured: a trial needs {format_bytes(self.peak)} of {format_bytes(self.total)} and keeps the GPU busy "
            f"{100 * self.busy:.0f} % of the time ({self.images_per_second:.0f} images per second)"
        )


def trials_per_gpu(footprint: Footprint, cpus_per_gpu: float, cpus_per_trial: float) -> int:
    """How many trials fit, at least 1: limited by memory, GPU time (more would only queue), and CPUs that feed them."""
    by_memory = int(footprint.total / (SPARE * footprint.peak + CONTEXT_BYTES))
    by_time = -int(-1 // footprint.busy)
    return max(1, min(by_memory, by_time, int(cpus_per_gpu / cpus_per_trial)))


def gpu_share(trials: int) -> float:
    """The fraction of a GPU for each of `trials`, in Ray's units of 1/10,000, rounded down so that all fit."""
    return 10_000 // trials / 10_000


def whole_units(share: float) -> float:
    """A share rounded down to Ray's units, so that three thirds fit."""
    return int(share / SMALLEST_SHARE + 1e-6) / 10_000


def sharers(gpus: float) -> int:
    """How many trials with this share fit on a GPU."""
    return int(1 / gpus + 1e-9)


def cpus_of_sharer(cpus_per_gpu: float, gpus: float) -> float:
    """A trial's part of the CPUs beside its GPU: whole ones where there is one for each, and 1 where there is none."""
    part = cpus_per_gpu / sharers(gpus)
    return float(int(part)) if part >= 1 else whole_units(part) or 1.0


def doubled_share(gpus: float) -> float:
    """The next larger fraction, for a trial that ran out of memory: half as many share the GPU."""
    return gpu_share(max(1, round(1 / gpus) // 2))


def memory_fraction(gpus: float, total: int) -> float:
    """The fraction of `total` bytes that torch may allocate in a trial with `gpus` of a GPU, without its context."""
    return max(0.01, gpus - CONTEXT_BYTES / total)


def limit_memory(gpus: float) -> None:
    """Limit what torch may allocate in this process to its part of its GPU, if it has a part of one."""
    if 0 < gpus < 1 and torch.cuda.is_available():
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(memory_fraction(gpus, total))


def heaviest_config(configs: Sequence[TrialConfig]) -> TrialConfig:
    """The configuration that needs most memory, with both networks if any has both; nothing need be measured."""
    largest = max(configs, key=lambda config: (config.method.trains_backbone, config.batch_size))
    if any(config.uses_behavior for config in configs):
        largest = dataclasses.replace(largest, regularizer=HEAVIEST, behavior_scale="raw")
    if any(config.optimizer == "adamw" for config in configs):  # keeps two numbers a weight, SGD one
        largest = dataclasses.replace(largest, optimizer="adamw")
    return dataclasses.replace(
        largest,
        co_tuning=max(config.effective_co_tuning for config in configs),
        early_size=1.0,
        max_epochs=2,
        warmup_epochs=0,
        lr=SAFE_LR,
        head_start="random",
    )


def source_copies(configs: Sequence[TrialConfig]) -> int:
    """How many copies of the source a process may hold at a time: one for each choice of layers."""
    return len({config.layers for config in configs if config.uses_behavior})


def measure_footprint(task: Task, config: TrialConfig, copies: int = 1) -> Footprint:
    """Train a short epoch on this process's GPU, and measure as many more as `STEPS` steps need.

    Args:
        task: the data, of which the first images are used, and the source.
        config: of the trial.
        copies: of the source that trials of the study leave in their process.

    Raises:
        UserError: torch cannot use the GPU that Ray counts here, or it is none that can be measured.
    """
    if not torch.cuda.is_available():
        raise UserError(
            f"Ray counts GPUs that torch {torch.__version__} cannot measure there with CUDA; give --gpus-per-trial 1 "
            f"or a fraction of 1, or --gpus-per-trial 0 to train on CPUs."
        )
    device = torch.device("cuda")
    total = torch.cuda.get_device_properties(device).total_memory
    train, val = (split.first(STEPS * config.batch_size) for split in (task.dataset.train, task.dataset.val))
    # No cache: it would keep features of a few images under the key of all.
    short = dataclasses.replace(task, dataset=dataclasses.replace(task.dataset, train=train, val=val), cache=None)
    assume_relationship(short)
    epochs = math.ceil(STEPS / math.ceil(len(train) / config.batch_size))
    torch.cuda.reset_peak_memory_stats(device)
    profiler = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA], acc_events=True)
    start = wall = 0.0

    def report(row: Row) -> None:
        nonlocal start, wall
        if row["epoch"] == 1:
            torch.cuda.synchronize(device)
            profiler.start()
            start = time.perf_counter()
        elif row["epoch"] == 1 + epochs:
            torch.cuda.synchronize(device)
            wall = time.perf_counter() - start
            profiler.stop()

    try:
        result = run_trial(short, dataclasses.replace(config, max_epochs=1 + epochs), report, device=device)
    except torch.OutOfMemoryError:  # trials may be smaller than the heaviest, and have the GPU to themselves
        return Footprint(peak=total, total=total, busy=1.0, images_per_second=0.0)
    computed = sum(event.self_device_time_total for event in profiler.key_averages()) / 1e6
    source = sum(array.nbytes for array in task.backbone.state.values())
    return Footprint(
        peak=torch.cuda.max_memory_reserved(device) + max(0, copies - 1) * source,
        total=total,
        # A driver that lets nobody profile reports no time: then the GPU is not shared.
        busy=min(1.0, max(0.01, computed / wall)) if computed else 1.0,
        images_per_second=epochs * len(train) / sum(row["seconds"] for row in result.epochs[1:]),
    )


def measure_footprint_on_cluster(task: Task, configs: Sequence[TrialConfig]) -> Footprint:
    """`measure_footprint` of the heaviest configuration, in a process of its own with a whole GPU of the cluster.

    Raises:
        UserError: as there, or the configuration finds too little memory, or breaks the GPU's context twice.
        ExternalFailure: no GPU was free for `MEASURE_S`.
    """
    again = {"max_retries": 1, "retry_exceptions": [BrokenGpuError]}
    remote: Any = ray.remote(num_gpus=1, max_calls=1, **again)(_measure)
    measured = remote.remote(task, heaviest_config(configs), source_copies(configs))
    deadline = time.monotonic() + MEASURE_S
    while not ray.wait([measured], timeout=LOOK_S)[0]:
        if time.monotonic() >= deadline:
            ray.cancel(measured, force=True)
            raise ExternalFailure(
                f"no GPU was free for {MEASURE_S / 60:g} minutes to measure a trial on; end what uses them, or give "
                f"--gpus-per-trial 1 or a fraction of 1"
            )
    try:
        footprint: Footprint = ray.get(measured)
    except ExternalFailure as error:
        raise UserError(f"--gpus-per-trial auto found no share: {external_cause(error)}.") from error
    return footprint


def _measure(task: Task, config: TrialConfig, copies: int) -> Footprint:
    with device_faults_named("measuring what a trial needs"):
        use_assigned_gpu()
        return measure_footprint(task, config, copies)
