"""Source feature maps shared by the trials of a study through Ray's object store, within a memory budget."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import ray
import torch
from ray.exceptions import GetTimeoutError, RayActorError, RayError
from torch import Tensor

from delta_tune.cluster.failures import STORE_ERRORS
from delta_tune.cluster.shared_objects import NAMESPACE, driver_actor_options
from delta_tune.training.source_map_index import SourceMapIndex, StepKey

STORE_SHARE = 0.4
"""Of the object store, for maps; the rest is the data's and Ray's own."""
TIMEOUT_S = 10.0


@contextlib.contextmanager
def shared_source_maps(name: str, budget: int) -> Iterator[Any]:
    """A shelf that `RaySourceMaps(name)` finds anywhere in the cluster; it and all maps are gone afterwards."""
    shelf = ray.remote(SourceMapIndex).options(name=name, **driver_actor_options()).remote(budget)
    try:
        yield shelf
    finally:
        ray.kill(shelf)


def source_map_budget() -> int:
    """Bytes of maps that a node may hold."""
    stores = [node["Resources"].get("object_store_memory", 0) for node in ray.nodes() if node["Alive"]]
    return int(STORE_SHARE * min(stores))


class RaySourceMaps:
    """A trial's side of the shelf. Maps are shared within a node only: over a network they are computed as fast."""

    def __init__(self, name: str) -> None:
        self._shelf = ray.get_actor(name, namespace=NAMESPACE)
        self._node = ray.get_runtime_context().get_node_id()

    def ask(self, key: StepKey, layers: tuple[str, ...]) -> tuple[dict[str, Tensor] | None, bool]:
        """See `MapStore`."""
        try:
            boxed, first = ray.get(self._shelf.ask.remote(self._node, key, layers), timeout=TIMEOUT_S)
            if boxed is None:
                return None, first
            found = ray.get(boxed[0], timeout=TIMEOUT_S)
        except (RayActorError, GetTimeoutError):  # the shelf is gone or too busy: do without
            return None, False
        except RayError:  # the worker that owned the maps died
            self._shelf.lost.remote(self._node, key)
            return None, False
        return {layer: torch.from_numpy(found[layer].copy()).permute(0, 3, 1, 2) for layer in layers}, False

    def leave(self, key: StepKey, maps: Mapping[str, Tensor]) -> None:
        """See `MapStore`."""
        arrays = {layer: np.ascontiguousarray(each.permute(0, 2, 3, 1).numpy()) for layer, each in maps.items()}
        size = sum(array.nbytes for array in arrays.values())
        try:
            kept = ray.put(arrays)
        except STORE_ERRORS:  # what others fill the store with is no reason to end: do without
            return
        self._shelf.leave.remote(self._node, key, tuple(maps), [kept], size)
