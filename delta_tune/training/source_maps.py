"""The frozen source's feature maps of a training batch: computed, or taken from another trial of the study.

All trials of a study share seed and order, so trials with the same batch size and the same settings of their images see
the same ones in the same step, with the same source maps. The first trial to reach a step computes its maps before its
own forward pass. The others look again after theirs and wait at most half the time that computing takes; if the maps
are still missing, they compute them. So a trial that dies costs another one at most that wait.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor, nn

from delta_tune.models.cuda_graph import GraphedForward
from delta_tune.models.feature_maps import FeatureMaps, feature_maps
from delta_tune.models.map_layout import CHANNELS_FIRST, MapLayout, named_parts
from delta_tune.training.source_map_index import StepKey


class SourceMapStore(Protocol):
    """Where trials share maps, by the names of `MapLayout.part_names`. A map (B, C, H, W) comes back bit-identical."""

    def ask(self, key: StepKey, names: tuple[str, ...]) -> tuple[dict[str, Tensor] | None, bool]:
        """The maps of at least these names if they are stored; else whether the caller is the first to ask."""

    def leave(self, key: StepKey, maps: Mapping[str, Tensor]) -> None:
        """Store maps for other trials."""


class SourceMaps:
    """The source's maps, step by step."""

    def __init__(
        self,
        source: nn.Module,
        layers: tuple[str, ...],
        store: SourceMapStore | None = None,
        layouts: Mapping[str, MapLayout] | None = None,
    ) -> None:
        """Take the source and the layers whose outputs are compared; those without a layout return (B, C, H, W)."""
        self._source, self._layers, self._store = source, layers, store
        self._layouts = {layer: (layouts or {}).get(layer, CHANNELS_FIRST) for layer in layers}
        self._names = tuple(name for layer, layout in self._layouts.items() for name in layout.part_names(layer))
        self._hooks: FeatureMaps | None = None
        # Another trial may still read what is in the store: only maps that stay here may lie in a graph's memory
        self._graphed = GraphedForward() if store is None else None
        self._patience_s = 0.0
        self._found: Mapping[str, Tensor] | None = None

    @contextmanager
    def hooked(self) -> Iterator[None]:
        """Compute maps on demand while the block runs."""
        with feature_maps(self._source, self._layers, stop=True) as self._hooks:
            try:
                yield
            finally:
                self._hooks = self._found = None

    def before(self, images: Tensor, key: StepKey) -> None:
        """Called before the target's forward pass of `images`."""
        self._found = None
        if self._store is None:
            return
        self._found, first = self._store.ask(key, self._names)
        if first:
            self._found = self._compute(images)
            self._store.leave(key, self._found)

    def after(self, images: Tensor, key: StepKey) -> Mapping[str, Tensor]:
        """{name: (B, C, H, W)} of all layers' parts, without gradient; called after it."""
        if self._found is None and self._store is not None:
            self._found = self._wait(key, self._store)
            if self._found is None:
                self._found = self._compute(images)
                self._store.leave(key, self._found)
        return self._compute(images) if self._found is None else self._found

    def _wait(self, key: StepKey, store: SourceMapStore) -> Mapping[str, Tensor] | None:
        deadline = time.perf_counter() + self._patience_s
        while True:
            found, first = store.ask(key, self._names)
            if found is not None or first or time.perf_counter() >= deadline:
                return found
            time.sleep(self._patience_s / 50)

    def _compute(self, images: Tensor) -> Mapping[str, Tensor]:
        start = time.perf_counter()
        with torch.no_grad():
            maps = self._run(images) if self._graphed is None else self._graphed(self._run, images)
        self._patience_s = (time.perf_counter() - start) / 2
        return maps

    def _run(self, images: Tensor) -> Mapping[str, Tensor]:
        assert self._hooks is not None, "maps are asked for within hooked()"
        return named_parts(self._hooks.run(images), self._layouts)
