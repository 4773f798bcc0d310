from __future__ import annotations

import socket
import threading
import time
from types import SimpleNamespace

import pytest
import torch

from delta_tune.config import Candidate
from delta_tune.models import availability
from delta_tune.models.availability import answers, at_hand, why_missing


@pytest.fixture(autouse=True)
def no_network(monkeypatch, tmp_path):
    """Nothing is cached, nothing answers, and the tests of one another know nothing."""
    answers.cache_clear()
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: None)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(availability.urllib.request, "getproxies", dict)

    def refuse(*_, **__):
        raise ConnectionRefusedError

    monkeypatch.setattr(socket, "create_connection", refuse)
    yield
    answers.cache_clear()


@pytest.mark.parametrize(
    ("model", "why"),
    [
        ("resnet50", "not in the cache, and download.pytorch.org does not answer"),
        ("timm:convnext_tiny.in12k_ft_in1k", "not in the cache, and huggingface.co does not answer"),
        ("timm:nonesuch", "not in this version of its library"),
        ("timm:test_resnet.nonesuch", "not in this version of its library"),
        ("nonesuch", "not in this version of its library"),
    ],
)
def test_reason_names_the_host(model, why):
    assert why_missing(model) == why


def test_weights_in_the_cache_of_torch_are_there(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "resnet50-11ad3fa6.pth").touch()
    assert why_missing("resnet50") == ""


def test_weights_in_the_cache_of_the_hub_are_there(monkeypatch):
    def found(repository, name):
        return "/there" if (repository, name) == ("timm/convnext_tiny.in12k_ft_in1k", "model.safetensors") else None

    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", found)
    assert why_missing("timm:convnext_tiny.in12k_ft_in1k") == ""


def test_hub_that_must_not_be_asked_is_not(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(availability, "answers", lambda host: pytest.fail(f"{host} was asked"))
    assert why_missing("timm:convnext_tiny.in12k_ft_in1k") == "not in the cache, and HF_HUB_OFFLINE is set"


def test_host_that_answers_has_the_weights(monkeypatch):
    monkeypatch.setattr(socket, "create_connection", lambda place, timeout: SimpleNamespace(close=lambda: None))
    assert why_missing("resnet50") == ""


def test_proxy_stands_for_the_host(monkeypatch):
    asked = []
    monkeypatch.setattr(availability.urllib.request, "getproxies", lambda: {"https": "http://proxy.example:8080"})
    monkeypatch.setattr(availability.urllib.request, "proxy_bypass", lambda host: False)
    monkeypatch.setattr(
        socket, "create_connection", lambda place, timeout: asked.append(place) or SimpleNamespace(close=lambda: None)
    )
    assert answers("huggingface.co")
    assert asked == [("proxy.example", 8080)]


def test_host_that_never_answers_is_waited_for_once(monkeypatch):
    done = threading.Event()

    def silent(place, timeout):
        done.wait(60)
        raise TimeoutError

    monkeypatch.setattr(socket, "create_connection", silent)
    monkeypatch.setattr(availability, "WAIT_S", 0.2)
    began = time.monotonic()
    assert not any(answers("silent.example") for _ in range(20))
    assert time.monotonic() - began < 2
    done.set()


def test_demo_weights_stand_for_those_of_its_model():
    assert at_hand(Candidate("timm:tf_efficientnet_lite0", listed=True)).weights == "demo"
    assert at_hand(Candidate("resnet50", listed=True)).weights is None


def test_named_model_keeps_the_weights_that_were_asked_for():
    named = Candidate("timm:tf_efficientnet_lite0", None)
    assert at_hand(named) == named
