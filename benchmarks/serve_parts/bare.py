"""What the machine can do without a server: decode and compute in one process."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from delta_tune.data.images import read_square
from delta_tune.serving.model import open_model

BATCH = 8


def bare_rates(file: Path, photos: list[bytes], threads: int, seconds: float) -> dict[str, float]:
    """Images a second: of the faster bare loop, with its CPU time; of each; of onnxruntime alone on decoded squares."""
    batch_of, whole = open_model(file, threads), open_model(file, 1)
    preprocessing = whole.preprocessing
    order = itertools.cycle(range(len(photos)))
    squares = np.stack([read_square(photo, preprocessing) for photo in photos[:BATCH]])
    with ThreadPoolExecutor(threads) as pool:

        def batches() -> int:
            chosen = [photos[next(order)] for _ in range(BATCH)]
            batch_of.probabilities(np.stack(list(pool.map(lambda photo: read_square(photo, preprocessing), chosen))))
            return BATCH

        def some(chosen: list[bytes]) -> None:
            whole.probabilities(np.stack([read_square(photo, preprocessing) for photo in chosen]))

        def shares() -> int:
            chosen = [[photos[next(order)] for _ in range(BATCH)] for _ in range(4 * threads)]
            list(pool.map(some, chosen))
            return sum(map(len, chosen))

        def run() -> int:
            batch_of.probabilities(squares)
            return BATCH

        found = {name: _speed(work, seconds) for name, work in (("batches", batches), ("shares", shares), ("run", run))}
    best = max((found["batches"], found["shares"]))
    return {
        "loop_rate": best[0],
        "loop_cpu_ms": best[1],
        "run_rate": found["run"][0],
        "loop_batches_rate": found["batches"][0],
        "loop_shares_rate": found["shares"][0],
    }


def _speed(work: Callable[[], int], seconds: float) -> tuple[float, float]:
    """Images a second, and milliseconds of CPU time an image."""
    work()
    start, used, done = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - start < seconds:
        done += work()
    return done / (time.perf_counter() - start), 1000 * (time.process_time() - used) / done
