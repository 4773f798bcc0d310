"""The private operators of oneDNN, and what runs where PyTorch has none of them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from delta_tune.models import onednn
from delta_tune.models.fused_convolution import activation_of, conv_of


@pytest.fixture
def without_the_answer():
    """`available` asks anew in the test and after it."""
    onednn.available.cache_clear()
    yield
    onednn.available.cache_clear()


@pytest.fixture(params=["fused", "plain"])
def kernels(request, monkeypatch):
    """Both ways to convolve."""
    if request.param == "fused" and not onednn.available():
        pytest.skip("this PyTorch has no oneDNN")
    monkeypatch.setattr(onednn, "available", lambda: request.param == "fused")
    return request.param


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this PyTorch has no oneDNN")
def test_operators_of_the_pytorch_that_is_pinned_are_as_expected(without_the_answer):
    assert onednn.available()


@pytest.mark.parametrize("error", [AttributeError, RuntimeError, TypeError])
def test_operators_that_are_gone_are_not_available(without_the_answer, monkeypatch, error):
    def gone(*args, **kwargs):
        raise error("no such operator")

    monkeypatch.setattr(onednn, "convolve_and_add", gone)
    assert not onednn.available()


def test_operators_that_compute_something_else_are_not_available(without_the_answer, monkeypatch):
    convolve = onednn.convolve
    monkeypatch.setattr(onednn, "convolve", lambda *args: convolve(*args[:4]))  # knows no activations
    assert not onednn.available()


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("activation", [None, nn.ReLU(), nn.ReLU6(), nn.SiLU(), nn.Hardswish(), nn.Hardsigmoid()])
@pytest.mark.parametrize("options", [{"stride": 2, "padding": 1}, {"groups": 4, "padding": 2, "dilation": 2}])
def test_convolution_sum_and_activation_are_those_of_the_modules(kernels, options, activation, overwrite):
    torch.manual_seed(0)
    module = nn.Conv2d(4, 8, 3, **options).requires_grad_(False)
    x = torch.randn(2, 4, 9, 9).contiguous(memory_format=torch.channels_last)
    plain = module(x)
    addend = torch.randn_like(plain)
    then = activation or nn.Identity()
    fused = activation_of(activation) if activation else None
    conv = conv_of(module)
    torch.testing.assert_close(conv(x, fused), then(plain), rtol=1e-5, atol=1e-5)
    expected, before = then(plain + addend), addend.clone()
    torch.testing.assert_close(conv(x, fused, addend, overwrite), expected, rtol=1e-5, atol=1e-5)
    assert overwrite or torch.equal(addend, before)
