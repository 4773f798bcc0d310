"""Check an exported file: it computes what the model computes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from delta_tune.config import UserError
from delta_tune.inference.model import Model

TOLERANCE = 1e-4
"""Largest allowed difference of logits between the model and the exported file, in parts of the largest above 1."""
CHECKED_BATCHES = (1, 3)


class ExportMismatch(UserError):
    """The exported file does not compute what the model computes."""


def check_file(model: Model, network: nn.Module, exported: Callable[[Tensor], Tensor]) -> None:
    """Compare the logits of a network and of the file written of it, for random images.

    Raises:
        ExportMismatch: they differ by more than `TOLERANCE`.
    """
    for many in CHECKED_BATCHES:
        images = random_images(model, many)
        with torch.inference_mode():
            expected, found = network(images), exported(images)
        apart, largest = float((expected - found).abs().max()), max(1.0, float(expected.abs().max()))
        if not apart <= TOLERANCE * largest:
            raise ExportMismatch(
                f"The exported file is not kept: for {many} random images its logits and the model's differ by "
                f"{apart:.2g}, more than {TOLERANCE * largest:.2g}; give another --format."
            )


def random_images(model: Model, many: int) -> Tensor:
    """Normalised images (many, C, S, S) of noise, the same in every run."""
    size, channels = model.preprocessing.image_size, model.preprocessing.channels
    return torch.from_numpy(np.random.default_rng(many).normal(size=(many, channels, size, size)).astype(np.float32))
