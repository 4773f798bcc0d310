"""Copies from the host to a device that the host does not wait for."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def pinned(array: np.ndarray | Tensor, device: torch.device) -> Tensor:
    """The array as a CPU tensor; for a CUDA device in pinned memory, from where it is copied asynchronously."""
    tensor = torch.from_numpy(array) if isinstance(array, np.ndarray) else array
    return tensor.pin_memory() if device.type == "cuda" and not tensor.is_pinned() else tensor


def to_device(array: np.ndarray | Tensor, device: torch.device) -> Tensor:
    """An array or CPU tensor on `device`; to a CUDA device it is copied from pinned memory, asynchronously."""
    return pinned(array, device).to(device, non_blocking=device.type == "cuda")
