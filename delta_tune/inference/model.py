"""Load the final model and predict: `load(folder).predict(images)`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from delta_tune.config import UserError
from delta_tune.data.augmentation import center_crop
from delta_tune.data.batches import EVAL_BATCH_SIZE, filled
from delta_tune.data.device_copies import to_device
from delta_tune.data.fitting import Pixels
from delta_tune.data.images import DamagedImage, Preprocessing, stored_square
from delta_tune.inference.embeddings import embed_squares, embedding_size
from delta_tune.inference.ensemble import Flipped
from delta_tune.inference.inputs import Images, open_each
from delta_tune.inference.model_config import model_thresholds
from delta_tune.inference.model_folder import read_model
from delta_tune.labels.answer import answer_of
from delta_tune.labels.kinds import kind_named
from delta_tune.labels.one_label import ONE_LABEL


@dataclass(frozen=True, slots=True)
class Prediction:
    """What one image shows, or why the image cannot be read."""

    label: str | None
    """The most probable class, of a model of several labels an image too; None if the image cannot be read."""
    probability: float | None
    """Of `label`, in [0, 1]; None if the image cannot be read."""
    probabilities: dict[str, float]
    """Probability of each class, in training order; empty if the image cannot be read."""
    error: str | None = None
    """A sentence if the image cannot be read."""
    unsure: bool = False
    """Whether `probability` is below the `min_confidence` that was asked for; where none of several labels is there,
    whether 1 - `probability` is."""
    labels: tuple[str, ...] = ()
    """Of a model of several labels an image, those whose probability is at least their threshold, the most probable
    first, which may be none; else `label` alone."""


class Model:
    """A fine-tuned network with its classes and preprocessing, in eval mode.

    Attributes:
        network: maps normalised images (N, C, S, S) to logits (N, K); with `flip` to those of the mean probabilities
            of an image and its mirror image.
        config: the content of `config.json`.
        classes: in the order of the logits.
        preprocessing: of images.
        kind: of the labels that it predicts.
        temperature: softmax(logits / temperature) are the probabilities; with several labels an image, the sigmoids.
        thresholds: with several labels an image, from which probability on a class is there, (K,); else None.
    """

    def __init__(self, network: nn.Module, config: dict[str, Any], *, flip: bool = False) -> None:
        self.kind = kind_named(config.get("task", ONE_LABEL.name))
        self.network, self.config = Flipped(network, self.kind) if flip else network, config
        self.temperature: float = config.get("temperature", 1.0)
        self.classes: tuple[str, ...] = tuple(config["classes"])
        self.thresholds = model_thresholds(config)
        stored: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in config["preprocessing"].items()}
        self.preprocessing = Preprocessing(**stored)

    @property
    def backbone_label(self) -> str | None:
        """The name of its network in the study that it comes from; None if that had one network."""
        trial = self.config.get("config")
        label = trial.get("backbone") if isinstance(trial, dict) else None
        return label if isinstance(label, str) else None

    def predict(
        self,
        images: Images,
        *,
        batch_size: int = EVAL_BATCH_SIZE,
        min_confidence: float | Literal["auto"] | None = None,
    ) -> list[Prediction]:
        """Classify images.

        Args:
            images: one image or an iterable of paths, encoded images (bytes, bytearray, memoryview), files open for
                reading bytes, uploads of web frameworks, PIL images, uint8 arrays (H, W, 3) or (H, W), or uint8 tensors
                (3, H, W). Batches (N, H, W, 3) and (N, 3, H, W) count as N images. A model of C channels takes arrays
                (H, W, C) and tensors (C, H, W), one that knows the value of white arrays of other numbers too.
            batch_size: images per forward pass, ≥ 1.
            min_confidence: a prediction with a lower probability is marked as `unsure`, in [0, 1]; "auto" is what the
                study found.

        Returns:
            A prediction for each image, in order; one of several that cannot be read has an `error` instead of a label.

        Raises:
            UserError: a single image cannot be read, what is given is no image, an array has another type or shape, the
                batch size is below 1, `min_confidence` is outside [0, 1], or "auto" and the study found none, or the
                model returns numbers that are not finite.
        """
        least = self.least_confidence(min_confidence)
        _check_batch_size(batch_size)
        found: list[Prediction] = []
        each = self.squares(images)
        while batch := list(islice(each, batch_size)):
            found += self.predict_squares(batch, least)
        return found

    def predict_squares(self, squares: Sequence[Pixels | DamagedImage], least: float = 0.0) -> list[Prediction]:
        """Classify images that have been opened, in one forward pass.

        Args:
            squares: what `squares` yields.
            least: a prediction with a lower probability is marked as `unsure`, in [0, 1].

        Returns:
            As `predict`.

        Raises:
            UserError: the model returns numbers that are not finite.
        """
        readable = [square for square in squares if not isinstance(square, DamagedImage)]
        rows = iter(self._probabilities(np.stack(readable)) if readable else ())
        return [
            Prediction(None, None, {}, str(square))
            if isinstance(square, DamagedImage)
            else self._prediction(next(rows), least)
            for square in squares
        ]

    def embed(self, images: Images, *, batch_size: int = EVAL_BATCH_SIZE) -> np.ndarray:
        """What the network sees in images, as one vector each: the inputs of its head (penultimate features).

        Images that look alike to the model have embeddings in nearly the same direction: compare them by the cosine.
        Of several networks the embeddings stand one after the other; with `flip` they are those of the image itself.

        Args:
            images: as of `predict`.
            batch_size: images per forward pass, ≥ 1.

        Returns:
            float32 (N, D), a row for each image, in order.

        Raises:
            UserError: as of `predict`, and where any image cannot be read, for a row cannot say so: `predict` tells
                which ones.
        """
        _check_batch_size(batch_size)
        found: list[np.ndarray] = []
        each, head = self.squares(images), self.config["backbone"]["head"]
        while batch := [_readable(square) for square in islice(each, batch_size)]:
            found.append(embed_squares(self.network, head, np.stack(batch), self.preprocessing))
        return np.concatenate(found or [np.empty((0, embedding_size(self.network, head)), dtype=np.float32)])

    def squares(self, images: Images) -> Iterator[Pixels | DamagedImage]:
        """What is kept of each image, uint8 (R, R, C), or why it cannot be read.

        Args:
            images: as of `predict`.

        Raises:
            UserError: a single image cannot be read, what is given is no image, or an array has another type or shape.
        """
        for image in open_each(images, self.preprocessing.channels, self.preprocessing.white):
            yield image if isinstance(image, DamagedImage) else stored_square(image, self.preprocessing)

    def least_confidence(self, min_confidence: float | Literal["auto"] | None) -> float:
        """The probability below which a prediction is unsure, in [0, 1].

        Raises:
            UserError: `min_confidence` is outside [0, 1], or "auto" and the study found none.
        """
        if min_confidence is None:
            return 0.0
        if min_confidence == "auto":
            if self.thresholds is not None:
                raise UserError(
                    "A model of several labels an image has a threshold for each label instead of one confidence; give "
                    "a number from 0 to 1 instead of auto, or leave it out."
                )
            if (found := self.config.get("unsure")) is None:
                raise UserError(
                    "The model does not know below which confidence it is unsure, for its study did not find out; give "
                    "a number from 0 to 1 instead of auto."
                )
            return float(found["below"])
        if not isinstance(min_confidence, int | float) or not 0 <= min_confidence <= 1:
            raise UserError(f'min_confidence must be a number from 0 to 1, or "auto", but got {min_confidence!r}.')
        return min_confidence

    def _prediction(self, row: np.ndarray, least: float) -> Prediction:
        answer = answer_of(row, self.thresholds, least)
        return Prediction(
            self.classes[answer.best],
            answer.probability,
            dict(zip(self.classes, map(float, row), strict=True)),
            unsure=answer.unsure,
            labels=tuple(self.classes[number] for number in answer.there),
        )

    def _probabilities(self, pixels: Pixels) -> np.ndarray:
        device = next(self.network.parameters()).device
        with torch.inference_mode():
            images = center_crop(to_device(pixels, device), self.preprocessing)
            logits = self.network(filled(images, len(images)))[: len(images)].float()
            probabilities: np.ndarray = self.kind.probabilities(logits / self.temperature).cpu().numpy()
        if not np.isfinite(probabilities).all():
            raise UserError("The model returns no finite numbers for an image; its weights are damaged: load another.")
        return probabilities


def _check_batch_size(batch_size: int) -> None:
    if batch_size < 1:
        raise UserError(f"batch_size must be ≥ 1, but got {batch_size}.")


def _readable(square: Pixels | DamagedImage) -> Pixels:
    if isinstance(square, DamagedImage):
        raise square
    return square


def load(folder: str | Path, device: torch.device | str = "cpu", *, flip: bool = False) -> Model:
    """Load the model from a study's folder or its `best/`.

    Args:
        folder: a local folder, or an address such as s3://bucket/results/photos.
        device: where to predict.
        flip: whether probabilities are the mean of those of the image and of its mirror image, which
            takes twice as long.

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
    network = network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Model(network, config, flip=flip)
