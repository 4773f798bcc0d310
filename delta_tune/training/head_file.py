"""The file of the cache with the head that was fitted to the source's features."""

from __future__ import annotations

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from delta_tune.attention.probe_head import FittedHead
from delta_tune.filesystem.cache import Cache
from delta_tune.training.source_files import SMALL_ARRAYS_BYTES, key_array
from delta_tune.training.workplace import Say

_STATE = "head/"


def head_to_bytes(head: FittedHead, key: str) -> bytes:
    """The content of the file."""
    state = {f"{_STATE}{name}": value for name, value in head.state.items()}
    return bytes(safetensors.numpy.save({**state, "logits": head.logits, "key": key_array(key)}))


def read_head(cache: Cache, name: str, key: str, shape: tuple[int, int, int], say: Say) -> FittedHead | None:
    """The head in a file; None if there is none, or it is damaged.

    Args:
        cache: where the file is.
        name: of the file.
        key: of what the head should have been fitted to.
        shape: images, channels that enter the head, and classes.
        say: called with a sentence about a damaged file.
    """
    images, channels, classes = shape
    try:
        content = cache.read(name, 4 * classes * (images + channels + 1) + SMALL_ARRAYS_BYTES)
        if content is None:
            return None
        arrays = safetensors.numpy.load(content)
        if not np.array_equal(arrays.pop("key"), key_array(key)):
            raise ValueError("it was fitted to something else")
        logits = arrays.pop("logits")
        state = {each.removeprefix(_STATE): array for each, array in arrays.items()}
        sizes = {each: array.size for each, array in state.items()}
        rows = {len(array) for array in state.values() if array.ndim}
        if logits.shape != (images, classes) or rows != {classes}:
            raise ValueError("its arrays have other shapes")
        if sizes != {"weight": channels * classes} | ({"bias": classes} if "bias" in sizes else {}):
            raise ValueError("it has other arrays than the head")
        if not all(each.dtype == np.float32 and np.isfinite(each).all() for each in (logits, *state.values())):
            raise ValueError("an array is not finite")
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        say(f"Source: {cache.path(name)} is damaged ({error}) and fitted again.")
        return None
    return FittedHead(state=state, logits=logits)
