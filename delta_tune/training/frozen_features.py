"""What a frozen network sees in images, as one vector each: for classifiers that need no fine-tuning."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from delta_tune.data.augmentation import center_crop
from delta_tune.data.batches import eval_batch_size, filled
from delta_tune.data.device_copies import to_device
from delta_tune.data.fitting import Pixels
from delta_tune.models.backbones import Backbone, build_source
from delta_tune.models.feature_maps import feature_maps, head_inputs


class FrozenFeatures:
    """The source in eval mode: the head's inputs, and mean and spread of the maps of the hooked layers.

    Early layers tell materials and textures that the last one has forgotten. All are averaged over an image and its
    mirror image.
    """

    def __init__(self, backbone: Backbone, device: torch.device | str = "cpu") -> None:
        self._backbone, self._device = backbone, torch.device(device)
        source = build_source(backbone)
        self._source = source.to(self._device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def of(self, squares: Pixels) -> np.ndarray:
        """Features of stored squares, uint8 (B, R, R, 3): float32 (B, D)."""
        size = eval_batch_size(self._device)
        parts = [self._batch(squares[start : start + size]) for start in range(0, len(squares), size)]
        return np.concatenate(parts) if parts else np.empty((0, 0), dtype=np.float32)

    def _batch(self, squares: Pixels) -> np.ndarray:
        images = center_crop(to_device(squares, self._device), self._backbone.preprocessing)
        images = filled(images, len(images))
        with torch.inference_mode(), feature_maps(self._source, self._backbone.layers) as maps:
            both = [self._vector(each, maps) for each in (images, images.flip(3))]
        vectors: np.ndarray = ((both[0] + both[1]) / 2)[: len(squares)].float().cpu().numpy()
        return vectors

    def _vector(self, images: Tensor, maps: dict[str, Tensor]) -> Tensor:
        last = head_inputs(self._source, self._backbone.head, images)
        means = [last.mean((2, 3)) if last.ndim == 4 else last.flatten(1)]
        layouts = self._backbone.layouts_of(self._backbone.layers)
        found = [layout.parts(maps[layer])[0].float() for layer, layout in layouts.items()]
        return torch.cat([*means, *(m.mean((2, 3)) for m in found), *(m.std((2, 3), correction=0) for m in found)], 1)
