"""Measure attention on the cluster: actors with a trial's resources share the probe images of each round.

The split does not change a bit of the result: losses are computed layer by layer in fixed blocks of images, which are
never divided, and joined in image order.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray
import torch
from ray.exceptions import RayActorError
from ray.util import ActorPool
from torch import Tensor

from delta_tune.attention.ablation import IMAGES_AT_ONCE
from delta_tune.attention.measurement import Ablate, ProbeJob, ProbeWorker, Runner
from delta_tune.cluster.assigned_gpu import use_assigned_gpu
from delta_tune.cluster.failures import BrokenGpuError, ExternalFailure, device_faults_named
from delta_tune.cluster.gpu_sharing import limit_memory
from delta_tune.cluster.resources import IDLE_S, NODE_WAIT_S
from delta_tune.cluster.shared_objects import get_shared, leave_words, left_words, put_shared
from delta_tune.data.dataset import Bar

MAX_DEATHS = 3
START_S = 30.0
_Work = tuple[range, tuple[str, ...]]


class _Actor:
    """A probe worker in its own process; it ends the process if the GPU's context breaks, and Ray starts another."""

    def __init__(self, shelf: str, device: str, gpus: float, threads: int) -> None:
        torch.set_num_threads(threads)
        self._shelf, self._device, self._gpus = shelf, device, gpus
        self._ready: ProbeWorker | None = None

    def notes(self) -> list[str]:
        """Which layers are slow, and why."""
        with self._faults_named():
            return self._worker().notes

    def losses(self, index: int, work: _Work) -> tuple[int, dict[str, Tensor]]:
        """The losses per image of one chunk, and the chunk's index."""
        with self._faults_named():
            return index, self._worker().losses(*work)

    def _worker(self) -> ProbeWorker:
        """The probe worker, made at its first use: Ray raises what fails in a constructor without its class."""
        if self._ready is None:
            if self._device != "cpu":
                use_assigned_gpu()
                limit_memory(self._gpus)
            job: ProbeJob = get_shared(self._shelf)  # not an argument: Ray could not pass it to a restarted actor
            self._ready = job.on(torch.device(self._device))
        return self._ready

    @contextmanager
    def _faults_named(self) -> Iterator[None]:
        try:
            with device_faults_named("attention"):
                yield
        except BrokenGpuError as error:
            leave_words(self._shelf, str(error))
            os._exit(1)


def ray_runner(*, cpus: float, gpus: float, slots: int, threads: int, device: str, bar: Bar) -> Runner:
    """A runner on `slots` actors with these CPUs and GPUs each. If one dies, only its current chunk is repeated."""

    @contextmanager
    def runner(job: ProbeJob, _: torch.device, say: Callable[[str], None]) -> Iterator[Ablate]:
        actor_class = ray.remote(num_cpus=cpus, num_gpus=gpus, max_restarts=MAX_DEATHS, max_task_retries=MAX_DEATHS)(
            _Actor
        )
        shelf = f"probe-job-{uuid.uuid4().hex}"
        actors = []
        with put_shared(job, shelf):
            try:
                actors = [actor_class.remote(shelf, device, gpus, threads) for _ in range(slots)]
                started = _started(actors, say)
                for note in ray.get(started[0].notes.remote()):
                    say(f"          {note}.")
                yield _ablate_on(ActorPool(started), job, len(started), bar)
            except RayActorError as error:
                if not (words := left_words(shelf)):
                    raise
                raise ExternalFailure(f"{words[-1]} ({len(words)} processes ended so)") from error
            finally:
                for actor in actors:
                    ray.kill(actor)

    return runner


def _started(actors: list[Any], say: Callable[[str], None]) -> list[Any]:
    """The actors that have started by `START_S` after the first: others may use the resources of the rest.

    Raises:
        ExternalFailure: none could start for `NODE_WAIT_S`.
    """
    answers = {actor.notes.remote(): actor for actor in actors}
    if not ray.wait(list(answers), num_returns=1, timeout=IDLE_S)[0]:
        minutes = f"{NODE_WAIT_S / 60:g} minutes"
        say(f"Attention: no worker has started for {IDLE_S:g} s, others use the cluster; waiting up to {minutes}.")
        if not ray.wait(list(answers), num_returns=1, timeout=NODE_WAIT_S)[0]:
            raise ExternalFailure(f"others used what the cluster has, and attention had no worker for {minutes}")
    ready, _ = ray.wait(list(answers), num_returns=len(actors), timeout=START_S)
    return [actor for answer, actor in answers.items() if answer in set(ready)]


def _ablate_on(pool: ActorPool, job: ProbeJob, slots: int, bar: Bar) -> Ablate:
    def ablate(positions: range, layers: tuple[str, ...]) -> dict[str, Tensor]:
        chunks = chunk_work(positions, layers, slots)
        channels = sum(job.backbone.channels[layer] for layer in layers)
        text = f"Attention: images {positions.start + 1} to {positions.stop}, {len(layers)} layers"
        by_index: dict[int, dict[str, Tensor]] = {}
        with bar(text, channels * len(positions)) as advance:
            work = pool.map_unordered(lambda actor, chunk: actor.losses.remote(*chunk), list(enumerate(chunks)))
            for index, losses in work:
                by_index[index] = losses
                advance(sum(tensor.numel() for tensor in losses.values()))
        in_order = [by_index[index] for index in range(len(chunks))]
        return {layer: torch.cat([losses[layer] for losses in in_order if layer in losses]) for layer in layers}

    return ablate


def chunk_work(positions: range, layers: tuple[str, ...], slots: int) -> list[_Work]:
    """Blocks of images with all layers, which share a forward pass; with one layer each if slots would stay empty."""
    blocks = [positions[i : i + IMAGES_AT_ONCE] for i in range(0, len(positions), IMAGES_AT_ONCE)]
    if len(blocks) >= 2 * slots:
        return [(block, layers) for block in blocks]
    return [(block, (layer,)) for block in blocks for layer in layers]
