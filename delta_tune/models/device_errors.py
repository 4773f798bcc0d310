"""What an error of a GPU, or one of memory, means: for the work that met it, and for the process that it leaves."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch

FaultKind = Literal["GPU memory", "host memory", "GPU"]

DEVICE_MEMORY = re.compile(
    r"\b(?:CUDA|cuda|HIP|hip|XPU|MPS|GPU|Triton)\b.{0,60}\bout of memory"
    r"|(?:STATUS_|FFT_|miopenStatus)(?:ALLOC_FAILED|AllocFailed)|rocblas_status_memory_error"
    r"|CUDA_ERROR_OUT_OF_MEMORY|cudaErrorMemoryAllocation|hipErrorOutOfMemory|hipErrorMemoryAllocation"
    r"|_OUT_OF_(?:DEVICE_MEMORY|RESOURCES)|_ERROR_MEM_OBJECT_ALLOCATION_FAILURE"
    # A library's handle needs memory too, and cuDNN finds no algorithm that fits into what is left.
    r"|_STATUS_NOT_INITIALIZED.{0,20}(?:cublas|cudnn|cusolver|hipblas)\w*Create\b"
    r"|[Uu]nable to find a valid cuDNN algorithm"
)
"""Texts of RuntimeErrors: CUDA, ROCm, Apple's and Intel's."""

HOST_MEMORY = re.compile(
    r"DefaultCPUAllocator: (?:can't allocate|not enough) memory|std::bad_alloc|Cannot allocate memory"
)

KILLED_FOR_MEMORY = "running low on memory"
"""In what Ray says of a process that its memory monitor killed, in errors that this layer does not know."""

BROKEN = re.compile(
    r"\b(?:CUDA|HIP|XPU)(?: driver)? error\b|\bcuDNN(?: Frontend)? error|\bTriton Error \[(?:CUDA|HIP)\]"
    r"|\b(?:CU|HIP|ROC)[A-Z]*_STATUS_(?!NOT_SUPPORTED|BAD_PARAM|INVALID_VALUE|SUCCESS|ARCH_MISMATCH)"
    r"|\bmiopenStatus(?!BadParm|NotImplemented|UnsupportedOp)|\bNVML_|\bnvml[A-Z]\w*"
    r"|\b(?:cuda|hip)Error[A-Z]|_ERROR_DEVICE_(?:LOST|NOT_FOUND|NOT_AVAILABLE|UNAVAILABLE)|Native API failed"
    r"|No (?:CUDA|HIP|XPU) (?:GPUs|devices) are available|CUDA unknown error|error from cudaGetDeviceCount"
    r"|[Ff]ound no NVIDIA driver|The NVIDIA driver on your system is too old|not compiled with (?:CUDA|XPU) enabled"
    r"|command buffer exited with error"
)
"""Texts of RuntimeErrors after which each later call in the process fails too, or no call worked."""

REFUSED = re.compile(r"_STATUS_(?:NOT_SUPPORTED|BAD_PARAM|INVALID_VALUE|ARCH_MISMATCH)")
"""The call was wrong for the library: the fault of what was asked, and the process goes on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceFault:
    """What an error says of the device or of memory."""

    kind: FaultKind
    """`GPU memory`: too little of it. `host memory`: the same of the machine. `GPU`: its context is broken."""
    text: str
    """The error's first line, with its class."""
    ends_process: bool
    """Whether later work in the same process may fail for the same cause."""


def find_device_fault(error: BaseException | None) -> DeviceFault | None:
    """The fault behind `error`, also where another error or Ray wraps it; None if it is another kind of error."""
    for each in _chain(error):
        first = next((line.strip() for line in str(each).splitlines() if line.strip()), "")
        text = f"{type(each).__name__}: {first}" if first else type(each).__name__
        if (kind := _kind(each)) is not None:
            # torch's own allocator refuses before it harms anything; whatever else refused may leave half a library.
            spared = isinstance(each, torch.OutOfMemoryError) or "MPS backend out of memory" in str(each)
            return DeviceFault(kind=kind, text=text, ends_process=not spared)
    return None


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether a GPU's memory was too small: torch's allocator, the driver or a library said so, in whatever words."""
    fault = find_device_fault(error)
    return fault is not None and fault.kind == "GPU memory"


def device_failure(device: torch.device | str) -> str | None:
    """Compute a sum on the device; return the error's text if that fails, None if it works.

    To be asked in a new process: one with a broken context has a broken device whatever the hardware.
    """
    try:
        ones = torch.ones(64, 64, device=device)
        total = (ones @ ones).sum().item()
    except (RuntimeError, AssertionError) as error:
        if is_out_of_memory(error):  # others use it, so it works
            return None
        fault = find_device_fault(error)
        return str(error) if fault is None else fault.text
    return None if total == 64.0**3 else f"a sum of {64**3} ones is {total:g} there"


def _kind(error: BaseException) -> FaultKind | None:
    text = str(error)
    if isinstance(error, torch.OutOfMemoryError):
        return "GPU memory"
    if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
        return "host memory"
    if KILLED_FOR_MEMORY in text:
        return "host memory"
    if not isinstance(error, (RuntimeError, AssertionError, OSError)):
        return None
    if DEVICE_MEMORY.search(text):
        return "GPU memory"
    if HOST_MEMORY.search(text):
        return "host memory"
    if isinstance(error, torch.AcceleratorError) or (BROKEN.search(text) and not REFUSED.search(text)):
        return "GPU"
    return None


def _chain(error: BaseException | None, seen: set[int] | None = None) -> Iterator[BaseException]:
    """The error, what Ray wrapped into it, what caused it, and so on, each once; the innermost of Ray's first."""
    seen = set() if seen is None else seen
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        wrapped = getattr(error, "cause", None)
        if isinstance(wrapped, BaseException):
            yield from _chain(wrapped, seen)
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
