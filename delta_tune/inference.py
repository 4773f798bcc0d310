"""The model in hand: `load(folder).predict(images)`."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from PIL import Image
from torch import Tensor, nn

from delta_tune.addresses import open_place
from delta_tune.augment import centre
from delta_tune.config import UserError
from delta_tune.images import Preprocessing, open_image, to_square
from delta_tune.models import build_architecture

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
BATCH_SIZE = 64


@dataclass(frozen=True, slots=True)
class Prediction:
    """The most probable class of one image."""

    label: str
    probability: float
    probabilities: dict[str, float]
    """Every class, in the order of training."""


class Model:
    """A fine-tuned network with its classes and preprocessing, in eval mode."""

    def __init__(self, network: nn.Module, config: dict[str, Any]) -> None:
        self.network, self.config = network, config
        self.classes: tuple[str, ...] = tuple(config["classes"])
        stored: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in config["preprocessing"].items()}
        self.preprocessing = Preprocessing(**stored)

    def predict(self, images: Iterable[str | Path | bytes | Image.Image]) -> list[Prediction]:
        """Classify paths, encoded images or PIL images.

        Raises:
            UserError: an image that cannot be read.
        """
        if isinstance(images, str | Path | bytes | Image.Image):
            images = [images]
        p = self.preprocessing
        pixels = [to_square(open_image(image), p.stored_size, p.interpolation) for image in images]
        return [
            Prediction(
                self.classes[int(row.argmax())],
                float(row.max()),
                dict(zip(self.classes, map(float, row), strict=True)),
            )
            for row in self._probabilities(pixels)
        ]

    def _probabilities(self, pixels: list[np.ndarray]) -> np.ndarray:
        device = next(self.network.parameters()).device
        rows: list[Tensor] = []
        with torch.inference_mode():
            for start in range(0, len(pixels), BATCH_SIZE):
                batch = torch.from_numpy(np.stack(pixels[start : start + BATCH_SIZE])).to(device)
                rows.append(self.network(centre(batch, self.preprocessing)).float().softmax(1).cpu())
        return torch.cat(rows).numpy() if rows else np.empty((0, len(self.classes)))


def load(folder: str | Path, device: torch.device | str = "cpu") -> Model:
    """The model of a study's `best` folder (or of the study's own).

    Args:
        folder: here, or at an address such as s3://bucket/results/photos.
        device: where it is to predict.

    Raises:
        UserError: there is no model there.
    """
    filesystem, root = open_place(folder, "load")
    root = root.rstrip("/")
    try:
        if filesystem.get_file_info(f"{root}/best/{CONFIG_FILE}").is_file:
            root = f"{root}/best"
        content = {}
        for name in (CONFIG_FILE, WEIGHTS_FILE):
            with filesystem.open_input_stream(f"{root}/{name}") as stream:
                content[name] = stream.read()
        config = json.loads(content[CONFIG_FILE])
        state = safetensors.torch.load(content[WEIGHTS_FILE])
    except (OSError, json.JSONDecodeError, safetensors.SafetensorError) as error:
        raise UserError(
            f"There is no model in {folder} ({error}); give the folder `best` of a finished study."
        ) from error
    network = build_architecture(config["backbone"]["model"], config["backbone"]["head"], len(config["classes"]))
    network.load_state_dict(state)
    return Model(network.eval().to(device, memory_format=torch.channels_last), config)  # type: ignore[call-overload]
