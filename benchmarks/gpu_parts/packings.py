"""Several trials that share the GPU, each in a process of its own: images a second of all together."""

from __future__ import annotations

import multiprocessing as mp
import os
import time
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from typing import Any

import torch

from delta_tune.config import TrialConfig
from delta_tune.training.task import prepare
from delta_tune.training.trial import Row, run_trial
from gpu_parts.bench import Bench
from gpu_parts.record import Section

START_S = 120
EPOCHS = 1_000
"""More than the time allows."""


def packings(bench: Bench, section: Section) -> None:
    """Trials that warm up, meet, and train side by side for a while; only images of that while count."""
    seconds = 0.2 if bench.simulated else min(15.0, max(5.0, (bench.ends - time.monotonic()) / 8))
    device = "cpu" if bench.simulated else str(bench.device)
    # A short epoch, because a trial reports at its end
    settings = bench.settings | {"train_per_class": 1 if bench.simulated else 64}
    config = bench.config("delta_uniform", behavior_scale="raw", max_epochs=EPOCHS, schedule="step", lr=1e-4)
    torch.cuda.empty_cache()
    alone = 0.0
    for sharers in bench.sizes.sharers:
        if sharers > (os.cpu_count() or 1):
            section.notes.append(f"{sharers} trials would have less than one CPU each.")
            break
        try:
            rates = _side_by_side(settings, config, device, sharers, seconds)
        except torch.OutOfMemoryError as error:
            section.notes.append(f"{sharers} trials do not fit into the GPU's memory ({error}).")
            break
        together = sum(rates)
        alone = alone or together
        section.row(
            trials=sharers,
            images_per_s=together,
            times_one_alone=together / alone,
            slowest_to_fastest=min(rates) / max(rates),
            seconds=seconds,
        )


def _side_by_side(
    settings: dict[str, Any], config: TrialConfig, device: str, sharers: int, seconds: float
) -> list[float]:
    """Images a second of each of `sharers` trials.

    Raises:
        torch.OutOfMemoryError: they do not fit.
        RuntimeError: one of them failed.
    """
    context = mp.get_context("spawn")
    barrier = context.Barrier(sharers)
    pipes = [context.Pipe(duplex=False) for _ in range(sharers)]
    processes = [
        context.Process(target=_train, args=(settings, config, device, seconds, barrier, pipe), daemon=True)
        for _, pipe in pipes
    ]
    for process in processes:
        process.start()
    for _, sender in pipes:
        sender.close()  # so that the end of its process is seen
    try:
        found = []
        for receiver, _ in pipes:
            if not receiver.poll(START_S + 2 * seconds):
                raise TimeoutError(f"{sharers} trials: none of them ends")
            found.append(receiver.recv())
    except EOFError as error:
        raise RuntimeError(f"{sharers} trials: one of their processes ended without a word") from error
    finally:
        for process in processes:
            process.terminate()
            process.join()
    errors = [each for each in found if isinstance(each, str)]
    if memory := [error for error in errors if error.startswith("OutOfMemoryError")]:
        raise torch.OutOfMemoryError(memory[0])
    if errors:
        raise RuntimeError(f"{sharers} trials: {'; '.join(sorted(set(errors)))}")
    return found


class _Over(Exception):
    """The time to train is over."""


def _train(
    settings: dict[str, Any], config: TrialConfig, device: str, seconds: float, barrier: Barrier, pipe: Connection
) -> None:
    """Train until `seconds` after the first epoch of all; send images a second, or what went wrong."""
    torch.set_num_threads(1)
    start, images, last = 0.0, 0, 0.0

    def report(row: Row) -> None:
        nonlocal start, images, last
        if row["epoch"] == 1:
            barrier.wait(START_S)
            start = time.perf_counter()
            return
        images, last = images + len(task.dataset.train), time.perf_counter()
        if last - start >= seconds:
            raise _Over

    try:
        task = prepare(**settings)
        run_trial(task, config, report, device=device)
    except _Over:
        pipe.send(images / (last - start))
    except Exception as error:  # of any kind: the process that waits has to know it
        barrier.abort()
        pipe.send(f"{type(error).__name__}: {error}")
    else:
        pipe.send("a trial ended early")
