"""Attention on the cluster: rounds of probe images split over actors that have the trials' resources.

How the work is split changes no bit of the result: losses are computed in blocks of images that no split crosses, layer
by layer, and put together in the order of the images.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import ray
import torch
from ray.util import ActorPool
from torch import Tensor

from delta_tune.attention.ablation import IMAGES_AT_ONCE
from delta_tune.attention.measurement import Ablate, ProbeJob, Runner
from delta_tune.cluster.shared_objects import get_shared, put_shared
from delta_tune.data.dataset import Bar

MAX_DEATHS = 3
_Work = tuple[range, tuple[str, ...]]


class _Actor:
    """A prober in a process of its own."""

    def __init__(self, shelf: str, device: str, threads: int) -> None:
        torch.set_num_threads(threads)
        prober: ProbeJob = get_shared(shelf)  # and not an argument, which Ray could not give to a restarted actor
        self._ready = prober.on(torch.device(device))

    def notes(self) -> list[str]:
        """Of layers that are slow, and why."""
        return self._ready.notes

    def losses(self, place: int, work: _Work) -> tuple[int, dict[str, Tensor]]:
        """The losses per image of one piece of work, and its place among all."""
        return place, self._ready.losses(*work)


def ray_runner(*, cpus: float, gpus: float, slots: int, threads: int, device: str, bar: Bar) -> Runner:
    """A runner on `slots` actors with `cpus` CPUs and `gpus` GPUs each. The death of one costs what it was at."""

    @contextmanager
    def runner(prober: ProbeJob, _: torch.device, say: Callable[[str], None]) -> Iterator[Ablate]:
        actor = ray.remote(num_cpus=cpus, num_gpus=gpus, max_restarts=MAX_DEATHS, max_task_retries=MAX_DEATHS)(_Actor)
        shelf = f"prober-{uuid.uuid4().hex}"
        actors = []
        with put_shared(prober, shelf):
            try:
                actors = [actor.remote(shelf, device, threads) for _ in range(slots)]
                for note in ray.get(actors[0].notes.remote()):
                    say(f"          {note}.")
                yield _ablate_on(ActorPool(actors), prober, slots, bar)
            finally:
                for each in actors:
                    ray.kill(each)

    return runner


def _ablate_on(pool: ActorPool, prober: ProbeJob, slots: int, bar: Bar) -> Ablate:
    def ablate(positions: range, layers: tuple[str, ...]) -> dict[str, Tensor]:
        pieces = chunk_work(positions, layers, slots)
        channels = sum(prober.backbone.channels[layer] for layer in layers)
        text = f"Attention: images {positions.start + 1} to {positions.stop}, {len(layers)} layers"
        found: dict[int, dict[str, Tensor]] = {}
        with bar(text, channels * len(positions)) as advance:
            work = pool.map_unordered(lambda each, piece: each.losses.remote(*piece), list(enumerate(pieces)))
            for place, losses in work:
                found[place] = losses
                advance(sum(each.numel() for each in losses.values()))
        done = [found[place] for place in range(len(pieces))]
        return {layer: torch.cat([each[layer] for each in done if layer in each]) for layer in layers}

    return ablate


def chunk_work(positions: range, layers: tuple[str, ...], slots: int) -> list[_Work]:
    """Blocks of images with all layers, which share a forward pass, or with one each where slots would stay empty."""
    blocks = [positions[i : i + IMAGES_AT_ONCE] for i in range(0, len(positions), IMAGES_AT_ONCE)]
    if len(blocks) >= 2 * slots:
        return [(block, layers) for block in blocks]
    return [(block, (layer,)) for block in blocks for layer in layers]
