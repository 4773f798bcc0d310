"""The whole way from pixels to probabilities as one module: what `Model.predict` computes of an image."""

from __future__ import annotations

from torch import Tensor, nn

from delta_tune.export.network import CalibratedNetwork
from delta_tune.export.preparation import Preparation
from delta_tune.inference.model import Model


class PixelModel(nn.Module):
    """uint8 (N, H, W, C) to calibrated probabilities, float32 (N, K); with `embeddings` to a pair with (N, D).

    Images are of any height and width, the same within a batch: see `Preparation`. Embeddings are those of
    `CalibratedNetwork`. The module can be exported and traced, with N, H and W left open.
    """

    def __init__(self, model: Model, *, embeddings: bool = False) -> None:
        super().__init__()
        self.preparation = Preparation(model.preprocessing)
        self.network = CalibratedNetwork(model, embeddings=embeddings)
        self._kind = model.kind
        self.eval()

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        found = self.network(self.preparation(images))
        if isinstance(found, tuple):
            logits, embeddings = found
            return self._kind.probabilities(logits), embeddings
        return self._kind.probabilities(found)
