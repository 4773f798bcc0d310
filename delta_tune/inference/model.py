"""Load the final model and predict: `load(folder).predict(images)`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from delta_tune.config import UserError
from delta_tune.data.augmentation import center_crop
from delta_tune.data.batches import EVAL_BATCH_SIZE
from delta_tune.data.device_copies import to_device
from delta_tune.data.images import DamagedImage, Pixels, Preprocessing, to_square
from delta_tune.inference.inputs import Images, open_each
from delta_tune.inference.model_folder import read_model


@dataclass(frozen=True, slots=True)
class Prediction:
    """The most probable class of one image, or why the image cannot be read."""

    label: str | None
    """None if the image cannot be read."""
    probability: float | None
    """Of `label`, in [0, 1]; None if the image cannot be read."""
    probabilities: dict[str, float]
    """Probability of each class, in training order; empty if the image cannot be read."""
    error: str | None = None
    """A sentence if the image cannot be read."""


class Model:
    """A fine-tuned network with its classes and preprocessing, in eval mode."""

    def __init__(self, network: nn.Module, config: dict[str, Any]) -> None:
        self.network, self.config = network, config
        self.classes: tuple[str, ...] = tuple(config["classes"])
        stored: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in config["preprocessing"].items()}
        self.preprocessing = Preprocessing(**stored)

    def predict(self, images: Images, *, batch_size: int = EVAL_BATCH_SIZE) -> list[Prediction]:
        """Classify images.

        Args:
            images: one image or an iterable of paths, encoded images (bytes, bytearray, memoryview), files open for
                reading bytes, uploads of web frameworks, PIL images, uint8 arrays (H, W, 3) or (H, W), or uint8 tensors
                (3, H, W). Batches (N, H, W, 3) and (N, 3, H, W) count as N images.
            batch_size: images per forward pass, ≥ 1.

        Returns:
            A prediction for each image, in order; one of several that cannot be read has an `error` instead of a label.

        Raises:
            UserError: a single image cannot be read, what is given is no image, an array has another type or shape, the
                batch size is below 1, or the model returns numbers that are not finite.
        """
        if batch_size < 1:
            raise UserError(f"batch_size must be ≥ 1, but got {batch_size}.")
        found: list[Prediction] = []
        each = self._squares(images)
        while batch := list(islice(each, batch_size)):
            readable = [square for square in batch if not isinstance(square, DamagedImage)]
            rows = iter(self._probabilities(np.stack(readable)) if readable else ())
            found += [
                Prediction(None, None, {}, str(square))
                if isinstance(square, DamagedImage)
                else self._prediction(next(rows))
                for square in batch
            ]
        return found

    def _squares(self, images: Images) -> Iterator[Pixels | DamagedImage]:
        p = self.preprocessing
        for image in open_each(images):
            yield image if isinstance(image, DamagedImage) else to_square(image, p.stored_size, p.interpolation)

    def _prediction(self, row: np.ndarray) -> Prediction:
        return Prediction(
            self.classes[int(row.argmax())],
            float(row.max()),
            dict(zip(self.classes, map(float, row), strict=True)),
        )

    def _probabilities(self, pixels: Pixels) -> np.ndarray:
        device = next(self.network.parameters()).device
        with torch.inference_mode():
            logits = self.network(center_crop(to_device(pixels, device), self.preprocessing))
            probabilities: np.ndarray = logits.float().softmax(1).cpu().numpy()
        if not np.isfinite(probabilities).all():
            raise UserError("The model returns no finite numbers for an image; its weights are damaged: load another.")
        return probabilities


def load(folder: str | Path, device: torch.device | str = "cpu") -> Model:
    """Load the model from a study's folder or its `best/`.

    Args:
        folder: a local folder, or an address such as s3://bucket/results/photos.
        device: where to predict.

    Raises:
        UserError: the folder has no model, or the device is unusable.
    """
    try:
        torch.empty(0, device=device)
    except (
        RuntimeError,
        AssertionError,
    ) as error:  # unknown device, missing hardware, or PyTorch without support for it
        cause = str(error).splitlines()[0]
        raise UserError(
            f"The device {device} cannot be used ({cause}); give cpu, or cuda where PyTorch finds a GPU."
        ) from error
    config, network = read_model(folder)
    return Model(network.to(device, memory_format=torch.channels_last), config)  # type: ignore[call-overload]
