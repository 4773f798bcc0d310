"""The index of shared source feature maps. Its process imports only this module, without torch, to start at once."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from delta_tune.config import ImageSettings
from delta_tune.console.format import format_bytes


@dataclass(frozen=True, slots=True)
class StepKey:
    """Everything that determines the source's maps of a training step, within a study."""

    seed: int
    batch_size: int
    images: ImageSettings
    epoch: int
    step: int
    backbone: str | None = None


@dataclass
class _Entry:
    layers: frozenset[str]
    boxed: list[Any]
    size: int


@dataclass
class Counts:
    """Counts of shared maps."""

    found: int = 0
    """Steps whose maps came from another trial."""
    left: int = 0
    """Steps whose maps were computed and shared."""
    evicted: int = 0
    size: int = 0
    """Bytes stored at the end."""

    def sentence(self, budget: int) -> str:
        """A sentence for the study's log."""
        if self.found + self.left == 0:
            return "Source feature maps: none were needed."
        share = self.found / (self.found + self.left)
        how = (
            f"all of them fitted in memory ({format_bytes(self.size)})"
            if not self.evicted
            else f"beyond the budget of {format_bytes(budget)} trials shared while they were in step"
        )
        return f"Source feature maps: {100 * share:.0f} % of the steps found them computed by another trial; {how}."


@dataclass
class SourceMapIndex:
    """Which maps are stored on each node, within a budget of bytes per node.

    It evicts the latest epochs first: every trial needs the early ones, and once pruning has left few trials, late maps
    only help trials that are in step.
    """

    budget: int
    counts: Counts = field(default_factory=Counts)
    _entries: dict[tuple[str, StepKey], _Entry] = field(default_factory=dict)
    _claimed: set[tuple[str, StepKey]] = field(default_factory=set)
    _sizes: dict[str, int] = field(default_factory=dict)

    def ask(self, node: str, key: StepKey, layers: tuple[str, ...]) -> tuple[list[Any] | None, bool]:
        """A boxed reference to maps of at least these layers; else None, and whether the caller is the first to ask."""
        entry = self._entries.get((node, key))
        if entry is not None and entry.layers >= set(layers):
            self.counts.found += 1
            return entry.boxed, False
        first = (node, key) not in self._claimed
        self._claimed.add((node, key))
        return None, first

    def leave(self, node: str, key: StepKey, layers: tuple[str, ...], boxed: list[Any], size: int) -> None:
        """Store a reference, evicting others if needed, unless the maps are already stored."""
        self.counts.left += 1
        before = self._entries.get((node, key))
        if size > self.budget or (before is not None and before.layers >= set(layers)):
            return
        self._forget(node, key)
        while self._sizes.get(node, 0) + size > self.budget:
            # The earliest step of the latest epoch: trials in step are past it
            latest = max((k for n, k in self._entries if n == node), key=lambda k: (k.epoch, -k.step))
            self._forget(node, latest)
            self.counts.evicted += 1
        self._entries[node, key] = _Entry(frozenset(layers), boxed, size)
        self._sizes[node] = self._sizes.get(node, 0) + size

    def lost(self, node: str, key: StepKey) -> None:
        """Drop maps that cannot be read because the process that computed them died."""
        self._forget(node, key)

    def report(self) -> Counts:
        """Counts so far."""
        return replace(self.counts, size=sum(self._sizes.values()))

    def _forget(self, node: str, key: StepKey) -> None:
        entry = self._entries.pop((node, key), None)
        self._claimed.discard((node, key))
        if entry is not None:
            self._sizes[node] -= entry.size
