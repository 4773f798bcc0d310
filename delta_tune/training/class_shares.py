"""The classes' shares of the training images, and what an adjustment of logits by them is (arXiv 2007.07314)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn


def log_shares(labels: np.ndarray, num_classes: int) -> Tensor:
    """log(n_k / N) of each class, float32 (K,), with n_k of the N labels; a class without a label counts as one.

    Args:
        labels: (N,) classes, N ≥ 1.
        num_classes: K.
    """
    counts = np.maximum(np.bincount(labels, minlength=num_classes), 1)
    return torch.tensor(np.log(counts / len(labels)), dtype=torch.float32)


def shift_bias(head: nn.Module, offsets: Tensor) -> None:
    """Add offsets (K,) to the bias of a head that is a Linear, and so to its logits; leave other heads as they are.

    What follows a convolution may be no sum: SqueezeNet has a ReLU there.
    """
    if isinstance(head, nn.Linear):
        with torch.no_grad():
            head.bias.add_(offsets.to(head.bias))
