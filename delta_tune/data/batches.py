"""Batches of images, in order or shuffled, prepared in the background."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from delta_tune.config import Sampling
from delta_tune.data.augmentation import center_crop
from delta_tune.data.dataset import Split
from delta_tune.data.device_copies import to_device
from delta_tune.data.images import Preprocessing

EVAL_BATCH_SIZE = 64
"""Images per forward pass wherever no gradients are wanted, on a CPU,"""
ACCELERATOR_EVAL_BATCH_SIZE = 128
"""and elsewhere, where a batch takes some 10 ms to launch; 256 would need more memory than training does."""


def eval_batch_size(device: torch.device) -> int:
    """Images per forward pass on `device` wherever no gradients are wanted."""
    return EVAL_BATCH_SIZE if device.type == "cpu" else ACCELERATOR_EVAL_BATCH_SIZE


def same_shapes(device: torch.device) -> bool:
    """Whether all batches on `device` should have one shape, the last one too.

    On CUDA each new shape costs seconds, because cuDNN plans every convolution anew: MobileNetV2 on an H100 2 s for a
    forward pass and 9 s for a step of training.
    """
    return device.type == "cuda"


def filled(images: Tensor, num_images: int) -> Tensor:
    """A batch (B, …) of `num_images` that are evaluated, as large as all others of them where `same_shapes` says so.

    The last image is repeated. The caller cuts off what was computed of the repetitions. The size is a power of two, so
    that splits of different sizes share it.
    """
    size = min(eval_batch_size(images.device), 1 << (num_images - 1).bit_length())
    return repeat_last(images, size) if same_shapes(images.device) else images


def repeat_last(rows: Tensor, size: int) -> Tensor:
    """The rows (B, …) with the last one repeated up to `size`; as they are if they are as many."""
    return rows if len(rows) >= size else torch.cat([rows, rows[-1:].expand(size - len(rows), *rows.shape[1:])])


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
    size = eval_batch_size(device)
    for start in range(0, len(indices), size):
        pixels = split.images.batch(indices[start : start + size])
        yield center_crop(to_device(pixels, device), preprocessing)


def shuffled_batches(num_images: int, batch_size: int, generator: torch.Generator) -> list[np.ndarray]:
    """Index batches of one epoch. A single remaining image joins the batch before it: batch norm needs two."""
    return _cut(torch.randperm(num_images, generator=generator).numpy(), batch_size)


def training_batches(
    labels: np.ndarray, batch_size: int, sampling: Sampling, generator: torch.Generator, *, same_size: bool = False
) -> list[np.ndarray]:
    """Index batches of one epoch, as many for either kind of sampling and of size.

    Args:
        labels: (N,) classes.
        batch_size: ≥ 1.
        sampling: `random` has each image once; `balanced` has N draws, see `balanced_order`.
        generator: on the CPU.
        same_size: fill the last of several batches with images of the first; a single remaining image is left out.
    """
    if sampling == "random":
        order = torch.randperm(len(labels), generator=generator).numpy()
    else:
        order = balanced_order(labels, generator)
    if same_size and len(order) > batch_size:
        remaining = len(order) % batch_size
        order = order[:-1] if remaining == 1 else np.concatenate([order, order[: -remaining % batch_size]])
    return _cut(order, batch_size)


def balanced_order(labels: np.ndarray, generator: torch.Generator) -> np.ndarray:
    """Positions of N draws in random order, of which each of the C classes that occur has ⌊N / C⌋ or ⌈N / C⌉.

    Which classes have one more is drawn too. No image of a class is drawn again before all of the class have been: of a
    large class an epoch has a random part, of a small one each image several times.

    Args:
        labels: (N,) classes.
        generator: on the CPU; what is drawn depends on it alone.
    """
    classes = np.unique(labels)
    one_more = torch.randperm(len(classes), generator=generator).numpy() < len(labels) % len(classes)
    drawn = []
    for label, more in zip(classes, one_more, strict=True):
        members, count = np.flatnonzero(labels == label), len(labels) // len(classes) + int(more)
        rounds = range(0, count, len(members))
        passes = [members[torch.randperm(len(members), generator=generator).numpy()] for _ in rounds]
        drawn += [each[: count - begun] for begun, each in zip(rounds, passes, strict=True)]
    order: np.ndarray = np.concatenate(drawn)[torch.randperm(len(labels), generator=generator).numpy()]
    return order


def _cut(order: np.ndarray, batch_size: int) -> list[np.ndarray]:
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    if len(batches) > 1 and len(batches[-1]) == 1:
        batches[-2:] = [np.concatenate(batches[-2:])]
    return batches
