"""What an epoch costs: every method against L2, against the memory's bandwidth, and with checkpoints."""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from delta_tune.config import TrialConfig
from delta_tune.training.trial import run_trial
from gpu_parts.agreement import configs
from gpu_parts.bench import Bench, made_up_attention, median, ratios, shortened
from gpu_parts.record import Section


def prepared(bench: Bench) -> dict[str, TrialConfig]:
    """The configurations of all methods, with what they need measured."""
    every = configs(bench)
    made_up_attention(bench.task)
    bench.task.measurements.measure(every.values(), bench.device)
    return every


def methods(bench: Bench, section: Section) -> None:
    """The second epoch of every method (the first warms up), in turns, and how fast memory alone would let it be."""
    every = prepared(bench)
    bandwidth = _bandwidth(bench)
    section.notes += [
        f"A copy on the device moves {bandwidth / 1e9:.0f} GB/s, reading and writing counted.",
        "MB are those of every operator's operands and results, as if no cache kept any; the floor is MB by GB/s.",
    ]
    moved = {name: _per_image(bench, config) for name, config in every.items() if config.method.trains_backbone}
    times: dict[str, list[float]] = {}
    peaks: dict[str, float] = {}
    for _ in bench.turns():
        for name, config in every.items():
            if not bench.simulated:
                torch.cuda.reset_peak_memory_stats(bench.device)
            result = run_trial(bench.task, config, device=bench.device)
            times.setdefault(name, []).append(result.epochs[-1]["seconds"])
            if not bench.simulated:
                peaks[name] = torch.cuda.max_memory_allocated(bench.device) / 2**30
    images = len(bench.task.dataset.train)
    for name, against_l2 in ratios(times, "l2").items():
        seconds = median(times[name])
        section.row(
            method=name,
            epoch_s=seconds,
            images_per_s=images / seconds,
            times_l2=median(against_l2),
            least=min(against_l2),
            most=max(against_l2),
            turns=len(against_l2),
            peak_GiB=peaks.get(name),
        )
        if name in moved:
            bytes_, operators = moved[name]
            section.rows[-1] |= {
                "MB per image": bytes_ / 1e6,
                "operators per step": operators * every[name].batch_size,
                "images per s at the floor": bandwidth / bytes_,
                "share of it": images / seconds / (bandwidth / bytes_),
            }


def _bandwidth(bench: Bench) -> float:
    """Bytes a second that a large copy on the device reads and writes."""
    source = torch.zeros(bench.sizes.copied_bytes, dtype=torch.uint8, device=bench.device)
    target = torch.empty_like(source)
    times = [bench.seconds(lambda: [target.copy_(source) for _ in range(10)]) / 10 for _ in range(4)]
    return 2 * bench.sizes.copied_bytes / min(times)


class Traffic(TorchDispatchMode):
    """Counts operators, and the bytes of what each reads and writes, views aside."""

    def __init__(self) -> None:
        super().__init__()
        self.operators: Counter[str] = Counter()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not func.is_view and not func.name().startswith("aten::empty"):
            self.operators[func.name()] += 1
            self.bytes += sum(t.nbytes for t in tree_leaves((args, kwargs, out)) if isinstance(t, torch.Tensor))
        return out


def _per_image(bench: Bench, config: TrialConfig) -> tuple[float, float]:
    """Bytes and operators an image of training: a longer epoch less a shorter one, both with one validation image."""
    found = []
    for batches in (1, 2) if bench.simulated else (2, 4):
        traffic = Traffic()
        task = shortened(bench.task, batches, config.batch_size)
        # The replay of a CUDA graph is seen by nobody: without graphs the same is computed
        with traffic, mock.patch("torch.cuda.CUDAGraph", side_effect=RuntimeError("operators are counted")):
            run_trial(task, replace(config, max_epochs=1), device=bench.device)
        found.append((len(task.dataset.train), traffic.bytes, traffic.operators.total()))
    (few, less, fewer), (many, more, operators) = found
    return (more - less) / (many - few), (operators - fewer) / (many - few)


def checkpoints(bench: Bench, section: Section) -> None:
    """A trial's whole time with a folder for its checkpoints and without, and how much it writes."""
    epochs = 1 if bench.simulated else 4
    with tempfile.TemporaryDirectory() as folder:
        for name in ("l2", "delta"):
            config = replace(prepared(bench)[name], max_epochs=epochs)
            times: dict[str, list[float]] = {"without": [], "with": []}
            written = 0
            for turn in bench.turns():
                place = Path(folder) / f"{name}-{turn}"
                for what, checkpoint in (("without", None), ("with", place)):
                    start = time.perf_counter()
                    run_trial(bench.task, config, device=bench.device, checkpoint=checkpoint)
                    times[what].append(time.perf_counter() - start)
                written = sum(file.stat().st_size for file in place.iterdir())
            share = median([1 - without / full for without, full in zip(times["without"], times["with"], strict=True)])
            section.row(
                method=name,
                epochs=epochs,
                trial_s=median(times["with"]),
                without_s=median(times["without"]),
                share=share,
                on_disk_MiB=written / 2**20,
            )
