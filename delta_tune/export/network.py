"""What a file of the network alone computes: calibrated logits, and the inputs of the head, if they are wanted."""

from __future__ import annotations

from contextlib import ExitStack

import torch
from torch import Tensor, nn

from delta_tune.inference.embeddings import head_vectors
from delta_tune.inference.ensemble import members_of
from delta_tune.inference.model import Model


class CalibratedNetwork(nn.Module):
    """Normalised images (N, C, S, S) to logits (N, K), divided by the temperature; with `embeddings` a pair.

    Embeddings (N, D) are those of `Model.embed`: what the heads of all networks see of the image itself.
    """

    def __init__(self, model: Model, *, embeddings: bool = False) -> None:
        super().__init__()
        self.network, self.temperature = model.network, model.temperature
        self.head = model.config["backbone"]["head"] if embeddings else None

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        if self.head is None:
            logits: Tensor = self.network(images)
            return self._calibrated(logits)
        found: list[list[Tensor]] = []
        with ExitStack() as hooks:
            for member in members_of(self.network):
                seen: list[Tensor] = []
                head = member.get_submodule(self.head)
                hooks.enter_context(head.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0])))
                found.append(seen)
            logits = self.network(images)
        # The first call of a head is for the image, the next one for its mirror image, if the model averages both
        return self._calibrated(logits), torch.cat([head_vectors(seen[0]) for seen in found], dim=1)

    def _calibrated(self, logits: Tensor) -> Tensor:
        return logits if self.temperature == 1 else logits / self.temperature
