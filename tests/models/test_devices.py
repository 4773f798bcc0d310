from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from helpers.simulated_gpu import simulated_gpu

from delta_tune.data.batches import evaluation_batches, read_ahead
from delta_tune.data.dataset import Split
from delta_tune.data.images import Preprocessing
from delta_tune.data.stored_images import DecodedImages
from delta_tune.models.devices import autocast, half_precision, in_float64, to_device, without_tf32


@pytest.mark.parametrize("count", [0, 1, 2, 3, 7])
def test_read_ahead_gives_every_batch_in_order(count):
    batches = [np.array([i, i + 10]) for i in range(count)]
    got = list(read_ahead(lambda indices: indices * 2, batches))
    assert [list(each) for each in got] == [[2 * i, 2 * i + 20] for i in range(count)]


def test_read_ahead_reads_two_batches_in_another_thread_before_they_are_asked_for():
    read, threads = [], set()

    def record(indices):
        read.append(int(indices[0]))
        threads.add(threading.get_ident())
        return indices

    batches = read_ahead(record, [np.array([i]) for i in range(6)])
    for _ in range(3):
        next(batches)
    batches.close()
    assert read[:4] == [0, 1, 2, 3]
    assert len(read) <= 5
    assert threading.get_ident() not in threads


def test_read_ahead_passes_an_error_on():
    with pytest.raises(ZeroDivisionError):
        list(read_ahead(lambda indices: indices / 0 if 1 / 0 else indices, [np.array([1])]))


def test_on_device_keeps_values_and_shares_memory_on_the_cpu():
    array = np.arange(6.0).reshape(2, 3)
    tensor = to_device(array, torch.device("cpu"))
    array[0, 0] = 9
    assert tensor[0, 0] == 9


@pytest.mark.gpu
def test_on_device_copies_to_the_gpu():
    array = np.arange(6.0).reshape(2, 3)
    assert torch.equal(to_device(array, torch.device("cuda")).cpu(), torch.from_numpy(array))


def test_the_cpu_computes_in_full_precision():
    with autocast(torch.device("cpu")):
        assert (torch.rand(2, 2) @ torch.rand(2, 2)).dtype == torch.float32


@pytest.mark.parametrize(
    ("kind", "bfloat16", "expected"),
    [
        ("cuda", True, torch.bfloat16),
        ("cuda", False, torch.float16),  # a T4 says that it supports bfloat16, and emulates it
        ("xpu", True, torch.bfloat16),
        ("xpu", False, None),
        ("mps", True, None),
    ],
)
def test_half_precision_is_what_the_hardware_computes_in(kind, bfloat16, expected):
    with simulated_gpu(kind, bfloat16=bfloat16):
        assert half_precision(torch.device(kind)) == expected


def test_autocast_computes_in_half_precision():
    x = torch.ones(2, 2)
    for bfloat16, expected in ((True, torch.bfloat16), (False, torch.float16)):
        with simulated_gpu(bfloat16=bfloat16), autocast(torch.device("cuda")):
            assert (x @ x).dtype == expected


@pytest.mark.parametrize("kind", ["cuda", "mps", "xpu"])
def test_to_device_does_not_wait_for_cuda(kind):
    with simulated_gpu(kind) as gpu:
        assert gpu.holds(to_device(np.ones(3, np.float32), torch.device(kind)))
        assert gpu.waits.total() == (kind != "cuda")


@pytest.mark.parametrize("kind", ["cuda", "mps", "xpu"])
def test_float64_is_had_everywhere(kind):
    with simulated_gpu(kind):
        assert in_float64(torch.ones(2, device=kind)).dtype == torch.float64


def test_without_tf32_changes_nothing_else_and_nothing_for_long():
    cudnn = torch.backends.cudnn
    before = cudnn.enabled, cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32
    with cudnn.flags(cudnn.enabled, benchmark=True, deterministic=True, allow_tf32=True):
        with without_tf32():
            assert (cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32) == (True, True, False)
        assert (cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32) == (True, True, True)
    assert (cudnn.enabled, cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32) == before


@pytest.mark.parametrize(("device", "sizes"), [("cpu", [64, 64, 64, 64, 44]), ("meta", [128, 128, 44])])
def test_evaluation_takes_larger_batches_off_the_cpu(device, sizes):
    preprocessing = Preprocessing(
        image_size=4, stored_size=4, mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bilinear"
    )
    images = DecodedImages(np.zeros((300, 4, 4, 3), np.uint8))
    split = Split(images=images, labels=np.zeros(300, np.int64), names=("",) * 300)
    assert [len(batch) for batch in evaluation_batches(split, preprocessing, torch.device(device))] == sizes
