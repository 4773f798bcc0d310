"""Measure on the cluster: workers with one trial's resources compute, the driver plans, prints and caches.

The driver's node needs no GPU for that, and its process never opens one: `Measurements.measure` runs in the driver, its
workplace is a pool of workers. Workers on other nodes do not see the driver's cache, so the driver reads and writes it.
What a worker was computing when it or its node died is computed again elsewhere. On a single machine without a GPU this
process computes what one process computes as fast as another: a worker takes seconds to start.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from queue import SimpleQueue

from delta_tune.attention.measurement import ProbeJob, Prober
from delta_tune.cluster.measuring_workers import WorkerPool
from delta_tune.cluster.resources import Resources
from delta_tune.data.loading import Bar
from delta_tune.training.workplace import Say, ThisProcess, Workplace

Job = Callable[[Workplace, Say], None]
"""Measures something at a workplace and prints sentences."""


class Measuring:
    """Where a study's driver has things measured.

    Args:
        resources: what one trial gets; so does each worker.
        say: prints a sentence to the user.
        bar: shows progress.
        here: whether this process computes all but attention, whose parts the workers share.
    """

    def __init__(self, resources: Resources, say: Say, bar: Bar, *, here: bool = False) -> None:
        self._resources, self._say, self._bar, self._here = resources, say, bar, here
        self._kept: WorkerPool | None = None

    @property
    def slots(self) -> int:
        """Processes that share a pass over images."""
        return 1 if self._here else self._resources.slots

    @contextmanager
    def workplace(self, *, probes: bool = False) -> Iterator[Workplace]:
        """Workers that start with the first work and end with the block, or are those of `kept_workers`.

        Args:
            probes: whether attention may be measured, for which all slots get their workers at once.
        """
        if self._kept is not None:
            yield self._place(self._kept)
            return
        pool = WorkerPool(self._resources, self._say, self._bar, at_once=self._resources.slots if probes else 1)
        with closing(pool):
            yield self._place(pool)

    @contextmanager
    def kept_workers(self) -> Iterator[None]:
        """Have all workplaces in the block share their workers: on a GPU another one takes ten seconds to start."""
        pool = WorkerPool(self._resources, self._say, self._bar)
        with closing(pool):
            self._kept = pool
            try:
                yield
            finally:
                self._kept = None

    def beside_trials(self, slots: int, until: float) -> WorkerPool:
        """Workers that measure attention beside trials, and are to be closed.

        Args:
            slots: how many.
            until: when they end, by `time.monotonic`.
        """
        # Without a bar: a terminal shows one thing at a time, and this is the trials' turn.
        bar = self._bar if slots == self._resources.slots else _no_bar
        return WorkerPool(self._resources, self._say, bar, slots=slots, at_once=slots, until=until)

    def _place(self, pool: WorkerPool) -> Workplace:
        return _Here(pool) if self._here else pool

    def side_by_side(self, jobs: Sequence[Job], title: str) -> None:
        """Run jobs side by side, each on a share of the slots; print their sentences job by job, in order.

        An interrupt or a failure ends all of them at once.

        Args:
            jobs: each measures at the workplace that it is given.
            title: of the progress bar over the jobs.
        """
        together = 1 if self._here else min(len(jobs), self._resources.slots)
        free: SimpleQueue[WorkerPool] = SimpleQueue()
        sentences: list[SimpleQueue[str | None]] = [SimpleQueue() for _ in jobs]

        def run(job: Job, said: SimpleQueue[str | None]) -> None:
            pool = free.get()
            try:
                job(self._place(pool), said.put)
            finally:
                free.put(pool)
                said.put(None)

        with self._bar(title, len(jobs)) as advance, ThreadPoolExecutor(together) as threads, ExitStack() as pools:
            for share in shares(self._resources.slots, together):
                # Without bars: a terminal shows one at a time.
                pool = WorkerPool(self._resources, self._say, _no_bar, slots=share, at_once=share)
                pools.callback(pool.close)
                free.put(pool)
            # At an exception this comes first, then the pools, whose end ends what the threads wait for.
            pools.callback(threads.shutdown, wait=False, cancel_futures=True)
            futures = [threads.submit(run, *each) for each in zip(jobs, sentences, strict=True)]
            for future, said in zip(futures, sentences, strict=True):
                for sentence in iter(said.get, None):
                    self._say(sentence)
                future.result()
                advance(1)


class _Here(ThisProcess):
    """This process, and a pool for attention."""

    def __init__(self, pool: WorkerPool) -> None:
        super().__init__()
        self._pool = pool

    def probing(self, job: ProbeJob, say: Say) -> AbstractContextManager[Prober]:
        """What computes losses of probe images while the block runs."""
        return self._pool.probing(job, say)


def shares(slots: int, jobs: int) -> list[int]:
    """How many of the slots each of `jobs` ≤ `slots` jobs gets."""
    return [slots // jobs + (job < slots % jobs) for job in range(jobs)]


@contextmanager
def _no_bar(text: str, total: int) -> Iterator[Callable[[int], None]]:
    yield lambda count: None
