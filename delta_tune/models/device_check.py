"""Which GPU this process has, and whether torch can compute on it."""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from delta_tune.console.format import format_bytes
from delta_tune.models.devices import autocast

TOLERANCE = 0.05
"""Largest distance of the GPU's result from the CPU's, relative to its norm; bfloat16 accounts for 0.005."""
SHAPES = ((8, 16, 32, 32), (32, 16, 3, 3), (32, 64))
"""Of the images, the convolution's kernels and the matrix that are multiplied."""
LONGEST = 300
"""Characters of torch's sentence that are shown."""
LASTING = {
    "not compiled with": "install a torch with CUDA there (for Intel's GPUs: with XPU)",
    "driver on your system is too old": "update NVIDIA's driver there, or install a torch built for an older CUDA",
    "driver version is insufficient": "update NVIDIA's driver there, or install a torch built for an older CUDA",
    "no nvidia driver": "install NVIDIA's driver there (for Intel's GPUs: a torch with XPU)",
    "no kernel image": "install a torch built for that GPU",
}
"""Words of an error, in lower case → what to do; no trial of that node can use its GPU."""
PASSING = {
    "busy or unavailable": "end the process that holds the GPU, or let others use it with `nvidia-smi -c DEFAULT`",
    "out of memory": "end the processes that fill the GPU's memory",
}
"""The same, where the next trial may be able to."""


class UnusableDeviceError(Exception):
    """Torch cannot compute on the GPU; the message says why and what to do.

    Args:
        text: the message.
        lasting: whether no process of that node can.
    """

    def __init__(self, text: str, *, lasting: bool) -> None:
        super().__init__(text)
        self.lasting = lasting


@dataclass(frozen=True, kw_only=True, slots=True)
class Accelerator:
    """A GPU as torch sees it."""

    device: str
    """`cuda` (NVIDIA, and AMD with ROCm), `xpu` (Intel) or `mps` (Apple)."""
    name: str
    memory: int
    """Bytes."""
    capability: str
    """NVIDIA's compute capability, such as `8.6`; empty for others."""
    torch: str
    """Version of torch."""
    runtime: str
    """What torch was built for, such as `CUDA 13.0`."""

    def __str__(self) -> str:
        capability = f", compute capability {self.capability}" if self.capability else ""
        runtime = f", {self.runtime}" if self.runtime else ""
        return f"{self.name} with {format_bytes(self.memory)}{capability} (torch {self.torch}{runtime})"


def gpu_device() -> str:
    """The device type of this process's GPU; `cuda` if torch finds none, which then says why."""
    with warnings.catch_warnings():  # torch warns of what it then raises
        warnings.simplefilter("ignore")
        return "xpu" if not torch.cuda.is_available() and torch.xpu.is_available() else "cuda"


def gradients(device: torch.device) -> Tensor:
    """The gradients of a convolution and a matrix product, each scaled to norm 1, on the CPU."""
    random = torch.Generator().manual_seed(0)
    inputs = [torch.randn(shape, generator=random).to(device).requires_grad_() for shape in SHAPES]
    images, kernels, matrix = inputs
    with autocast(device):
        scores = F.conv2d(images, kernels, padding=1).mean((2, 3)) @ matrix
    scores.float().square().mean().backward()  # type: ignore[no-untyped-call]
    found = [each.grad.cpu() for each in inputs if each.grad is not None]
    return torch.cat([(gradient / gradient.norm()).flatten() for gradient in found])


def check_accelerator(device: str) -> Accelerator:
    """Train a tiny network for a step on a device, in the precision of trials, and compare with the CPU.

    Args:
        device: type of the device: `cuda`, `xpu` or `mps`.

    Raises:
        UnusableDeviceError: torch cannot use it, or it computes something else.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found, expected = gradients(torch.device(device)), gradients(torch.device("cpu"))
            accelerator = _describe(device)
    except (RuntimeError, AssertionError) as error:  # AssertionError: a torch without code for such devices
        raise _fault(error) from error
    distance = float((found - expected).norm() / expected.norm())
    if not distance <= TOLERANCE:  # NaN is not
        wrong = f"{accelerator.name} computes wrong numbers ({distance:.2g} off); replace it, or its driver"
        raise UnusableDeviceError(wrong, lasting=True)
    return accelerator


def _describe(device: str) -> Accelerator:
    name, memory, capability, runtime = "Apple GPU", 0, "", ""
    if device == "cuda":
        cuda = torch.cuda.get_device_properties(torch.cuda.current_device())
        name, memory = cuda.name, cuda.total_memory
        if torch.version.hip is None:
            capability, runtime = f"{cuda.major}.{cuda.minor}", f"CUDA {torch.version.cuda}"
        else:
            runtime = f"ROCm {torch.version.hip}"
    elif device == "xpu":
        xpu = torch.xpu.get_device_properties(torch.xpu.current_device())
        name, memory, runtime = xpu.name, xpu.total_memory, "XPU"
    elif device == "mps":
        memory = torch.mps.recommended_max_memory()
    return Accelerator(
        device=device, name=name, memory=memory, capability=capability, torch=torch.__version__, runtime=runtime
    )


def _fault(error: Exception) -> UnusableDeviceError:
    """The first sentence of torch's message, and what to do."""
    text = re.split(r"\.\s|\n", str(error).strip())[0].rstrip(".")[:LONGEST] or type(error).__name__
    words = text.lower()
    known = next((advice for part, advice in {**LASTING, **PASSING}.items() if part in words), None)
    if "no kernel image" in words:
        text = f"{text} (it has code for {', '.join(torch.cuda.get_arch_list())})"
    return UnusableDeviceError(
        f"torch {torch.__version__} says: {text}; {known or 'check the GPU, its driver and torch'}",
        lasting=any(part in words for part in LASTING),
    )
