"""Channel attention, measured beside the trials that need none."""

from __future__ import annotations

import dataclasses
import math
import time
import uuid
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from types import TracebackType
from typing import Final, Self

import pyarrow.parquet as pq

from delta_tune.attention.layer_attention import (
    LayerAttention,
    attention_table,
    read_attention,
    read_layers,
    verdict,
)
from delta_tune.attention.measurement import MAX_PROBE_IMAGES
from delta_tune.cluster.measuring_workers import WorkerPool
from delta_tune.cluster.shared_objects import put_shared
from delta_tune.config import FIRST_MODEL, AttentionEstimator, TrialConfig, UserError
from delta_tune.console.format import format_duration
from delta_tune.filesystem.atomic import atomic_write
from delta_tune.results.layout import ATTENTION_FILE
from delta_tune.search.session import Session
from delta_tune.study.study import Study

ATTENTION_SHARE = 0.1
"""Largest share of the time budget, by the wall clock, in which attention is measured."""
WITHOUT_ATTENTION: Final = "delta_uniform"
"""The method that trials run with whose attention that share was too short for."""
HELD, HELD_PER_SLOT = 4, 2
"""So many proposals may wait at least, and so many for each slot."""

Found = dict[AttentionEstimator, dict[str, LayerAttention]]
FoundOf = dict[str, Found]
"""By the network's label."""


def most_probe_images(study: Study) -> int:
    """With how many images each layer of a new split may be measured: with a time budget, as many as in the search."""
    if study.budget.total is None:
        return MAX_PROBE_IMAGES
    return max((row["images"] for row in read_attention(study.folder / ATTENTION_FILE)), default=MAX_PROBE_IMAGES)


def attention_of_earlier_sessions(study: Study, label: str) -> Found:
    """Attention of a network that earlier sessions ended with: trials of one study are to have the same."""
    channels = study.tasks[label].backbone.channels
    try:
        found = read_layers(study.folder / ATTENTION_FILE, label if study.several else None)
    except UserError as error:
        study.telling(label)(f"Attention: {error} It is measured again.")
        return {}
    return {
        estimator: {name: each for name, each in layers.items() if channels.get(name) == len(each.losses)}
        for estimator, layers in found.items()
    }


class AttentionPhase:
    """Measures the attention that trials need, while other trials run; a context manager that ends it.

    It has one slot, so that one trial less runs meanwhile. It has all slots if every trial needs attention, and once
    only such trials are left; with a single slot it has to wait until another trial has run. A time budget gives it a
    share: then layers are measured with fewer images, and trials whose layers were not measured at all run with
    `WITHOUT_ATTENTION`.

    A thread measures. All else, such as writing what it found, is done by the study's own thread, which is to call
    `has_come` now and then (`ComingAttention` and `Beside` say what else it may ask).
    """

    def __init__(self, study: Study, session: Session) -> None:
        self._study, self._measuring, self._all_slots = study, session.measuring, session.resources.slots
        self._measurements = {label: task.measurements for label, task in study.tasks.items()}
        self._say = study.progress.say
        self._open = ExitStack()
        self._pool: WorkerPool | None = None
        self._thread: Future[FoundOf] | None = None
        self._is_over = False
        self.shelf = f"attention-{uuid.uuid4().hex}"
        self.use: list[tuple[float, int]] = []
        """(seconds since 1970, slots that measured from then on)."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End what is under way; finished layers are in the cache."""
        if not self._is_over:
            self._end()
        self._open.close()

    def begin(self) -> None:
        """Find what is known, and begin to measure what is not.

        Raises:
            Exception: as `finish`, if every trial needs attention.
        """
        study = self._study
        study.searcher.attention = self
        for label, measurements in self._measurements.items():
            measurements.keep_attention(attention_of_earlier_sessions(study, label))
            measurements.find_attention(study.configs_of(label), study.telling(label))
        missing = self._missing()
        if not missing or self._seconds_left <= 0 or study.sampled:
            self._conclude()
            return
        with self._measuring.workplace() as workplace:  # here, for trials are given what is in `measurements`
            for label in missing:
                first = [TrialConfig(regularizer=FIRST_MODEL)]
                self._measurements[label].measure_source(first, study.telling(label), workplace)
        if all(config.method.uses_attention for config in study.configs):
            self.finish()
        elif self._all_slots > 1:
            self._begin(1)

    # What the searcher asks

    @property
    def is_under_way(self) -> bool:
        """Whether attention is measured while trials run."""
        return self._thread is not None

    @property
    def most_held(self) -> int:
        """How many proposals may wait."""
        return max(HELD, HELD_PER_SLOT * self._all_slots)

    def has_come(self) -> bool:
        """Whether no trial has to wait any more."""
        if not self._is_over and self._thread is not None and self._thread.done() and not self.failed:
            self._take(self._thread.result())
        return self._is_over

    def runs_as(self, number: int, config: TrialConfig) -> TrialConfig:
        """The configuration that a trial runs with: that of its row, or one without attention that is missing."""
        if number in self._study.tables.trials:
            return self._study.tables.config(number)
        if self._is_over and self._study.task_of(config).measurements.missing_attention([config]):
            return dataclasses.replace(config, regularizer=WITHOUT_ATTENTION)
        return config

    # What the run of trials asks

    @property
    def slots(self) -> int:
        """Slots that measure now."""
        return self.use[-1][1] if self.use else 0

    @property
    def failed(self) -> bool:
        """Whether the measurement has failed."""
        return self._thread is not None and self._thread.done() and self._thread.exception() is not None

    def finish(self) -> None:
        """Measure on all slots to the end.

        Raises:
            Exception: the measurement failed.
        """
        if self._is_over:
            return
        if self._thread is None or self._pool is None:
            self._begin(self._all_slots)
        elif not self._thread.done():
            self._use(self._all_slots)
            self._pool.use_slots(self._all_slots)
        assert self._thread is not None, "begun"
        self._take(self._thread.result())

    @property
    def _seconds_left(self) -> float:
        """Of its share of the time budget."""
        total = self._study.budget.total
        return math.inf if total is None else ATTENTION_SHARE * total - self._study.record.attention_wall_seconds

    def _begin(self, slots: int) -> None:
        self._pool = self._measuring.beside_trials(slots, time.monotonic() + self._seconds_left)
        self._use(slots)
        executor = self._open.enter_context(ThreadPoolExecutor(1))
        self._thread = executor.submit(self._measure, self._pool)

    def _measure(self, pool: WorkerPool) -> FoundOf:
        """Measure one network after the other, each in an equal part of the time that is left."""
        study, end, missing = self._study, pool.until, list(self._missing())
        found: FoundOf = {}
        for place, label in enumerate(missing):
            now = time.monotonic()
            pool.until = now + (end - now) / (len(missing) - place)
            measure = self._measurements[label].measure_attention
            found[label] = measure(study.configs_of(label), study.telling(label), pool)
        return found

    def _missing(self) -> dict[str, tuple[str, ...]]:
        """Label of each network → the layers whose attention its trials need and that is not there."""
        found = {
            label: measurements.missing_attention(self._study.configs_of(label))
            for label, measurements in self._measurements.items()
        }
        return {
            label: tuple(dict.fromkeys(layer for each in layers.values() for layer in each))
            for label, layers in found.items()
            if layers
        }

    def _use(self, slots: int) -> None:
        self.use.append((time.time(), slots))

    def _take(self, found: FoundOf) -> None:
        """Keep what was found, and give it to workers that have their tasks already."""
        for label, of_label in found.items():
            self._measurements[label].keep_attention(of_label)
        self._end()
        self._open.enter_context(put_shared([each.attention for each in self._measurements.values()], self.shelf))
        self._conclude()

    def _end(self) -> None:
        """End the workers, and whatever waits for them; note how long they took."""
        if self._pool is None:
            return
        self._pool.close()
        self._use(0)
        pieces = list(zip(self.use, self.use[1:], strict=False))
        record = self._study.record
        record.add_attention_time(sum(until - since for (since, _), (until, _) in pieces))
        slot_seconds = sum(slots * (until - since) for (since, slots), (until, _) in pieces)
        record.set_attention(slot_seconds / self._all_slots, "")

    def _conclude(self) -> None:
        """Write what was found; say what is missing."""
        self._is_over = True
        study = self._study
        warnings = []
        for label, each in self._measurements.items():
            for layers in each.attention.values():
                warning = verdict(layers)
                warnings.append(f"{label}: {warning}" if warning and study.several else warning)
        if missing := self._missing():
            lacking = "; ".join(
                f"{', '.join(names)}{f' of {label}' if study.several else ''}" for label, names in missing.items()
            )
            assert study.budget.total is not None, "nothing else ends it"
            share = format_duration(ATTENTION_SHARE * study.budget.total)
            why = f"Attention had {share} of the time budget, too short for {lacking}"
            if study.sampled:
                why = "Attention needs a pass over all images, for which the time budget is too short"
            sentence = f"{why}: {WITHOUT_ATTENTION} runs in place of delta."
            self._say(sentence)
            warnings.append(sentence)
        study.record.set_attention(0.0, " ".join(warning for warning in warnings if warning))
        rows: list[tuple[str, LayerAttention]] = []
        labels: list[str] = []
        for label, each in self._measurements.items():
            for layers in each.attention.values():
                rows += layers.items()
                labels += [label] * len(layers)
        if rows:
            (study.folder / ATTENTION_FILE).parent.mkdir(exist_ok=True)
            with atomic_write(study.folder / ATTENTION_FILE) as partial:
                pq.write_table(attention_table(rows, labels if study.several else ()), partial)
        study.save_record()
