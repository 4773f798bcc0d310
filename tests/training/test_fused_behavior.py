"""The behaviour term's kernels against its plain form; the kernels themselves run in Triton's interpreter."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.simulated_gpu import simulated_gpu

from delta_tune.models.map_layout import MapLayout
from delta_tune.training import fused_behavior, regularizers

SHAPES = [(3, 5, 7, 6), (2, 8, 33, 33), (4, 3, 1, 1)]


def maps_of(dtype, layout, device="cpu"):
    """Targets, sources and factors of three layers, the largest of more elements than a block."""
    generator = torch.Generator().manual_seed(0)

    def drawn(shape):
        drawn = torch.randn(shape, generator=generator).to(dtype=dtype).contiguous(memory_format=layout)
        return drawn.to(device)

    sources = [drawn(shape) for shape in SHAPES]
    targets = [(s + drawn(s.shape)).requires_grad_() for s in sources]
    return targets, sources, [torch.rand(s[1], generator=generator).to(device) for s in SHAPES]


def value_and_gradients(term, targets, sources, factors):
    value = term(targets, sources, factors)
    return [value.detach().float(), *(g.float() for g in torch.autograd.grad(3 * value, targets))]


def test_kernels_equal_the_plain_form_in_tritons_interpreter():
    """In a process of its own, because Triton looks for TRITON_INTERPRET when it is imported."""
    pytest.importorskip("triton", reason="Triton comes with torch's CUDA wheels only")
    folder = str(Path(__file__).parent)
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join([*sys.path, folder])}
    code = "import test_fused_behavior as tests; tests.compare_kernels()"
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]


def compare_kernels():
    fused_behavior._PROGRAMS = 3  # the interpreter runs them one after the other
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for layout in (torch.channels_last, torch.contiguous_format):
            targets, sources, factors = maps_of(dtype, layout)
            value, *gradients = value_and_gradients(regularizers._plain_behavior, targets, sources, factors)
            targets = [t.detach() for t in targets]
            torch.testing.assert_close(fused_behavior._on_device(targets, sources, factors), value, rtol=1e-5, atol=0)
            found = fused_behavior._backward_on_device(torch.tensor(3.0), targets, sources, factors)
            tolerance = 1e-5 if dtype == torch.float32 else 1e-2
            for expected, each in zip(gradients, found, strict=True):
                assert each.dtype == dtype
                torch.testing.assert_close(each.float(), expected, rtol=tolerance, atol=tolerance / 10)


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format], ids=["channels_last", "contiguous"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_operator_and_its_gradient_equal_the_plain_form(dtype, layout):
    given = maps_of(dtype, layout)
    expected = value_and_gradients(regularizers._plain_behavior, *given)
    for plain, fused in zip(expected, value_and_gradients(fused_behavior.fused_behavior, *given), strict=True):
        torch.testing.assert_close(fused, plain, rtol=1e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-6)


@pytest.fixture
def unchecked(monkeypatch):
    """No device has been asked yet, and Triton is there."""
    monkeypatch.setattr(fused_behavior, "_checked", {})
    monkeypatch.setattr(fused_behavior, "triton", True)


def as_layers(targets, sources, factors):
    return tuple({str(i): x for i, x in enumerate(each)} for each in (targets, sources, factors))


def operators(gpu):
    return {call.operator for call in gpu.launches}


def test_a_gpu_computes_the_term_with_the_kernels(unchecked):
    with simulated_gpu() as gpu:
        given = as_layers(*maps_of(torch.bfloat16, torch.channels_last, "cuda"))
        regularizers.behavior(*given)
        gpu.clear()
        regularizers.behavior(*given).backward()
        assert {"behavior", "behavior_backward"} <= operators(gpu)
        assert not gpu.waits


@pytest.mark.parametrize("fault", ["wrong", "fails"])
def test_kernels_that_cannot_be_used_leave_the_plain_form_and_one_sentence(unchecked, monkeypatch, caplog, fault):
    def broken(*maps):
        if fault == "fails":
            raise FileNotFoundError("no C compiler")
        return 1.1 * regularizers._plain_behavior(*maps)

    monkeypatch.setattr(fused_behavior, "fused_behavior", broken)
    with caplog.at_level(logging.WARNING), simulated_gpu():
        targets, sources, factors = maps_of(torch.bfloat16, torch.channels_last, "cuda")
        expected = regularizers._plain_behavior(targets, sources, factors)
        for _ in range(2):
            found = regularizers.behavior(*as_layers(targets, sources, factors))
            assert found.item() == expected.item()
    assert len(caplog.records) == 1
    assert {"wrong": "differs", "fails": "no C compiler"}[fault] in caplog.text


@pytest.mark.parametrize("change", ["type", "layout", "gaps", "no triton", "cpu"])
def test_other_maps_are_computed_by_the_plain_form(unchecked, monkeypatch, change):
    targets, sources, factors = maps_of(torch.bfloat16, torch.channels_last)
    if change == "type":
        sources = [s.float() for s in sources]
    elif change == "layout":
        sources = [s.contiguous() for s in sources]
    elif change == "no triton":
        monkeypatch.setattr(fused_behavior, "triton", None)
    with simulated_gpu():
        if change != "cpu":
            targets, sources, factors = ([x.to("cuda") for x in group] for group in (targets, sources, factors))
        if change == "gaps":
            targets, sources = ([torch.cat((x, x), dim=3)[..., ::2] for x in group] for group in (targets, sources))
        assert not fused_behavior.usable(targets, sources, factors, regularizers._plain_behavior)


@pytest.mark.parametrize("shape", [(4, 16, 8), (4, 3, 3, 8)], ids=["tokens", "channels last"])
def test_maps_of_token_networks_are_computed_by_the_kernels_as_they_are(unchecked, shape):
    with simulated_gpu():
        outputs = [torch.randn(shape, dtype=torch.bfloat16, device="cuda") for _ in range(2)]
        targets, sources = (MapLayout(channels_last=True).parts(each) for each in outputs)
        assert fused_behavior._inner(targets[0]) == 1
        factors = [torch.full((8,), 0.1, device="cuda")]
        assert fused_behavior.usable(targets, sources, factors, regularizers._plain_behavior)


def test_maps_beside_a_class_token_are_computed_by_the_plain_form(unchecked):
    with simulated_gpu():
        outputs = [torch.randn(4, 17, 8, dtype=torch.bfloat16, device="cuda") for _ in range(2)]
        targets, sources = (MapLayout(channels_last=True, prefix_tokens=1).parts(each) for each in outputs)
        factors = [torch.full((8,), 0.1, device="cuda")] * 2
        assert not fused_behavior.usable(targets, sources, factors, regularizers._plain_behavior)
