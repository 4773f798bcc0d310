"""What a GPU wants done differently: copies beside its work, half precision, data read ahead; and threads of a CPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor


def to_device(array: np.ndarray, device: torch.device) -> Tensor:
    """The array as a tensor; to a GPU it goes from pinned memory, beside what is computed there."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def autocast(device: torch.device) -> AbstractContextManager[Any]:
    """bfloat16 where the GPU has it, else float16; full precision on the CPU, where runs repeat bit for bit."""
    if device.type != "cuda":
        return nullcontext()
    return torch.autocast("cuda", dtype=torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16)


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Within it torch computes with so many threads of the CPU; sums come out otherwise with another number."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
