"""What the profiler sees in a step: kernels, launches, places where the host waits, and how busy the GPU is."""

from __future__ import annotations

import time
from collections import Counter

import torch

from delta_tune.config import TrialConfig
from delta_tune.training.trial import Row, run_trial
from gpu_parts.bench import Bench, shortened
from gpu_parts.epochs import prepared
from gpu_parts.record import Section

LAUNCHES = ("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx")
GRAPHS = ("cudaGraphLaunch",)
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpy")
COPIES = ("cudaMemcpyAsync",)


def waits_and_launches(bench: Bench, section: Section) -> None:
    """Steps of every method under the profiler; fails where the host waits for the GPU once a step or more.

    A step is what a longer epoch has more than a shorter one, so what an epoch does once does not count.
    """
    few, many = 2, 8  # the profiler takes seconds to read what it recorded
    for name, config in prepared(bench).items():
        if not config.method.trains_backbone:
            continue
        less, fewer_s, less_busy = _second_epoch(bench, config, few)
        counts, seconds, busy = _second_epoch(bench, config, many)
        counts.subtract(less)
        steps, seconds, busy = many - few, seconds - fewer_s, busy - less_busy
        waits = _total(counts, WAITS) / steps
        pageable = sum(count for event, count in counts.items() if "Pageable -> Device" in event) / steps
        section.row(
            method=name,
            kernels=counts["kernels"] / steps,
            launches=_total(counts, LAUNCHES) / steps,
            graph_launches=_total(counts, GRAPHS) / steps,
            copies=_total(counts, COPIES) / steps,
            pageable_copies=pageable,
            waits=waits,
            GPU_busy=busy / seconds,
            step_ms=1000 * seconds / steps,
        )
        section.check(waits < 1, f"{name}: the host waits {waits:.2f} times a step for the GPU")
        section.check(pageable < 1, f"{name}: {pageable:.2f} copies a step come from memory that is not pinned")


def _second_epoch(bench: Bench, config: TrialConfig, batches: int) -> tuple[Counter[str], float, float]:
    """How often each event of an epoch came, its wall clock, and the seconds that the GPU computed in it.

    All kernels count as "kernels".
    """
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    profiler = torch.profiler.profile(activities=activities, acc_events=True)
    start = wall = 0.0

    def report(row: Row) -> None:
        nonlocal start, wall
        bench.wait()
        if row["epoch"] == 1:
            profiler.start()
            start = time.perf_counter()
        else:
            wall = time.perf_counter() - start
            profiler.stop()

    run_trial(shortened(bench.task, batches, config.batch_size), config, report, device=bench.device)
    counts: Counter[str] = Counter()
    busy = 0.0
    for event in profiler.events():
        if event.is_user_annotation:
            continue
        on_gpu = event.device_type == torch.autograd.DeviceType.CUDA
        busy += event.self_device_time_total / 1e6 if on_gpu else 0.0
        counts["kernels" if on_gpu and not event.name.startswith(("Memcpy", "Memset")) else event.name] += 1
    return counts, wall, busy


def _total(counts: Counter[str], events: tuple[str, ...]) -> int:
    return sum(counts[event] for event in events)
