from __future__ import annotations

import contextlib
import dataclasses
import time

import psutil
import pytest
import torch

from delta_tune.attention.ablation import IMAGES_AT_ONCE
from delta_tune.cluster import measuring_workers
from delta_tune.cluster.failures import ExternalFailure, external_cause
from delta_tune.cluster.measuring_workers import WorkerPool, chunk_work
from delta_tune.cluster.resources import Resources
from delta_tune.config import TrialConfig
from delta_tune.models.devices import torch_threads
from delta_tune.training.task import Task

LAYERS = ("layer1.0.conv2", "layer3.0.conv1", "layer4.0.conv2")


@contextlib.contextmanager
def no_bar(text, total):
    yield lambda count: None


@contextlib.contextmanager
def pool(slots, bar=no_bar, cpus=1):
    place = WorkerPool(Resources(cpus_per_trial=cpus, gpus_per_trial=0, slots=slots), print, bar)
    try:
        yield place
    finally:
        place.close()


def measured(task, place, estimator="exact"):
    """All that is measured for one configuration of each kind: features, mean squares, attention."""
    fresh = Task(dataset=task.dataset, backbone=task.backbone, seed=0)
    configs = [TrialConfig(layers=LAYERS, attention_estimator=estimator), TrialConfig(regularizer="l2_fe")]
    with place as workplace:
        fresh.measurements.measure(configs, workplace=workplace)
    found = fresh.measurements
    features = {split: each.tolist() for split, each in found.features.items()}
    attention = {layer: dataclasses.asdict(each) for layer, each in found.attention[estimator].items()}
    for each in attention.values():
        each["losses"] = each["losses"].tolist()
        each["first_order_agreement"] = repr(each["first_order_agreement"])  # NaN where there is none
    return features, found.mean_squares, attention


@pytest.fixture(scope="module")
def alone(task):
    """What one process finds, with as many threads as an actor has."""
    with torch_threads(1):
        yield measured(task, contextlib.nullcontext())


@pytest.mark.parametrize("slots", [1, 2, 8])
def test_split_covers_every_image_and_layer_once_in_whole_blocks(slots):
    pieces = chunk_work(range(40, 92), ("a", "b"), slots)
    covered = [(position, layer) for positions, layers in pieces for position in positions for layer in layers]
    assert sorted(covered) == [(position, layer) for position in range(40, 92) for layer in ("a", "b")]
    assert all(positions.start % IMAGES_AT_ONCE == 0 for positions, _ in pieces)


@pytest.fixture(scope="module")
def in_a_worker(task, ray_cluster):
    """What one worker finds, and of each bar of progress how much was done and announced."""
    totals = []

    @contextlib.contextmanager
    def bar(text, total):
        done = []
        yield done.append
        totals.append((sum(done), total))

    return measured(task, pool(1, bar)), totals


def test_losses_do_not_depend_on_where_they_are_computed(alone, in_a_worker):
    assert in_a_worker[0] == alone


def test_losses_do_not_depend_on_how_many_workers_compute_them(task, alone, ray_cluster):
    assert measured(task, pool(2)) == alone


@pytest.mark.slow
def test_first_order_losses_do_not_depend_on_it_either(task, alone, ray_cluster):
    assert measured(task, pool(2), "first_order") == measured(task, contextlib.nullcontext(), "first_order")


@pytest.mark.slow
def test_losses_do_not_depend_on_workers_that_have_no_room(task, alone, ray_cluster, monkeypatch):
    monkeypatch.setattr(measuring_workers, "START_S", 1.0)
    assert measured(task, pool(4)) == alone, "Ray has two CPUs"


def test_attention_that_no_worker_has_room_for_is_told_and_given_up(task, ray_cluster, monkeypatch):
    monkeypatch.setattr(measuring_workers, "IDLE_S", 0.2)
    monkeypatch.setattr(measuring_workers, "NODE_WAIT_S", 0.3)
    with pytest.raises(ExternalFailure, match="others used what the cluster has"):
        measured(task, pool(1, cpus=3))


def test_progress_reaches_the_announced_total(in_a_worker):
    _, totals = in_a_worker
    assert totals
    assert all(done == total > 0 for done, total in totals)


@pytest.mark.faults
def test_death_of_a_worker_costs_only_what_it_was_at(task, alone, ray_cluster):
    killed, pieces = [], []

    @contextlib.contextmanager
    def killing_bar(text, total):
        def advance(count):
            pieces.append(count)
            if not killed:
                (actor,) = actors()
                killed.append(actor.pid)
                actor.kill()

        yield advance

    assert measured(task, pool(1, killing_bar)) == alone
    assert killed
    assert len(pieces) == 5  # 36 images in blocks of 8, each counted once


@pytest.mark.slow
def test_workers_that_join_later_change_no_bit(task, alone, ray_cluster):
    joined = []

    @contextlib.contextmanager
    def bar(text, total):
        def advance(count):
            if not joined:
                place.use_slots(2)
                deadline = time.monotonic() + 240
                while len(place.started_besides([])) < 2 and time.monotonic() < deadline:
                    time.sleep(0.05)
                joined.extend(place.started_besides([]))

        yield advance

    with pool(1, bar) as place:
        assert measured(task, contextlib.nullcontext(place)) == alone
    assert len(joined) == 2


def attention_in_time(task, place):
    """Layer → its attention, as far as the pool's time allows."""
    fresh = Task(dataset=task.dataset, backbone=task.backbone, seed=0)
    found = fresh.measurements.measure_attention([TrialConfig(layers=LAYERS)], print, place)
    return found["exact"]


@pytest.mark.slow
def test_images_before_the_time_is_over_count(task, ray_cluster, monkeypatch):
    @contextlib.contextmanager
    def bar(text, total):
        yield lambda count: monkeypatch.setattr(place, "until", time.monotonic())

    with pool(1, bar) as place:
        found = attention_in_time(task, place)
    assert found.keys() == set(LAYERS)
    assert {layer.images for layer in found.values()} <= {8, 16}, "a block was done, and another may have been"


@pytest.mark.slow
def test_nothing_is_found_where_the_time_is_over_before_a_worker_is_there(task, ray_cluster, monkeypatch):
    with pool(1) as place:
        monkeypatch.setattr(place, "until", time.monotonic())
        assert attention_in_time(task, place) == {}


def breaking_actors(monkeypatch, error, file=None):
    """Actors in which `error` is raised; with `file` only the first process raises it."""

    class Breaking(measuring_workers._Actor):
        def _prober(self, shelf):
            if file is None or not file.exists():
                if file is not None:
                    file.touch()
                raise error
            return super()._prober(shelf)

    monkeypatch.setattr(measuring_workers, "_Actor", Breaking)


BROKEN = torch.AcceleratorError("CUDA error: an illegal memory access was encountered\nfor more see")


@pytest.mark.faults
def test_broken_context_ends_its_worker_and_another_goes_on(task, alone, ray_cluster, monkeypatch, tmp_path):
    breaking_actors(monkeypatch, BROKEN, tmp_path / "broke")
    assert measured(task, pool(1)) == alone
    assert (tmp_path / "broke").exists()


@pytest.mark.faults
def test_gpu_that_breaks_one_worker_after_the_other_is_told_with_its_error(task, ray_cluster, monkeypatch):
    monkeypatch.setattr(measuring_workers, "MAX_DEATHS", 1)
    breaking_actors(monkeypatch, BROKEN)
    words = r"^measuring on node .*an illegal memory access.*\(2 processes ended so\)"
    with pytest.raises(ExternalFailure, match=words):
        measured(task, pool(1))


@pytest.mark.faults
def test_attention_that_runs_out_of_memory_is_told_with_advice(task, ray_cluster, monkeypatch):
    breaking_actors(monkeypatch, torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"))
    with pytest.raises(ExternalFailure) as told:
        measured(task, pool(1))
    assert "--gpus-per-trial gives more" in external_cause(told.value)
    assert "Traceback" not in external_cause(told.value)


@pytest.mark.slow
def test_actors_are_gone_afterwards(task, ray_cluster):
    measured(task, pool(2))
    deadline = time.monotonic() + 30
    while actors() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not actors()


def actors():
    """The processes of this session's actors."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # it ended since they were listed
            if "ray::_Actor" in " ".join(process.cmdline()):
                found.append(process)
    return found


def test_backbone_is_put_once_for_all_pieces_of_a_pass(task, monkeypatch):
    put = []
    monkeypatch.setattr(measuring_workers.ray, "put", lambda value: put.append(value) or len(put))
    with pool(1) as place:
        refs = [place._put(value) for value in (task.backbone, "images", task.backbone, "images")]
    assert refs == [1, 2, 1, 3]
