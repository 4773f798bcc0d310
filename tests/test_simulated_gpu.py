from __future__ import annotations

import pytest
import torch
from helpers.simulated_gpu import by_line, by_operator, simulated_gpu
from torch import nn

from delta_tune.models.devices import to_device


def test_what_is_computed_on_the_device_stays_there():
    with simulated_gpu() as gpu:
        x = torch.randn(2, 3, device="cuda")
        layer = nn.Linear(3, 4).to("cuda")
        loss = layer(x).square().sum()
        loss.backward()
        assert loss.device == layer.weight.grad.device == torch.device("cuda", 0)
        assert x.is_cuda
        assert gpu.holds(layer.weight.grad)
        assert loss.cpu().device == torch.device("cpu")


def test_values_are_those_of_the_cpu():
    layer, x = nn.Conv2d(3, 4, 3), torch.randn(2, 3, 8, 8)
    expected = layer(x)
    with simulated_gpu():
        found = layer.to("cuda")(x.to("cuda")).cpu()
    assert torch.equal(found, expected)


@pytest.mark.parametrize("kind", ["cuda", "mps", "xpu"])
def test_mixed_devices_are_refused(kind):
    with simulated_gpu(kind), pytest.raises(RuntimeError, match="same device, but add"):
        torch.ones(3, device=kind) + torch.ones(3)


def test_a_number_of_the_cpu_may_meet_the_device():
    with simulated_gpu() as gpu:
        assert gpu.holds(torch.ones(3, device="cuda") * torch.tensor(2.0))
        assert not gpu.waits


def test_memory_of_the_device_is_not_read_by_numpy():
    with simulated_gpu(), pytest.raises(TypeError, match="numpy"):
        torch.ones(3, device="cuda").numpy()


@pytest.mark.parametrize(
    ("waits", "operator"),
    [
        (lambda x: x.sum().item(), "_local_scalar_dense"),
        (lambda x: bool(x.any()), "_local_scalar_dense"),
        (lambda x: x[x > 0], "index"),
        (lambda x: x.nonzero(), "nonzero"),
        (lambda x: x.cpu(), "_to_copy"),
        (lambda x: x.tolist(), "tolist"),
        (lambda x: torch.ones(3).to(x.device), "_to_copy"),
        (lambda x: torch.ones(3).to(x.device, non_blocking=True), "_to_copy"),  # not pinned
        (lambda x: torch.tensor([1.0], device=x.device), "_to_copy"),
        (lambda x: x.copy_(torch.ones(3)), "copy_"),
        (lambda x: torch.cuda.synchronize(), "synchronize"),
    ],
)
def test_a_wait_is_counted(waits, operator):
    with simulated_gpu() as gpu:
        x = torch.ones(3, device="cuda")
        gpu.clear()
        waits(x)
    assert dict(by_operator(gpu.waits)) == {operator: 1}


def test_pinned_copies_and_work_on_the_device_do_not_wait():
    with simulated_gpu() as gpu:
        x = torch.ones(3).pin_memory().to("cuda", non_blocking=True)
        (x * torch.arange(3, device="cuda") + 1).sum()
    assert not gpu.waits
    assert by_operator(gpu.bytes_copied)["_to_copy"] == 12


def test_launches_and_bytes_are_counted_by_operator():
    with simulated_gpu() as gpu:
        x = torch.zeros(100, device="cuda")
        gpu.clear()
        x.view(10, 10).t().add(1)
        torch._foreach_add_([x] * 61, 1.0)
    assert dict(by_operator(gpu.launches)) == {"add": 1, "_foreach_add_": 3}
    assert by_operator(gpu.bytes)["add"] == 800


def test_calls_are_put_down_to_our_line_and_to_torch_optim():
    with simulated_gpu() as gpu:
        x = to_device(torch.ones(3).numpy(), torch.device("cuda"))
        weight = x.clone().requires_grad_()
        weight.grad = x
        torch.optim.SGD([weight], lr=0.1).step()
    lines = by_line(gpu.launches)
    assert any(line.startswith("delta_tune/models/devices.py:") for line in lines)
    assert any(line.startswith("via sgd.py:") for line in lines)


@pytest.mark.parametrize("kind", ["mps", "xpu"])
def test_float64_is_refused_where_there_is_none(kind):
    with simulated_gpu(kind), pytest.raises(TypeError, match="float64"):
        torch.ones(3, device=kind).double()


def test_tf32_rounds_convolutions_unless_told_not_to():
    torch.manual_seed(0)
    layer, x = nn.Conv2d(16, 4, 3), torch.randn(2, 16, 8, 8)
    exact = layer(x)
    with simulated_gpu(tf32=True):
        layer, x = layer.to("cuda"), x.to("cuda")
        rounded = layer(x).cpu()
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            unrounded = layer(x).cpu()
    assert 1e-5 < (rounded - exact).abs().max() < 1e-2
    assert torch.equal(unrounded, exact)


def test_nothing_is_left_behind():
    before = torch.cuda.is_available(), torch.autocast, torch.load, torch.Tensor.pin_memory
    with simulated_gpu():
        assert torch.cuda.is_available()
    assert before == (torch.cuda.is_available(), torch.autocast, torch.load, torch.Tensor.pin_memory)
