"""The logic around a CUDA graph, with captures that only look like one."""

from __future__ import annotations

import logging

import pytest
import torch
from helpers.simulated_gpu import simulated_gpu

from delta_tune.models import cuda_graph
from delta_tune.models.cuda_graph import Captured, GraphedForward

HAS_CUDA = torch.cuda.is_available()  # before any is simulated


class Network:
    """A forward pass that knows how often it ran."""

    def __init__(self):
        self.runs = 0

    def __call__(self, images):
        self.runs += 1
        return {"layer": images.mean(1, keepdim=True)}


@pytest.fixture
def network():
    return Network()


@pytest.fixture
def gpu():
    with simulated_gpu() as gpu:
        yield gpu


def batch(value, size=4, side=8):
    return torch.full((size, 3, side, side), float(value)).to("cuda")


def capture_with(monkeypatch, error=0.0):
    """Replace the capture by one whose replay is off by `error`; what is captured is appended to the list."""
    captures = []

    def capture(forward, images):
        fixed, maps = images.clone(), {"layer": torch.zeros_like(images[:, :1])}
        captures.append(fixed)
        return Captured(fixed, lambda: maps["layer"].copy_(fixed[:, :1] * (1 + error)), maps)

    monkeypatch.setattr(cuda_graph, "capture_graph", capture)
    return captures


def values(maps):
    return maps["layer"].unique().cpu().tolist()


def test_the_second_batch_is_captured_and_later_ones_are_replayed(gpu, network, monkeypatch):
    captures, graphed = capture_with(monkeypatch), GraphedForward()
    found = [values(graphed(network, batch(value))) for value in (1, 2, 3, 4)]
    assert found == [[1], [2], [3], [4]]
    assert len(captures) == 1
    assert network.runs == 2


def test_a_batch_of_another_size_is_not_replayed(gpu, network, monkeypatch):
    captures, graphed = capture_with(monkeypatch), GraphedForward()
    for value, size in ((1, 4), (2, 3), (3, 3), (4, 4), (5, 3), (6, 4)):
        maps = graphed(network, batch(value, size))
        assert values(maps) == [value]
        assert len(maps["layer"]) == size
    assert len(captures) == 1
    assert network.runs == 5


def test_images_of_another_side_are_captured_anew(gpu, network, monkeypatch):
    captures, graphed = capture_with(monkeypatch), GraphedForward()
    for value, side in ((1, 8), (2, 8), (3, 8), (4, 16), (5, 16), (6, 16)):
        assert values(graphed(network, batch(value, side=side))) == [value]
    assert [len(images[0, 0]) for images in captures] == [8, 16]
    assert network.runs == 4


@pytest.mark.parametrize("fault", ["capture fails", "replay differs", "replay is not a number"])
def test_a_graph_that_cannot_be_used_leaves_the_plain_pass_and_one_sentence(gpu, network, monkeypatch, caplog, fault):
    capture_with(monkeypatch, {"replay differs": 0.1, "replay is not a number": float("nan")}.get(fault, 0))
    if fault == "capture fails":

        def fail(forward, images):
            raise RuntimeError("operation not permitted when stream is capturing\nmore")

        monkeypatch.setattr(cuda_graph, "capture_graph", fail)
    graphed = GraphedForward()
    with caplog.at_level(logging.WARNING):
        assert [values(graphed(network, batch(value))) for value in (1, 2, 3)] == [[1], [2], [3]]
    assert network.runs == 3
    assert len(caplog.records) == 1
    assert "without a CUDA graph" in caplog.text
    assert "more" not in caplog.text


def test_a_driver_that_is_missing_leaves_the_plain_pass(gpu, network, caplog):
    if HAS_CUDA:
        pytest.skip("this machine has CUDA")
    graphed = GraphedForward()
    assert [values(graphed(network, batch(value))) for value in (1, 2, 3)] == [[1], [2], [3]]
    assert "without a CUDA graph" in caplog.text


def test_other_devices_are_never_captured(network, monkeypatch):
    captures, graphed = capture_with(monkeypatch), GraphedForward()
    for _ in range(3):
        graphed(network, torch.zeros(1, 3, 8, 8))
    assert not captures
    assert network.runs == 3
