"""Workers that measure: actors with a trial's resources, which share the parts of a split or the probe images.

The parts do not change a bit of the result: a split is divided between batches, losses are computed layer by layer in
fixed blocks of images, which are never divided, and both are joined in image order.
"""

from __future__ import annotations

import itertools
import math
import os
import threading
import time
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

import ray
import torch
from ray.exceptions import GetTimeoutError, RayError, RayTaskError
from ray.util import ActorPool
from torch import Tensor

from delta_tune.attention.ablation import IMAGES_AT_ONCE
from delta_tune.attention.measurement import ProbeJob, Prober, ProbeWorker
from delta_tune.cluster.assigned_gpu import use_assigned_gpu
from delta_tune.cluster.failures import STORE_ERRORS, BrokenGpuError, ExternalFailure, device_faults_named
from delta_tune.cluster.gpu_sharing import limit_memory
from delta_tune.cluster.resources import IDLE_S, NODE_WAIT_S, Resources
from delta_tune.cluster.shared_objects import get_shared, leave_words, left_words, put_shared
from delta_tune.data.loading import Bar
from delta_tune.models.backbones import Backbone
from delta_tune.models.devices import torch_threads
from delta_tune.training.workplace import Say

T = TypeVar("T")
MAX_DEATHS = 3
START_S = 30.0
_Work = tuple[range, tuple[str, ...]]


class _Actor:
    """A worker in its own process; it ends the process if the GPU's context breaks, and Ray starts another.

    Args:
        desk: where it leaves words before that, for the pool.
        resources: what it gets.
    """

    def __init__(self, desk: str, resources: Resources) -> None:
        torch.set_num_threads(resources.threads)
        self._desk, self._device = desk, torch.device(resources.device)
        if resources.device != "cpu":
            use_assigned_gpu()
            limit_memory(resources.gpus_per_trial)
        self._probing: tuple[str, ProbeWorker] | None = None

    def ready(self) -> None:
        """Return once the worker has started."""

    def compute(self, function: Callable[..., T], part: tuple[Any, ...], *args: Any) -> T:
        """`function(*args, device, *part)`."""
        with self._faults_named():
            return function(*args, self._device, *part)

    def notes(self, shelf: str) -> list[str]:
        """Which layers are slow, and why."""
        with self._faults_named():
            return self._prober(shelf).notes

    def losses(self, shelf: str, index: int, work: _Work) -> tuple[int, dict[str, Tensor]]:
        """The losses per image of one chunk, and the chunk's index."""
        with self._faults_named():
            return index, self._prober(shelf).losses(*work)

    def first_order(self, shelf: str, index: int, work: _Work, threads: int) -> tuple[int, dict[str, Tensor]]:
        """The first-order estimate of the same losses, with so many threads: its sums depend on them."""
        with self._faults_named(), torch_threads(threads):
            return index, self._prober(shelf).first_order(*work)

    @contextmanager
    def _faults_named(self) -> Iterator[None]:
        try:
            with device_faults_named("measuring"):
                yield
        except BrokenGpuError as error:
            leave_words(self._desk, str(error))
            os._exit(1)

    def _prober(self, shelf: str) -> ProbeWorker:
        """Of the job on that shelf; an actor that was restarted builds it anew."""
        if self._probing is None or self._probing[0] != shelf:
            self._probing = None  # frees the network before
            job: ProbeJob = get_shared(shelf)
            self._probing = shelf, job.on(self._device)
        return self._probing[1]


class WorkerPool:
    """A `Workplace` of actors that start with the first work; `close` ends them and whatever waits for them.

    Args:
        resources: what each worker gets.
        say: prints a sentence if no worker can start.
        bar: shows the progress of attention.
        slots: how many workers there may be; None for as many as trials.
        at_once: how many of them start with the first work at least, because they will be needed.
        until: when losses of probe images are computed no more, by `time.monotonic`.
    """

    def __init__(
        self,
        resources: Resources,
        say: Say,
        bar: Bar,
        *,
        slots: int | None = None,
        at_once: int = 1,
        until: float = math.inf,
    ) -> None:
        self._resources, self._say, self._bar, self._at_once = resources, say, bar, at_once
        self.slots = resources.slots if slots is None else slots
        self.until = until
        """When losses of probe images are computed no more, by `time.monotonic`."""
        self.accelerated = resources.device != "cpu"
        self._lock = threading.Lock()
        self._closed = False
        self._actors: dict[Any, Any] = {}
        self._desk, self._open = f"measuring-{uuid.uuid4().hex}", ExitStack()
        self._late_at: float | None = None
        self._backbone: tuple[Backbone, ray.ObjectRef] | None = None

    def run(self, function: Callable[..., T], *args: Any) -> T:
        """`function(*args, device)` in one worker.

        Raises:
            ExternalFailure: others use the cluster, memory is too small, or workers died too often.
        """
        (result,) = self._results(function, args, [()])
        return result

    def map(self, function: Callable[..., T], parts: Iterable[Any], *args: Any) -> list[T]:
        """`function(*args, device, part)` of each part, in order.

        Raises:
            ExternalFailure: as above.
        """
        return self._results(function, args, [(part,) for part in parts])

    @contextmanager
    def probing(self, job: ProbeJob, say: Say) -> Iterator[Prober]:
        """Losses of probe images from all workers, those that join later included, while the block runs.

        Raises:
            ExternalFailure: as above.
        """
        shelf = f"probe-job-{uuid.uuid4().hex}"
        with put_shared(job, shelf), self._failures_in_a_sentence():
            actors = self._started(self.slots, self.until)
            try:
                for actor in actors[:1]:
                    for note in ray.get(actor.notes.remote(shelf), timeout=self.seconds_left):
                        say(f"          {note}.")
            except GetTimeoutError:
                actors = []
            yield _Probers(self, actors, shelf, job, self._bar)

    @property
    def seconds_left(self) -> float | None:
        """Seconds until no more losses are computed, ≥ 0; None for no limit."""
        return None if self.until == math.inf else max(0.0, self.until - time.monotonic())

    def use_slots(self, slots: int) -> None:
        """Have so many workers from now on; they join what is under way."""
        self.slots = slots
        self._start(slots)

    def started_besides(self, known: Collection[Any]) -> list[Any]:
        """Workers that have started, without those that are known."""
        with self._lock:
            others = {answer: actor for actor, answer in self._actors.items() if actor not in known}
        ready = ray.wait(list(others), num_returns=len(others), timeout=0)[0] if others else []
        ray.get(ready)
        return [others[answer] for answer in ready]

    def close(self) -> None:
        """End the workers; nothing is computed any more."""
        with self._lock:
            self._closed = True
        for actor in self._actors:
            ray.kill(actor)
        self._open.close()

    def _results(self, function: Callable[..., T], args: Sequence[Any], parts: list[tuple[Any, ...]]) -> list[T]:
        with self._failures_in_a_sentence():
            pool, shared = ActorPool(self._started(len(parts))), [self._put(each) for each in args]
            return list(pool.map(lambda actor, part: actor.compute.remote(function, part, *shared), parts))

    def _put(self, value: Any) -> ray.ObjectRef:
        """Put an argument into the object store; a backbone, which each piece of a pass comes with, only once."""
        if not isinstance(value, Backbone):
            return ray.put(value)
        if self._backbone is None or self._backbone[0] is not value:
            self._backbone = value, ray.put(value)
        return self._backbone[1]

    def _started(self, wanted: int, until: float = math.inf) -> list[Any]:
        """Up to so many workers: those that have started by `START_S` after the first, for others may use the rest.

        [] if none has started by `until`.

        Raises:
            ExternalFailure: none could start for `NODE_WAIT_S`.
        """
        self._start(min(self.slots, max(wanted, self._at_once)))
        with self._lock:
            answers = {answer: actor for actor, answer in self._actors.items()}

        def one_within(seconds: float) -> bool:
            seconds = max(0.0, min(seconds, until - time.monotonic()))
            return bool(ray.wait(list(answers), num_returns=1, timeout=seconds)[0])

        if not one_within(IDLE_S):
            if time.monotonic() >= until:
                return []
            minutes = f"{NODE_WAIT_S / 60:g} minutes"
            self._say(f"No worker has started for {IDLE_S:g} s, others use the cluster; waiting up to {minutes}.")
            if not one_within(NODE_WAIT_S):
                if time.monotonic() >= until:
                    return []
                raise ExternalFailure(f"others used what the cluster has, and no worker could measure for {minutes}")
        if self._late_at is None:
            self._late_at = time.monotonic() + START_S
        wait = max(0.0, min(self._late_at, until) - time.monotonic())
        ready, _ = ray.wait(list(answers), num_returns=min(wanted, len(answers)), timeout=wait)
        ray.get(ready)
        return [answers[answer] for answer in ready]

    def _start(self, number: int) -> None:
        needs = {"num_cpus": self._resources.cpus_per_trial, "num_gpus": self._resources.gpus_per_trial}
        actor_class: Any = ray.remote(**needs, max_restarts=MAX_DEATHS, max_task_retries=MAX_DEATHS)(_Actor)
        with self._lock:
            if self._closed:
                raise ExternalFailure("the measurement was ended")
            if not self._actors:
                self._open.enter_context(put_shared(None, self._desk))
            while len(self._actors) < number:
                actor = actor_class.remote(self._desk, self._resources)
                self._actors[actor] = actor.ready.remote()

    @contextmanager
    def _failures_in_a_sentence(self) -> Iterator[None]:
        """Raise what a worker raised as the exception that it was, and what ended workers as a sentence.

        Raises:
            ExternalFailure: memory is too small, a GPU fails, or workers died too often.
        """
        try:
            yield
        except STORE_ERRORS:
            raise
        except RayTaskError as error:
            raise error.cause from error
        except RayError as error:
            if words := left_words(self._desk):
                raise ExternalFailure(f"{words[-1]} ({len(words)} processes ended so)") from error
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ExternalFailure(f"a worker died each time it measured ({reason})") from error


class _Probers:
    """A `Prober` whose work the actors of a pool share."""

    def __init__(self, pool: WorkerPool, actors: list[Any], shelf: str, job: ProbeJob, bar: Bar) -> None:
        self._pool, self._actors, self._shelf, self._job, self._bar = pool, actors, shelf, job, bar
        self.cut_short = False

    def losses(self, positions: range, layers: tuple[str, ...]) -> dict[str, Tensor]:
        """Losses of the images at these positions: {layer: float32 (B, C)}."""
        channels = sum(self._job.backbone.channels[layer] for layer in layers)
        text = f"Attention: images {positions.start + 1} to {positions.stop}, {len(layers)} layers"
        with self._bar(text, channels * len(positions)) as advance:
            return self._joined(
                lambda actor, chunk: actor.losses.remote(self._shelf, *chunk), positions, layers, advance
            )

    def first_order(self, positions: range, layers: tuple[str, ...]) -> dict[str, Tensor]:
        """The first-order estimate of the same losses, the same bits as this process would compute."""
        threads = torch.get_num_threads()
        return self._joined(
            lambda actor, chunk: actor.first_order.remote(self._shelf, *chunk, threads), positions, layers
        )

    def _joined(
        self,
        compute: Callable[[Any, tuple[int, _Work]], Any],
        positions: range,
        layers: tuple[str, ...],
        advance: Callable[[int], None] = lambda count: None,
    ) -> dict[str, Tensor]:
        chunks, by_index = chunk_work(positions, layers, len(self._actors)), dict[int, dict[str, Tensor]]()
        actors = ActorPool(self._actors)
        for each in enumerate(chunks):
            actors.submit(compute, each)
        while actors.has_next():
            try:
                index, losses = actors.get_next_unordered(timeout=self._pool.seconds_left)
            except TimeoutError:
                break
            by_index[index] = losses
            advance(sum(tensor.numel() for tensor in losses.values()))
            for actor in self._pool.started_besides(self._actors):
                self._actors.append(actor)
                actors.push(actor)
        self.cut_short |= len(by_index) < len(chunks)
        return {layer: self._first_images(layer, chunks, by_index) for layer in layers}

    def _first_images(self, layer: str, chunks: list[_Work], by_index: dict[int, dict[str, Tensor]]) -> Tensor:
        """A layer's losses in the order of the images, up to the first that are missing."""
        indices = [index for index, (_, of) in enumerate(chunks) if layer in of]
        found = [by_index[index][layer] for index in itertools.takewhile(by_index.__contains__, indices)]
        return torch.cat(found) if found else torch.empty(0, self._job.backbone.channels[layer])


def chunk_work(positions: range, layers: tuple[str, ...], slots: int) -> list[_Work]:
    """Blocks of images with all layers, which share a forward pass; with one layer each if slots would stay empty."""
    blocks = [positions[i : i + IMAGES_AT_ONCE] for i in range(0, len(positions), IMAGES_AT_ONCE)]
    if len(blocks) >= 2 * slots:
        return [(block, layers) for block in blocks]
    return [(block, (layer,)) for block in blocks for layer in layers]
