"""Attention beside the trials, with what computes the losses replaced, and no Ray."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import time
from types import SimpleNamespace

import pytest
import torch
from helpers.studies import OfOneBackbone

from delta_tune.attention.layer_attention import read_layers
from delta_tune.attention.measurement import MAX_PROBE_IMAGES, in_this_process
from delta_tune.config import TrialConfig
from delta_tune.filesystem.cache import Cache
from delta_tune.results.layout import ATTENTION_FILE
from delta_tune.results.study_record import StudyRecord
from delta_tune.results.tables import StudyTables
from delta_tune.study import attention_phase
from delta_tune.study.attention_phase import ATTENTION_SHARE, AttentionPhase, most_probe_images
from delta_tune.study.time_budget import TimeBudget
from delta_tune.training.measurements import Measurements
from delta_tune.training.task import Task
from delta_tune.training.workplace import ThisProcess

LAYERS = ("layer1.0.conv2", "layer4.0.conv2")
DELTA = TrialConfig(regularizer="delta", layers=LAYERS)
L2 = TrialConfig(regularizer="l2")
ENOUGH = 10**6


class Searched(OfOneBackbone, SimpleNamespace):
    """A study."""


class Pool(ThisProcess):
    """Instead of workers: has time for the losses of so many images, once the test lets it go; ends when it is closed.

    Args:
        slots: how many.
        until: when its time is over, by `time.monotonic`.
    """

    time_for, goes, error = ENOUGH, threading.Event(), None

    def __init__(self, slots, until):
        super().__init__()
        self.slots, self.until, self.closed = slots, until, threading.Event()

    @contextlib.contextmanager
    def probing(self, job, say):
        with in_this_process(job, torch.device("cpu"), say) as worker:
            self.worker, self.cut_short = worker, False
            yield self

    def losses(self, positions, layers):
        while not self.goes.wait(0.01):
            if self.closed.is_set():
                raise RuntimeError("the actor died")
        if self.error is not None:
            raise self.error
        images = max(0, min(positions.stop, self.time_for) - positions.start)
        self.cut_short |= images < len(positions)
        if not images:
            return {layer: torch.empty(0, self.worker._prober.backbone.channels[layer]) for layer in layers}
        return self.worker.losses(range(positions.start, positions.start + images), layers)

    def first_order(self, positions, layers):
        return self.worker.first_order(positions, layers)

    def use_slots(self, slots):
        self.slots = slots

    def close(self):
        self.closed.set()


@pytest.fixture
def pool(monkeypatch):
    """The pool's class, for the test to say how it does; what it is given is computed at once."""
    monkeypatch.setattr(Pool, "goes", threading.Event())
    monkeypatch.setattr(Pool, "time_for", ENOUGH)
    monkeypatch.setattr(Pool, "error", None)
    monkeypatch.setattr(attention_phase, "put_shared", lambda value, name: contextlib.nullcontext())
    Pool.goes.set()
    return Pool


@pytest.fixture
def said():
    return []


@pytest.fixture
def begin(task, tmp_path, said, pool):
    """A function that returns a phase which has begun; it is ended after the test."""
    with contextlib.ExitStack() as ends:

        def begun(*configs, slots=2, total=None, record=None, sampled=False):
            fresh = Task(dataset=task.dataset, backbone=task.backbone, seed=0, cache=Cache(tmp_path / "cache"))
            tables = StudyTables(tmp_path / "study", "val_accuracy")
            study = Searched(task=fresh, folder=tmp_path / "study", configs=list(configs), tables=tables)
            study.folder.mkdir(exist_ok=True)
            study.searcher, study.progress = SimpleNamespace(), SimpleNamespace(say=said.append)
            study.record, study.save_record = record or StudyRecord(), lambda: None
            study.budget, study.sampled = TimeBudget(total, spent=0.0, began=time.time()), sampled
            pools = []
            measuring = SimpleNamespace(
                workplace=lambda: contextlib.nullcontext(ThisProcess()),
                beside_trials=lambda slots, until: pools.append(pool(slots, until)) or pools[-1],
            )
            resources = SimpleNamespace(slots=slots)
            phase = AttentionPhase(study, SimpleNamespace(resources=resources, measuring=measuring))
            phase.study, phase.pools = study, pools
            ends.enter_context(phase)
            phase.begin()
            return phase

        yield begun


def wait_for(condition):
    deadline = time.monotonic() + 60
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert condition()


def test_attention_is_measured_on_one_slot_while_trials_may_run(begin, pool):
    pool.goes.clear()
    phase = begin(DELTA, L2)
    assert (phase.is_under_way, phase.slots, phase.has_come()) == (True, 1, False)
    assert not any(phase.study.first_task.measurements.attention.values()), "trials are given the task meanwhile"
    pool.goes.set()
    wait_for(phase.has_come)
    assert phase.slots == 0
    assert phase.study.first_task.measurements.attention["exact"].keys() == set(LAYERS)
    assert read_layers(phase.study.folder / ATTENTION_FILE)["exact"].keys() == set(LAYERS)
    assert phase.runs_as(1, DELTA) == DELTA


def test_every_slot_measures_where_every_trial_waits(begin):
    phase = begin(DELTA)
    assert phase.has_come()
    assert [pool.slots for pool in phase.pools] == [2]


def test_every_slot_joins_once_nothing_else_is_left(begin, pool):
    pool.goes.clear()
    phase = begin(DELTA, L2)
    threading.Timer(0.2, pool.goes.set).start()
    phase.finish()
    assert phase.has_come()
    assert [pool.slots for pool in phase.pools] == [2]
    assert [slots for _, slots in phase.use] == [1, 2, 0]


def test_single_slot_is_left_to_the_first_trial(begin):
    phase = begin(DELTA, L2, slots=1)
    assert (phase.is_under_way, phase.has_come(), phase.pools) == (False, False, [])
    phase.finish()
    assert phase.has_come()


def test_nothing_is_measured_where_no_trial_needs_it(begin):
    phase = begin(L2)
    assert phase.has_come()
    assert phase.pools == []
    assert not (phase.study.folder / ATTENTION_FILE).exists()


def test_time_budget_gives_attention_its_share(begin, pool):
    pool.goes.clear()
    before = time.monotonic()
    (measuring,) = begin(DELTA, L2, total=1000.0).pools
    assert before <= measuring.until - ATTENTION_SHARE * 1000 <= time.monotonic()


def test_layers_have_the_images_that_the_share_was_enough_for_and_are_not_in_the_cache(begin, pool):
    pool.time_for = 8
    phase = begin(DELTA, total=1000.0)
    found = read_layers(phase.study.folder / ATTENTION_FILE)["exact"]
    assert {layer.images for layer in found.values()} == {8}
    assert phase.runs_as(1, DELTA) == DELTA
    assert most_probe_images(phase.study) == 8, "a confirmation's splits take no longer"
    (phase.study.folder / ATTENTION_FILE).unlink()
    pool.time_for = ENOUGH
    again = begin(DELTA)
    assert {layer.images for layer in again.study.first_task.measurements.attention["exact"].values()} == {36}
    assert most_probe_images(again.study) == MAX_PROBE_IMAGES, "there is time"


def test_delta_runs_with_uniform_weights_where_the_share_was_too_short(begin, pool, said):
    pool.time_for = 0
    phase = begin(DELTA, L2, total=1000.0)
    wait_for(phase.has_come)
    assert phase.runs_as(1, DELTA) == dataclasses.replace(DELTA, regularizer="delta_uniform")
    assert phase.runs_as(2, L2) == L2
    told = "Attention had 1:40 of the time budget, too short for layer1.0.conv2, layer4.0.conv2: delta_uniform runs"
    assert any(each.startswith(told) for each in said)
    assert phase.study.record.attention_verdict.startswith(told)


def test_attention_is_left_out_where_there_is_no_time_for_all_images(begin, said):
    phase = begin(DELTA, L2, total=1000.0, sampled=True)
    assert phase.has_come()
    assert phase.pools == []
    assert phase.runs_as(1, DELTA).regularizer == "delta_uniform"
    assert any("needs a pass over all images" in each for each in said)


def test_earlier_sessions_count_in_the_share(begin, pool):
    record = StudyRecord()
    record.add_attention_time(100.0)
    phase = begin(DELTA, L2, total=1000.0, record=record)
    assert phase.has_come()
    assert phase.pools == []
    assert phase.runs_as(1, DELTA).regularizer == "delta_uniform"


def test_trial_of_an_earlier_session_runs_as_it_was(begin, pool):
    phase = begin(DELTA, L2)
    phase.study.tables.add(1, dataclasses.replace(DELTA, regularizer="delta_uniform"), {}, {})
    wait_for(phase.has_come)
    assert phase.runs_as(1, DELTA).regularizer == "delta_uniform"
    assert phase.runs_as(2, DELTA).regularizer == "delta"


def test_resume_has_the_attention_that_the_study_had(begin, pool):
    pool.time_for = 8
    begin(DELTA, total=1000.0)
    phase = begin(DELTA, L2, total=1000.0)
    assert phase.has_come()
    assert phase.pools == []
    assert {layer.images for layer in phase.study.first_task.measurements.attention["exact"].values()} == {8}


def test_damaged_attention_of_the_study_is_measured_again(begin, said):
    phase = begin(DELTA)
    (phase.study.folder / ATTENTION_FILE).write_bytes(b"no table")
    begin(DELTA)
    assert read_layers(phase.study.folder / ATTENTION_FILE)["exact"].keys() == set(LAYERS)
    assert any("measured again" in each for each in said)


def test_failure_ends_the_run_and_is_raised(begin, pool):
    pool.error = OSError(28, "No space left on device")
    phase = begin(DELTA, L2)
    wait_for(lambda: phase.failed)
    assert not phase.has_come()
    with pytest.raises(OSError, match="No space left"):
        phase.finish()


def test_end_of_the_study_ends_the_measurement_at_once(begin, pool):
    pool.goes.clear()
    phase = begin(DELTA, L2)
    began = time.monotonic()
    phase.__exit__(None, None, None)
    assert phase.failed, "its thread has ended"
    assert time.monotonic() - began < 30
    assert phase.study.record.attention_wall_seconds > 0
    assert not (phase.study.folder / ATTENTION_FILE).exists()


@pytest.fixture
def begin_two(task, tmp_path, said, pool):
    """A function that returns a phase of two networks which has begun; it is ended after the test."""
    with contextlib.ExitStack() as ends:

        def begun(total=None):
            backbone = dataclasses.replace(task.backbone, fingerprint="other")
            tasks = {
                label: Task(dataset=task.dataset, backbone=each, seed=0, cache=Cache(tmp_path / "cache"))
                for label, each in (("one", task.backbone), ("other", backbone))
            }
            configs = {label: [dataclasses.replace(DELTA, backbone=label)] for label in tasks}
            study = SimpleNamespace(tasks=tasks, several=True, folder=tmp_path / "study", searcher=SimpleNamespace())
            study.folder.mkdir(exist_ok=True)
            study.tables, study.record = StudyTables(study.folder, "val_accuracy"), StudyRecord()
            study.configs, study.configs_of = [c for each in configs.values() for c in each], configs.__getitem__
            study.telling = lambda label: lambda text: said.append(f"{label}: {text}")
            study.progress, study.save_record = SimpleNamespace(say=said.append), lambda: None
            study.task_of = lambda config: tasks[config.backbone]
            study.budget, study.sampled = TimeBudget(total, spent=0.0, began=time.time()), False
            pools = []
            measuring = SimpleNamespace(
                workplace=lambda: contextlib.nullcontext(ThisProcess()),
                beside_trials=lambda slots, until: pools.append(pool(slots, until)) or pools[-1],
            )
            phase = AttentionPhase(study, SimpleNamespace(resources=SimpleNamespace(slots=2), measuring=measuring))
            phase.study, phase.pools = study, pools
            ends.enter_context(phase)
            phase.begin()
            return phase

        yield begun


def test_each_network_has_attention_of_its_own_in_one_file(begin_two, said):
    phase = begin_two()
    found = {label: task.measurements.attention["exact"] for label, task in phase.study.tasks.items()}
    assert found["one"].keys() == found["other"].keys() == set(LAYERS)
    file = phase.study.folder / ATTENTION_FILE
    assert read_layers(file) == {}, "no row is of a study of one network"
    for label, layers in found.items():
        again = read_layers(file, label)["exact"]
        assert all((again[name].losses == layer.losses).all() for name, layer in layers.items())
    assert any(text.startswith("one: Attention: ") for text in said)
    assert any(text.startswith("other: Attention: ") for text in said)


def test_resume_has_the_attention_that_each_network_had(begin_two, tmp_path):
    first = begin_two()
    (tmp_path / "cache").rename(tmp_path / "gone")
    again = begin_two()
    assert not again.pools, "nothing is measured"
    for label in ("one", "other"):
        had, has = (each.study.tasks[label].measurements.attention["exact"] for each in (first, again))
        assert all((had[name].losses == has[name].losses).all() for name in LAYERS)


def test_networks_share_the_time_for_attention(begin_two, pool, monkeypatch):
    limits, measure = [], Measurements.measure_attention

    def noted(self, configs, say, workplace):
        limits.append(workplace.until - time.monotonic())
        return measure(self, configs, say, workplace)

    monkeypatch.setattr(Measurements, "measure_attention", noted)
    begin_two(total=10_000)
    assert limits == [pytest.approx(500, abs=20), pytest.approx(1000, abs=20)]


def test_trial_of_the_network_whose_layers_were_not_measured_runs_with_uniform_weights(begin_two, pool, said):
    pool.time_for = 0
    phase = begin_two(total=10_000)
    for label in ("one", "other"):
        assert phase.runs_as(5, dataclasses.replace(DELTA, backbone=label)).regularizer == "delta_uniform"
    assert any(f"too short for {', '.join(LAYERS)} of one; {', '.join(LAYERS)} of other" in text for text in said)
