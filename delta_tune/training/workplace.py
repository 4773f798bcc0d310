"""Where measurements are computed: in this process, or wherever else a `Workplace` sends them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any, Protocol, TypeVar

import torch

from delta_tune.attention.measurement import ProbeJob, Prober, in_this_process
from delta_tune.data.batches import EVAL_BATCH_SIZE

T = TypeVar("T")

Say = Callable[[str], None]
PART_BATCHES = 4
"""Batches of a part of a split at least: a small split is not worth a second process on a CPU,"""
ACCELERATOR_PART_BATCHES = 16
"""nor this much on a GPU, which is done with it before another process has opened the GPU."""
PIECE_PARTS = 8
"""Parts of a piece: what an interrupt may lose. Not by the slots, for a later session may have others."""


class Workplace(Protocol):
    """Computes functions whose arguments and results are plain arrays."""

    @property
    def slots(self) -> int:
        """How many parts are computed side by side."""

    @property
    def accelerated(self) -> bool:
        """Whether parts are computed on GPUs."""

    def run(self, function: Callable[..., T], *args: Any) -> T:
        """`function(*args, device)`."""

    def map(self, function: Callable[..., T], parts: Iterable[Any], *args: Any) -> list[T]:
        """`function(*args, device, part)` of each part, in order."""

    def probing(self, job: ProbeJob, say: Say) -> AbstractContextManager[Prober]:
        """What computes losses of probe images while the block runs."""


class ThisProcess:
    """Computes all in this process."""

    slots = 1
    accelerated = False
    """With one slot nothing is cut into parts."""

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)

    def run(self, function: Callable[..., T], *args: Any) -> T:
        """`function(*args, device)`."""
        return function(*args, self.device)

    def map(self, function: Callable[..., T], parts: Iterable[Any], *args: Any) -> list[T]:
        """`function(*args, device, part)` of each part, in order."""
        return [function(*args, self.device, part) for part in parts]

    def probing(self, job: ProbeJob, say: Say) -> AbstractContextManager[Prober]:
        """What computes losses of probe images while the block runs."""
        return in_this_process(job, self.device, say)


def split_pieces(num_images: int) -> list[range]:
    """Pieces of a split's images, in order and in whole batches, each of which keeps slots busy for a while."""
    size = EVAL_BATCH_SIZE * PART_BATCHES * PIECE_PARTS
    return [range(start, min(start + size, num_images)) for start in range(0, num_images, size)]


def split_parts(num_images: int, workplace: Workplace) -> list[range]:
    """Parts of a split's images, one for each slot at most, in order: whole batches, so that sums are the same."""
    batches = -(-num_images // EVAL_BATCH_SIZE)
    least = ACCELERATOR_PART_BATCHES if workplace.accelerated else PART_BATCHES
    size = EVAL_BATCH_SIZE * max(least, -(-batches // workplace.slots))
    return [range(start, min(start + size, num_images)) for start in range(0, num_images, size)]
