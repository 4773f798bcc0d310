"""Images that come together are computed together: decoding threads, a queue with an end, and small batches."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import numpy as np

from delta_tune.data.fitting import Pixels
from delta_tune.data.images import read_square
from delta_tune.serving.metrics import Metrics
from delta_tune.serving.model import ServedModel
from delta_tune.serving.refusal import Busy
from delta_tune.serving.settings import Settings


class Batcher:
    """Decodes images in threads and computes what is ready in batches. Used on one event loop."""

    def __init__(self, model: ServedModel, settings: Settings, metrics: Metrics) -> None:
        self._model, self._settings, self._metrics = model, settings, metrics
        self._decoders = ThreadPoolExecutor(settings.threads, "decode")
        self._computers = ThreadPoolExecutor(settings.threads, "compute")
        self._ready: asyncio.Queue[tuple[Pixels, asyncio.Future[np.ndarray]]] = asyncio.Queue()
        self._admitted = self._decoding = 0
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin to compute; needs a running event loop."""
        self._tasks = [asyncio.create_task(self._compute_batches()) for _ in range(self._settings.threads)]

    async def close(self) -> None:
        """Stop computing; what waits is given up."""
        for task in self._tasks:
            task.cancel()
        for task in self._tasks:
            with suppress(asyncio.CancelledError):
                await task
        for pool in (self._decoders, self._computers):
            pool.shutdown(wait=False, cancel_futures=True)

    async def probabilities(self, files: list[bytes]) -> list[np.ndarray | Exception]:
        """Of each image file its probabilities (K,), or why it cannot be read, a `UserError`; or what else failed.

        Raises:
            Busy: so many images have no room in the queue.
        """
        if self._admitted + len(files) > self._settings.max_queue:
            raise Busy("its queue is full")
        self._admit(len(files))
        try:
            return await asyncio.gather(*map(self._one, files), return_exceptions=True)  # type: ignore[return-value]
        finally:
            self._admit(-len(files))

    def _admit(self, count: int) -> None:
        self._admitted += count
        self._metrics.queue.set(self._admitted)

    async def _one(self, file: bytes) -> np.ndarray:
        loop = asyncio.get_running_loop()
        self._decoding += 1
        try:
            square = await loop.run_in_executor(self._decoders, self._decode, file)
        finally:
            self._decoding -= 1
        found: asyncio.Future[np.ndarray] = loop.create_future()
        self._ready.put_nowait((square, found))
        return await found

    def _decode(self, file: bytes) -> Pixels:
        start = time.perf_counter()
        try:
            return read_square(file, self._model.preprocessing)
        finally:
            self._metrics.decode_seconds.observe(time.perf_counter() - start)

    async def _compute_batches(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            batch = [each for each in await self._next_batch() if not each[1].done()]  # else given up meanwhile
            if not batch:
                continue
            try:
                rows = await loop.run_in_executor(self._computers, self._compute, [square for square, _ in batch])
            except Exception as error:
                for _, found in batch:
                    if not found.done():
                        found.set_exception(error)
                continue
            for (_, found), row in zip(batch, rows, strict=True):
                if not found.done():
                    found.set_result(row)

    async def _next_batch(self) -> list[tuple[Pixels, asyncio.Future[np.ndarray]]]:
        """At least one image: all that are ready, and those that become so within the wait while others are decoded."""
        batch = [await self._ready.get()]
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._settings.batch_wait_s
        while len(batch) < self._settings.batch_size:
            try:
                batch.append(self._ready.get_nowait())
            except asyncio.QueueEmpty:
                left = deadline - loop.time()
                if left <= 0 or not self._decoding:
                    break
                with suppress(TimeoutError):
                    batch.append(await asyncio.wait_for(self._ready.get(), left))
        return batch

    def _compute(self, squares: list[Pixels]) -> np.ndarray:
        start = time.perf_counter()
        rows = self._model.probabilities(np.stack(squares))
        self._metrics.compute_seconds.observe(time.perf_counter() - start)
        self._metrics.batch_images.observe(len(squares))
        return rows
