"""Check an exported file: it computes what the model computes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from delta_tune.config import UserError
from delta_tune.inference.model import Model

TOLERANCE = 1e-4
"""Largest allowed difference of logits between the model and the exported file, in parts of the largest above 1."""
SHARES = 1e-3
"""Largest allowed difference of probabilities between `Model.predict` and the exported file."""
CHECKED_BATCHES = (1, 3)

Exported = Callable[[Tensor], Sequence[Tensor]]
"""The outputs of a file for images: logits or probabilities, and embeddings if it has them."""


class ExportMismatch(UserError):
    """The exported file does not compute what the model computes."""


def check_file(model: Model, network: nn.Module, exported: Exported) -> None:
    """Compare the logits of a network and of the file written of it, for random images, and its embeddings.

    Raises:
        ExportMismatch: they differ by more than `TOLERANCE`.
    """
    for many in CHECKED_BATCHES:
        images = random_images(model, many)
        with torch.inference_mode():
            expected, found = listed(network(images)), exported(images)
        for name, wanted, got in zip(("logits", "embeddings"), expected, found, strict=False):
            _compare(name, f"{many} random images", wanted, got, TOLERANCE * max(1.0, float(wanted.abs().max())))


def check_pixel_file(model: Model, exported: Exported) -> None:
    """Compare probabilities and embeddings of a file with what the model gives for random pictures, large and small.

    Raises:
        ExportMismatch: probabilities differ by more than `SHARES`, or embeddings by more than `TOLERANCE`.
    """
    size = model.preprocessing.stored_size
    for shape in ((3, size, size), (1, size // 2 + 1, 2 * size), (2, 3 * size + 1, size + 5)):
        pixels = random_pixels(model, shape)
        what = f"{shape[0]} random images of {shape[2]} × {shape[1]} pixels"
        wanted = [list(each.probabilities.values()) for each in model.predict(pixels.numpy())]
        found = exported(pixels)
        _compare("probabilities", what, torch.tensor(wanted), found[0], SHARES)
        if len(found) > 1:
            embeddings = torch.from_numpy(model.embed(pixels.numpy()))
            limit = TOLERANCE * max(1.0, float(embeddings.abs().max()))
            _compare("embeddings", what, embeddings, found[1], limit)


def _compare(name: str, what: str, wanted: Tensor, found: Tensor, limit: float) -> None:
    if wanted.shape != found.shape:
        raise ExportMismatch(
            f"The exported file is not kept: for {what} it gives {name} of shape {tuple(found.shape)} instead of "
            f"{tuple(wanted.shape)}; give another --format."
        )
    apart = float((wanted - found).abs().max())
    if not apart <= limit:
        raise ExportMismatch(
            f"The exported file is not kept: for {what} its {name} and the model's differ by {apart:.2g}, more than "
            f"{limit:.2g}; give another --format."
        )


def listed(outputs: Tensor | Sequence[Tensor]) -> Sequence[Tensor]:
    """The outputs of a module, also if it is one."""
    return (outputs,) if isinstance(outputs, Tensor) else outputs


def random_images(model: Model, many: int) -> Tensor:
    """Normalised images (many, C, S, S) of noise, the same in every run."""
    size, channels = model.preprocessing.image_size, model.preprocessing.channels
    return torch.from_numpy(np.random.default_rng(many).normal(size=(many, channels, size, size)).astype(np.float32))


def random_pixels(model: Model, shape: tuple[int, int, int]) -> Tensor:
    """Coloured noise, uint8 (*shape, C), the same in every run."""
    drawn = np.random.default_rng(shape).integers(0, 256, (*shape, model.preprocessing.channels), dtype=np.uint8)
    return torch.from_numpy(drawn)
