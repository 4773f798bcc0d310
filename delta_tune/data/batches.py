"""Batches of images, in order or shuffled, prepared in the background."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from delta_tune.data.augmentation import center_crop
from delta_tune.data.dataset import Split
from delta_tune.data.device_copies import to_device
from delta_tune.data.images import Preprocessing

EVAL_BATCH_SIZE = 64
"""Images per forward pass wherever no gradients are wanted."""

_Batch = TypeVar("_Batch")


def read_ahead(read: Callable[[np.ndarray], _Batch], batches: Sequence[np.ndarray]) -> Iterator[_Batch]:
    """Yield `read(batch)` for each batch, read by a thread two batches ahead, so decoding overlaps GPU work."""
    with ThreadPoolExecutor(1) as reader:
        coming = deque(reader.submit(read, batch) for batch in batches[:2])
        for batch in batches[2:]:
            yield coming.popleft().result()
            coming.append(reader.submit(read, batch))
        while coming:
            yield coming.popleft().result()


def evaluation_batches(
    split: Split, preprocessing: Preprocessing, device: torch.device, indices: np.ndarray | None = None
) -> Iterator[Tensor]:
    """Un-augmented images (of `indices`) in order: normalised float32 (B, 3, S, S) batches, channels last."""
    indices = np.arange(len(split)) if indices is None else indices
    for start in range(0, len(indices), EVAL_BATCH_SIZE):
        pixels = split.images.batch(indices[start : start + EVAL_BATCH_SIZE])
        yield center_crop(to_device(pixels, device), preprocessing)


def shuffled_batches(num_images: int, batch_size: int, generator: torch.Generator) -> list[np.ndarray]:
    """Index batches of one epoch. A single remaining image joins the batch before it: batch norm needs two."""
    order = torch.randperm(num_images, generator=generator).numpy()
    batches = [order[start : start + batch_size] for start in range(0, num_images, batch_size)]
    if len(batches) > 1 and len(batches[-1]) == 1:
        batches[-2:] = [np.concatenate(batches[-2:])]
    return batches
