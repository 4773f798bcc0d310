"""Errors as torch, its libraries and Ray word them."""

from __future__ import annotations

import pytest
import torch
from ray.exceptions import OutOfMemoryError as RayOutOfMemoryError
from ray.exceptions import RayError, RayTaskError

from delta_tune.models.device_errors import device_failure, find_device_fault, is_out_of_memory

GPU_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 15.77 GiB"),
    torch.AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
    RuntimeError("CUDA driver error: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate(handle)`"),
    RuntimeError("cuFFT error: CUFFT_ALLOC_FAILED"),
    RuntimeError("CUDA_ERROR_OUT_OF_MEMORY: out of memory"),
    RuntimeError("Triton Error [CUDA]: out of memory"),
    RuntimeError("Unable to find a valid cuDNN algorithm to run convolution"),
    RuntimeError("HIP out of memory. Tried to allocate 20.00 MiB"),
    RuntimeError("HIP error: out of memory"),
    RuntimeError("CUDA error: HIPBLAS_STATUS_ALLOC_FAILED when calling `hipblasCreate(handle)`"),
    RuntimeError("miopenStatusAllocFailed"),
    RuntimeError("XPU out of memory. Tried to allocate 512.00 MiB"),
    RuntimeError("Native API failed. Native API returns: 39 (UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY)"),
    RuntimeError("Native API failed. Native API returns: -5 (PI_ERROR_OUT_OF_RESOURCES)"),
    RuntimeError("MPS backend out of memory (MPS allocated: 17.97 GB, max allowed: 18.13 GB)"),
]
BROKEN = [
    torch.AcceleratorError(
        "CUDA error: an illegal memory access was encountered\nSearch for `cudaErrorIllegalAddress`"
    ),
    torch.AcceleratorError("CUDA error: uncorrectable ECC error encountered"),
    torch.AcceleratorError("of a kind that does not exist yet"),
    RuntimeError("CUDA error: device-side assert triggered"),
    RuntimeError("CUDA error: unspecified launch failure"),
    RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
    RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR"),
    RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm(...)`"),
    RuntimeError("NVML_SUCCESS == r INTERNAL ASSERT FAILED at CUDACachingAllocator.cpp"),
    RuntimeError("HIP error: the operation cannot be performed in the present state"),
    RuntimeError("miopenStatusInternalError"),
    RuntimeError("Native API failed. Native API returns: 20 (UR_RESULT_ERROR_DEVICE_LOST)"),
    RuntimeError("No CUDA GPUs are available"),
    RuntimeError("CUDA unknown error - this may be due to an incorrectly set up environment"),
    RuntimeError("Unexpected error from cudaGetDeviceCount(). Error 802: system not yet initialized"),
    AssertionError("Torch not compiled with CUDA enabled"),
]
HOST_MEMORY = [
    MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried to ..."),
    RuntimeError("[enforce fail at alloc_cpu.cpp:80] data. DefaultCPUAllocator: not enough memory: you tried to ..."),
    RuntimeError("std::bad_alloc"),
    OSError(12, "Cannot allocate memory"),
    RayError("The actor died unexpectedly.\nTask was killed due to the node running low on memory."),
    RayOutOfMemoryError("Task was killed due to the node running low on memory."),
]
OTHER = [
    None,
    RuntimeError("Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu!"),
    RuntimeError(
        "cuDNN error: CUDNN_STATUS_NOT_SUPPORTED. This error may appear if you passed in a non-contiguous input"
    ),
    RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
    ValueError("a file named CUDA error: out of memory"),
    OSError(28, "No space left on device"),
]


def kind(error):
    fault = find_device_fault(error)
    return None if fault is None else fault.kind


@pytest.mark.parametrize("error", GPU_MEMORY, ids=str)
def test_too_little_memory_of_a_gpu_is_known_in_all_its_words(error):
    assert is_out_of_memory(error)


@pytest.mark.parametrize("error", BROKEN, ids=str)
def test_broken_context_ends_its_process(error):
    assert kind(error) == "GPU"
    assert find_device_fault(error).ends_process


@pytest.mark.parametrize("error", HOST_MEMORY, ids=str)
def test_too_little_memory_of_the_machine_is_another_kind(error):
    assert kind(error) == "host memory"
    assert not is_out_of_memory(error)


@pytest.mark.parametrize("error", OTHER, ids=str)
def test_other_errors_are_none_of_these(error):
    assert find_device_fault(error) is None


def wrapped_by_ray(error):
    return RayTaskError("measure_footprint", "Traceback …", error, ip="127.0.0.1").as_instanceof_cause()


def caused(error):
    other = ValueError("of another part")
    other.__cause__ = error
    return other


def followed(error):
    other = ValueError("raised while it was handled")
    other.__context__ = error
    return other


@pytest.mark.parametrize("wrap", [wrapped_by_ray, caused, followed, lambda error: wrapped_by_ray(caused(error))])
@pytest.mark.parametrize("error", [GPU_MEMORY[1], BROKEN[0], HOST_MEMORY[1]], ids=["memory", "broken", "host"])
def test_error_is_found_in_what_wraps_it(wrap, error):
    assert find_device_fault(wrap(error)) == find_device_fault(error)


def test_only_what_torch_s_allocator_refuses_leaves_the_process_as_it_was():
    assert not find_device_fault(GPU_MEMORY[0]).ends_process
    assert find_device_fault(GPU_MEMORY[1]).ends_process


def test_text_is_one_line():
    assert find_device_fault(BROKEN[0]).text == "AcceleratorError: CUDA error: an illegal memory access was encountered"


def test_device_that_computes_has_no_failure():
    assert device_failure("cpu") is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_device_that_does_not_compute_says_why():
    assert device_failure("cuda")


def test_device_that_others_have_filled_is_not_broken(monkeypatch):
    def full(*args, **kwargs):
        raise torch.AcceleratorError("CUDA error: out of memory")

    monkeypatch.setattr(torch, "ones", full)
    assert device_failure("cuda") is None
