"""Device-specific details: precision and random numbers on GPUs, thread counts on CPUs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from delta_tune.data.device_copies import to_device as to_device  # all above models take it from here


def half_precision(device: torch.device) -> torch.dtype | None:
    """The type that trials on `device` compute in under `autocast`; None where that is float32.

    bfloat16 where the hardware has it. An older GPU, such as a T4, would emulate it slowly and gets float16, for which
    the loss must be scaled. The CPU computes in float32, so that runs repeat exactly, and so does Apple's GPU.
    """
    if device.type == "cuda":
        has_bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if has_bfloat16 else torch.float16
    if device.type == "xpu" and torch.xpu.is_bf16_supported(including_emulation=False):
        return torch.bfloat16
    return None


def autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Autocast to `half_precision`, if there is one."""
    dtype = half_precision(device)
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)


def without_tf32() -> AbstractContextManager[Any]:
    """Convolutions on CUDA devices in float32 as on a CPU; cuDNN's default rounds what enters them to 10 bits."""
    cudnn = torch.backends.cudnn
    flags: AbstractContextManager[Any] = cudnn.flags(
        cudnn.enabled, cudnn.benchmark, deterministic=cudnn.deterministic, allow_tf32=False
    )
    return flags


def in_float64(tensor: Tensor) -> Tensor:
    """The tensor in float64; on the CPU unless it is on a CUDA device, because Apple's and some of Intel's lack it."""
    return (tensor if tensor.device.type in ("cpu", "cuda") else tensor.cpu()).double()


def fork_rng(device: torch.device) -> AbstractContextManager[Any]:
    """Restore the states of torch's random generators, the CPU's and that of `device`, when the block ends."""
    return torch.random.fork_rng([] if device.type == "cpu" else [device], device_type=device.type)


def synchronize(device: torch.device) -> None:
    """Wait until `device` has computed all that was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type != "cpu":
        torch.get_device_module(device).synchronize()


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Use `count` CPU threads in torch while the block runs; sums depend on the number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
