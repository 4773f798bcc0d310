"""What is told of a GPU that torch can or cannot use. The GPU is a fake: the CPU computes for it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from delta_tune.models import device_check
from delta_tune.models.device_check import Accelerator, UnusableDeviceError, check_accelerator, gpu_device

MESSAGES = {
    "CUDA error: no kernel image is available for execution on the device\nCUDA kernel errors might be": (
        "no kernel image is available for execution on the device (it has code for sm_75, sm_120); install a torch"
    ),
    "The NVIDIA driver on your system is too old (found version 11040). Please update your GPU driver": (
        "The NVIDIA driver on your system is too old (found version 11040); update NVIDIA's driver there"
    ),
    "Torch not compiled with CUDA enabled": "Torch not compiled with CUDA enabled; install a torch with CUDA",
    "Found no NVIDIA driver on your system. Please check that": "Found no NVIDIA driver on your system; install NVIDIA",
    "CUDA error: all CUDA-capable devices are busy or unavailable\nCUDA kernel": "`nvidia-smi -c DEFAULT`",
    "CUDA error: out of memory": "end the processes that fill the GPU's memory",
    "CUDNN_STATUS_NOT_INITIALIZED": "CUDNN_STATUS_NOT_INITIALIZED; check the GPU, its driver and torch",
    "": "RuntimeError; check the GPU",
}


@pytest.mark.parametrize("message", MESSAGES)
def test_fault_is_torchs_sentence_with_what_to_do(message, monkeypatch):
    def refuse(device):
        raise (AssertionError if "compiled" in message else RuntimeError)(message)

    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75", "sm_120"])
    monkeypatch.setattr(device_check, "gradients", refuse)
    with pytest.raises(UnusableDeviceError) as raised:
        check_accelerator("cuda")
    assert str(raised.value).startswith(f"torch {torch.__version__} says: ")
    assert MESSAGES[message] in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(("message", "lasting"), [("no kernel image", True), ("out of memory", False), ("Xid", False)])
def test_fault_lasts_if_no_trial_of_the_node_can_do_better(message, lasting, monkeypatch):
    def refuse(device):
        raise RuntimeError(f"CUDA error: {message}")

    monkeypatch.setattr(device_check, "gradients", refuse)
    with pytest.raises(UnusableDeviceError) as raised:
        check_accelerator("cuda")
    assert raised.value.lasting is lasting


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("device", ["cuda", "xpu"])
def test_device_that_is_not_there_is_a_fault(device):
    with pytest.raises(UnusableDeviceError, match=rf"^torch {torch.__version__.split('+')[0]}.* says: "):
        check_accelerator(device)


def computes(monkeypatch, change):
    """A device on which the CPU's results are changed."""
    compute = device_check.gradients
    monkeypatch.setattr(
        device_check, "gradients", lambda device: change(compute(torch.device("cpu")), device.type == "cuda")
    )
    properties = SimpleNamespace(name="Tesla T4", total_memory=15 * 2**30, major=7, minor=5)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)


def test_gpu_that_computes_rightly_is_described(monkeypatch):
    computes(monkeypatch, lambda result, on_gpu: result.bfloat16().float() if on_gpu else result)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    found = check_accelerator("cuda")
    assert found == Accelerator(
        device="cuda",
        name="Tesla T4",
        memory=15 * 2**30,
        capability="7.5",
        torch=torch.__version__,
        runtime="CUDA 13.0",
    )
    assert str(found) == f"Tesla T4 with 15 GiB, compute capability 7.5 (torch {torch.__version__}, CUDA 13.0)"


@pytest.mark.parametrize("factor", [1.2, float("nan"), 0.0])
def test_gpu_that_computes_wrong_numbers_is_a_lasting_fault(monkeypatch, factor):
    computes(monkeypatch, lambda result, on_gpu: result * factor if on_gpu else result)
    with pytest.raises(UnusableDeviceError, match="Tesla T4 computes wrong numbers") as raised:
        check_accelerator("cuda")
    assert raised.value.lasting


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_half_precision_is_well_within_the_tolerance(precision):
    compute = device_check.gradients
    exact = compute(torch.device("cpu"))
    with torch.autocast("cpu", dtype=precision):
        rounded = compute(torch.device("cpu"))
    assert 0 < (rounded - exact).norm() / exact.norm() < device_check.TOLERANCE / 5


@pytest.mark.parametrize(
    ("cuda", "xpu", "device"), [(True, True, "cuda"), (False, True, "xpu"), (False, False, "cuda")]
)
def test_intels_gpu_is_used_where_there_is_no_cuda(cuda, xpu, device, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.xpu, "is_available", lambda: xpu)
    assert gpu_device() == device
