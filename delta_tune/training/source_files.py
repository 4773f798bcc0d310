"""Files of the cache with what a pass over images measured on the source."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from delta_tune.filesystem.cache import Cache
from delta_tune.training.workplace import Say

SMALL_ARRAYS_BYTES = 2**20
"""At most, of a file of features in the cache without the features."""


def key_array(key: str) -> np.ndarray:
    """A key as the array that binds a file of the cache to it."""
    return np.frombuffer(key.encode(), np.uint8)


def read_source(cache: Cache, name: str, key: str, shape: tuple[int, int, int], say: Say) -> dict[str, np.ndarray]:
    """The arrays of a file; {} if there is none, or it is damaged.

    Args:
        cache: where the file is.
        name: of the file.
        key: of what the arrays should have been measured for.
        shape: images, channels and positions of the features.
        say: called with a sentence about a damaged file.
    """
    images, channels, positions = shape
    try:
        content = cache.read(name, 4 * images * channels * positions + SMALL_ARRAYS_BYTES)
        if content is None:
            return {}
        arrays = safetensors.numpy.load(content)
        _check(arrays, key, (images, channels))
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        say(f"Source: {cache.path(name)} is damaged ({error}) and measured again.")
        return {}
    return arrays


def _check(arrays: Mapping[str, np.ndarray], key: str, shape: tuple[int, int]) -> None:
    """Refuse arrays that were measured for something else, have another shape, or are not finite.

    Raises:
        KeyError: an array is missing.
        ValueError: says which array is wrong.
    """
    if not np.array_equal(arrays["key"], key_array(key)):
        raise ValueError("it was measured for something else")
    features = arrays["features"]
    if features.ndim not in (2, 4) or features.shape[:2] != shape:
        raise ValueError(f"features have the shape {features.shape}")
    for name, array in arrays.items():
        if array.ndim != {"mean_square": 0, "sums": 1}.get(name.split("/")[0], array.ndim):
            raise ValueError(f"{name} has the shape {array.shape}")
        if name != "key" and not (array.dtype.kind == "f" and np.isfinite(array).all()):
            raise ValueError(f"{name} is not finite")
    if features.dtype != np.float32:
        raise ValueError(f"features are {features.dtype}")
