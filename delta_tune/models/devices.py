"""Device-specific details: pinned copies and half precision on GPUs, thread counts on CPUs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor


def to_device(array: np.ndarray, device: torch.device) -> Tensor:
    """The array as a tensor on `device`; to a GPU it is copied from pinned memory, asynchronously."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Autocast to bfloat16 if the GPU supports it, else float16; full precision on the CPU, so runs repeat exactly."""
    if device.type != "cuda":
        return nullcontext()
    return torch.autocast("cuda", dtype=torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16)


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Use `count` CPU threads in torch while the block runs; sums depend on the number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
