"""The file of the cache with the head that was fitted to the source's features."""

from __future__ import annotations

import numpy as np
import safetensors.numpy
import torch
from safetensors import SafetensorError

from delta_tune.attention.probe_head import FittedHead
from delta_tune.filesystem.cache import Cache
from delta_tune.models.backbones import Backbone
from delta_tune.training.source_files import SMALL_ARRAYS_BYTES, key_array
from delta_tune.training.workplace import Say

_STATE = "head/"


def head_to_bytes(head: FittedHead, key: str) -> bytes:
    """The content of the file."""
    state = {f"{_STATE}{name}": value for name, value in head.state.items()}
    return bytes(safetensors.numpy.save({**state, "logits": head.logits.numpy(), "key": key_array(key)}))


def read_head(
    cache: Cache, name: str, key: str, backbone: Backbone, shape: tuple[int, int], say: Say
) -> FittedHead | None:
    """The head in a file; None if there is none, or it is damaged.

    Args:
        cache: where the file is.
        name: of the file.
        key: of what the head should have been fitted to.
        backbone: whose head has the same parameters, for other classes.
        shape: images and classes.
        say: called with a sentence about a damaged file.
    """
    images, classes = shape
    like = {
        name.removeprefix(f"{backbone.head}."): (classes, *value.shape[1:])
        for name, value in backbone.state.items()
        if name.startswith(f"{backbone.head}.")
    }
    wanted = {f"{_STATE}{part}": size for part, size in like.items()} | {"logits": (images, classes)}
    try:
        content = cache.read(name, 4 * sum(int(np.prod(size)) for size in wanted.values()) + SMALL_ARRAYS_BYTES)
        if content is None:
            return None
        arrays = safetensors.numpy.load(content)
        if not np.array_equal(arrays.pop("key"), key_array(key)):
            raise ValueError("it was fitted to something else")
        found = {part: array.shape for part, array in arrays.items()}
        if found != wanted or not all(a.dtype == np.float32 and np.isfinite(a).all() for a in arrays.values()):
            raise ValueError("it has other arrays than the head")
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        say(f"Source: {cache.path(name)} is damaged ({error}) and fitted again.")
        return None
    state = {part: arrays[f"{_STATE}{part}"] for part in like}
    return FittedHead(state=state, logits=torch.from_numpy(arrays["logits"]))
