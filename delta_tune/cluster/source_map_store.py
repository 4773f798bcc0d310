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
"""Share of the object store for maps; the rest is for the data and Ray itself."""
TIMEOUT_S = 10.0


@contextlib.contextmanager
def shared_source_maps(name: str, budget: int) -> Iterator[Any]:
    """An index actor that `RaySourceMaps(name)` finds; it and all maps are freed after the block."""
    index = ray.remote(SourceMapIndex).options(name=name, **driver_actor_options()).remote(budget)
    try:
        yield index
    finally:
        ray.kill(index)


def source_map_budget() -> int:
    """Bytes of maps that one node may hold."""
    stores = [node["Resources"].get("object_store_memory", 0) for node in ray.nodes() if node["Alive"]]
    return int(STORE_SHARE * min(stores))


class RaySourceMaps:
    """A trial's access to shared maps. Only within a node: fetching them over a network takes as long as computing."""

    def __init__(self, name: str) -> None:
        self._index = ray.get_actor(name, namespace=NAMESPACE)
        self._node = ray.get_runtime_context().get_node_id()

    def ask(self, key: StepKey, layers: tuple[str, ...]) -> tuple[dict[str, Tensor] | None, bool]:
        """See `MapStore`."""
        try:
            boxed, first = ray.get(self._index.ask.remote(self._node, key, layers), timeout=TIMEOUT_S)
            if boxed is None:
                return None, first
            found = ray.get(boxed[0], timeout=TIMEOUT_S)
        except (RayActorError, GetTimeoutError):  # the index is gone or too busy: compute the maps
            return None, False
        except RayError:  # the worker that owned the maps died
            self._index.lost.remote(self._node, key)
            return None, False
        return {layer: torch.from_numpy(found[layer].copy()).permute(0, 3, 1, 2) for layer in layers}, False

    def leave(self, key: StepKey, maps: Mapping[str, Tensor]) -> None:
        """See `MapStore`."""
        arrays = {layer: np.ascontiguousarray(each.permute(0, 2, 3, 1).numpy()) for layer, each in maps.items()}
        size = sum(array.nbytes for array in arrays.values())
        try:
            kept = ray.put(arrays)
        except STORE_ERRORS:  # the store is full: go on without sharing
            return
        self._index.leave.remote(self._node, key, tuple(maps), [kept], size)
