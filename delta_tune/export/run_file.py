"""Run an ONNX file on images as they are stored, whichever form its inputs have."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import torch

from delta_tune.data.augmentation import center_crop
from delta_tune.data.fitting import Pixels, unbordered
from delta_tune.export.onnx_session import open_session
from delta_tune.inference.model import Model

BATCH = 16
"""Images at once."""
PROBABILITIES, LOGITS = "probabilities", "logits"


class OnnxRunner:
    """An ONNX file, or one in memory, on the CPU.

    Args:
        model: of the file.
        file: to run.
        threads: 0 for onnxruntime's own choice, which is one for each core.
    """

    def __init__(self, model: Model, file: Path | onnx.ModelProto, threads: int = 0) -> None:
        self._session = open_session(file if isinstance(file, Path) else file.SerializeToString(), threads)
        self._model = model
        (self._input,) = self._session.get_inputs()
        names = [each.name for each in self._session.get_outputs()]
        self._output = PROBABILITIES if PROBABILITIES in names else LOGITS

    def feed(self, pixels: Pixels) -> dict[str, np.ndarray]:
        """What the file takes of stored squares, uint8 (N, stored_size, stored_size, C)."""
        preprocessing = self._model.preprocessing
        if self._input.type != "tensor(uint8)":
            return {self._input.name: center_crop(torch.from_numpy(pixels), preprocessing).contiguous().numpy()}
        return {self._input.name: unbordered(pixels, preprocessing.image_size, preprocessing.resize)}

    def answer(self, feed: dict[str, np.ndarray]) -> np.ndarray:
        """Probabilities or logits for what `feed` made."""
        answer: np.ndarray = self._session.run([self._output], feed)[0]
        return answer

    def probabilities(self, pixels: Pixels) -> np.ndarray:
        """Probabilities (N, K), float32, of stored squares (N, stored_size, stored_size, C)."""
        (found,) = self._together([self._output], pixels)
        if self._output == PROBABILITIES:
            return found
        probabilities: np.ndarray = self._model.kind.probabilities(torch.from_numpy(found)).numpy()
        return probabilities

    def tensors(self, names: Sequence[str], pixels: Pixels) -> dict[str, np.ndarray]:
        """Outputs of the file by name, for stored squares; one that is asked for may be its input."""
        given = [name for name in names if name != self._input.name]
        found = dict(zip(given, self._together(given, pixels), strict=True)) if given else {}
        return found | ({self._input.name: self.feed(pixels)[self._input.name]} if self._input.name in names else {})

    def _together(self, names: list[str], pixels: Pixels) -> list[np.ndarray]:
        batches = [
            self._session.run(names, self.feed(pixels[start : start + BATCH])) for start in range(0, len(pixels), BATCH)
        ]
        return [np.concatenate(each) for each in zip(*batches, strict=True)]
