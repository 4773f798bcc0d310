"""Embeddings: the inputs of the heads of a model's networks, which are alike for images that look alike to it."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from delta_tune.config import UserError
from delta_tune.data.augmentation import center_crop
from delta_tune.data.batches import filled
from delta_tune.data.device_copies import to_device
from delta_tune.data.fitting import Pixels
from delta_tune.data.images import Preprocessing
from delta_tune.inference.ensemble import members_of
from delta_tune.models.feature_maps import head_inputs


def embed_squares(network: nn.Module, head: str, squares: Pixels, preprocessing: Preprocessing) -> np.ndarray:
    """Embeddings of stored squares, uint8 (B, R, R, C): float32 (B, D).

    Args:
        network: a model's, in eval mode; of several networks the embeddings stand one after the other, and of an image
            and its mirror image that of the image is taken.
        head: module path of each network's head.
        squares: on the CPU.
        preprocessing: of the model.

    Raises:
        UserError: a number is not finite.
    """
    members = members_of(network)
    images = center_crop(to_device(squares, next(network.parameters()).device), preprocessing)
    images = filled(images, len(images))
    with torch.inference_mode():
        parts = [head_vectors(head_inputs(member, head, images)) for member in members]
        found: np.ndarray = torch.cat(parts, 1)[: len(squares)].float().cpu().numpy()
    if not np.isfinite(found).all():
        raise UserError("The model returns no finite numbers for an image; its weights are damaged: load another.")
    return found


def embedding_size(network: nn.Module, head: str) -> int:
    """How many numbers an embedding has."""
    heads = [member.get_submodule(head) for member in members_of(network)]
    return sum(next(iter(each.parameters())).shape[1] for each in heads)


def head_vectors(inputs: Tensor) -> Tensor:
    """The inputs of a head as (B, D); those of a convolution, (B, D, h, w), are averaged over the positions."""
    return inputs.mean((2, 3)) if inputs.ndim == 4 else inputs.flatten(1)
