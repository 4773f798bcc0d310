"""What a file computes: the model's network with its temperature, and the words for it in the file's metadata."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from delta_tune.inference.ensemble import Flipped
from delta_tune.inference.model import Model


class _Calibrated(nn.Module):
    """A network's logits (N, K), divided by the temperature."""

    def __init__(self, network: nn.Module, temperature: float) -> None:
        super().__init__()
        self.network, self.temperature = network, temperature

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(images)
        return logits / self.temperature


def calibrated(model: Model) -> nn.Module:
    """What computes logits whose probabilities are those that the model predicts."""
    return model.network if model.temperature == 1 else _Calibrated(model.network, model.temperature).eval()


def output_of(model: Model) -> dict[str, Any]:
    """What a file says of what it computes."""
    several = model.thresholds is not None
    makes = "the sigmoid of each is its probability" if several else "softmax makes them probabilities"
    values = f"logits; {makes}"
    if model.temperature != 1:
        values = f"logits, already divided by the temperature {model.temperature:.6g}; {makes}"
    flip = {"flip": "probabilities are the means of those of the image and of its mirror image"}
    return {
        **{"type": "float32", "shape": ["N", len(model.classes)], "order": "classes", "values": values},
        **(flip if isinstance(model.network, Flipped) else {}),
        **({"thresholds": model.thresholds} if several else {}),
    }
