"""What determines the training images of an epoch. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Augmentation = Literal["none", "flip", "crop_flip", "resized_crop_flip", "trivial"]
Sampling = Literal["random", "balanced"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageSettings:
    """What determines the training images of an epoch, beside seed, batch size and data."""

    augmentation: Augmentation
    random_erasing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    relative_size: float = 1.0
    """Side of the images, as a fraction of the input size."""
    sampling: Sampling = "random"

    @property
    def mixes(self) -> bool:
        """Whether images are mixed with others."""
        return self.mixup > 0 or self.cutmix > 0
