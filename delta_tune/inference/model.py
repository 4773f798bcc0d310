"""Load the final model and predict: `load(folder).predict(images)`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from delta_tune.config import UserError
from delta_tune.data.augmentation import center_crop
from delta_tune.data.batches import EVAL_BATCH_SIZE
from delta_tune.data.images import DamagedImage, Pixels, Preprocessing, open_image, to_square
from delta_tune.inference.model_folder import read_model

OneImage = str | Path | bytes | Image.Image | np.ndarray | Tensor
Images = OneImage | Iterable[OneImage]


@dataclass(frozen=True, slots=True)
class Prediction:
    """The most probable class of one image."""

    label: str
    probability: float
    probabilities: dict[str, float]
    """Probability of each class, in training order."""


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
            images: one image or an iterable of paths, encoded images, PIL images, uint8 arrays (H, W, 3) or (H, W), or
                uint8 tensors (3, H, W). Batches (N, H, W, 3) and (N, 3, H, W) count as N images.
            batch_size: images per forward pass, ≥ 1.

        Raises:
            UserError: an image cannot be read, an array has another type or shape, the batch size is below 1, or the
                model returns numbers that are not finite.
        """
        if batch_size < 1:
            raise UserError(f"batch_size must be ≥ 1, but got {batch_size}.")
        p = self.preprocessing
        found: list[Prediction] = []
        each = iter(_one_by_one(images))
        while pixels := [to_square(image, p.stored_size, p.interpolation) for image in islice(each, batch_size)]:
            found += [
                Prediction(
                    self.classes[int(row.argmax())],
                    float(row.max()),
                    dict(zip(self.classes, map(float, row), strict=True)),
                )
                for row in self._probabilities(np.stack(pixels))
            ]
        return found

    def _probabilities(self, pixels: Pixels) -> np.ndarray:
        device = next(self.network.parameters()).device
        with torch.inference_mode():
            logits = self.network(center_crop(torch.from_numpy(pixels).to(device), self.preprocessing))
            probabilities: np.ndarray = logits.float().softmax(1).cpu().numpy()
        if not np.isfinite(probabilities).all():
            raise UserError("The model returns no finite numbers for an image; its weights are damaged: load another.")
        return probabilities


def _one_by_one(images: Images, name: str = "the image") -> Iterator[Image.Image]:
    """Yield the images; `name` is used in messages for an image without a path."""
    if isinstance(images, np.ndarray | Tensor):
        for pixels in _uint8(images):
            yield open_image(Image.fromarray(pixels))
    elif isinstance(images, str | Path):
        yield open_image(images)
    elif isinstance(images, bytes | Image.Image):
        try:
            yield open_image(images)
        except DamagedImage as error:
            raise DamagedImage(name, error.args[1]) from error
    else:
        for place, image in enumerate(images):
            yield from _one_by_one(image, f"the image at index {place}")


def _uint8(images: np.ndarray | Tensor) -> Iterable[Pixels]:
    """The images of an array or tensor, each (H, W, 3) or (H, W)."""
    kind = "a tensor" if isinstance(images, Tensor) else "an array"
    given = f"{images.dtype} {tuple(images.shape)}"
    pixels: np.ndarray | None = None
    if isinstance(images, np.ndarray):
        pixels = images
    elif images.ndim in (3, 4) and images.shape[-3] == 3:
        pixels = images.detach().movedim(-3, -1).cpu().numpy()
    if pixels is not None and pixels.dtype == np.uint8 and 0 not in pixels.shape[-3:]:
        if pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[-1] == 3):
            return [pixels]
        if pixels.ndim == 4 and pixels.shape[-1] == 3:
            return list(pixels)
    shapes = "(3, H, W) or (N, 3, H, W)" if kind == "a tensor" else "(H, W, 3), (H, W) or (N, H, W, 3)"
    raise UserError(
        f"Images as {kind} must be uint8 {shapes}, but got {given}; give pixels from 0 to 255, not normalised."
    )


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
