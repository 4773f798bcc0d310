from __future__ import annotations

import os
import time

import pytest
import ray
import torch

from delta_tune.cluster.source_map_store import RaySourceMaps, shared_source_maps, source_map_budget
from delta_tune.config import ImageSettings
from delta_tune.training.source_map_index import SourceMapIndex, StepKey


def batch(epoch, step, seed=0):
    return StepKey(seed, 8, ImageSettings(augmentation="none"), epoch, step)


def leave(shelf, epoch, step, size=10, node="here", layers=("a", "b")):
    shelf.leave(node, batch(epoch, step), layers, [f"{epoch}.{step}"], size)


def held(shelf, epoch, step, node="here", layers=("a",)):
    return shelf.ask(node, batch(epoch, step), layers)[0] is not None


def test_shelf_tells_the_first_asker_alone_to_go_ahead():
    shelf = SourceMapIndex(100)
    assert shelf.ask("here", batch(1, 0), ("a",)) == (None, True)
    assert shelf.ask("here", batch(1, 0), ("a",)) == (None, False)
    leave(shelf, 1, 0)
    assert shelf.ask("here", batch(1, 0), ("a",)) == (["1.0"], False)


def test_shelf_keeps_nodes_apart():
    shelf = SourceMapIndex(100)
    leave(shelf, 1, 0)
    assert shelf.ask("there", batch(1, 0), ("a",)) == (None, True)


def test_shelf_has_maps_only_for_layers_that_were_left():
    shelf = SourceMapIndex(100)
    leave(shelf, 1, 0, layers=("b",))
    assert not held(shelf, 1, 0, layers=("a",))
    leave(shelf, 1, 0, layers=("a", "b", "c"))
    assert held(shelf, 1, 0, layers=("c", "a"))


def test_shelf_evicts_late_epochs_first_within_its_budget():
    shelf = SourceMapIndex(40)
    for epoch in (1, 2):
        for step in (0, 1):
            leave(shelf, epoch, step)
    leave(shelf, 1, 2)
    assert [held(shelf, *where) for where in ((1, 0), (1, 1), (1, 2), (2, 0), (2, 1))] == [
        True,
        True,
        True,
        False,
        True,
    ]
    assert shelf.report().evicted == 1
    assert shelf.report().size == 40


def test_shelf_takes_nothing_larger_than_its_budget():
    shelf = SourceMapIndex(40)
    leave(shelf, 1, 0)
    leave(shelf, 1, 1, size=41)
    assert held(shelf, 1, 0)
    assert not held(shelf, 1, 1)


def test_shelf_lets_others_compute_what_was_lost():
    shelf = SourceMapIndex(40)
    shelf.ask("here", batch(1, 0), ("a",))
    leave(shelf, 1, 0)
    shelf.lost("here", batch(1, 0))
    assert shelf.ask("here", batch(1, 0), ("a",)) == (None, True)
    assert shelf.report().size == 0


def test_counts_say_how_much_was_shared_and_whether_it_fitted():
    shelf = SourceMapIndex(2**20)
    leave(shelf, 1, 0, size=2**20)
    held(shelf, 1, 0)
    assert "50 % of the steps found them" in shelf.report().sentence(2**20)
    assert "fitted in memory (1 MiB)" in shelf.report().sentence(2**20)
    leave(shelf, 1, 1, size=2**20)
    assert "beyond the budget of 1 MiB trials shared while they were in step" in shelf.report().sentence(2**20)


RANDOM = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
MAPS = {"a": RANDOM.contiguous(memory_format=torch.channels_last), "b": torch.zeros(2, 1, 2, 2)}


@pytest.fixture
def store(ray_cluster):
    name = f"maps-{time.monotonic()}"
    with shared_source_maps(name, source_map_budget()):
        yield RaySourceMaps(name)


def test_maps_come_back_bit_for_bit_and_of_the_layers_that_are_asked_for(store):
    assert store.ask(batch(1, 0), ("a",)) == (None, True)
    store.leave(batch(1, 0), MAPS)
    found, first = store.ask(batch(1, 0), ("a",))
    assert not first
    assert list(found) == ["a"]
    assert torch.equal(found["a"], MAPS["a"])
    assert found["a"].stride() == MAPS["a"].stride()


def test_maps_may_be_written_to_without_harm_to_others(store):
    store.leave(batch(1, 0), MAPS)
    store.ask(batch(1, 0), ("a",))[0]["a"].zero_()
    assert torch.equal(store.ask(batch(1, 0), ("a",))[0]["a"], MAPS["a"])


def test_nobody_waits_for_a_dead_worker(store):
    @ray.remote(max_retries=0)
    def leave_and_die(shelf, where, maps):
        RaySourceMaps(shelf).leave(where, maps)
        time.sleep(0.5)
        os._exit(1)

    (shelf,) = (a["name"] for a in ray.util.list_named_actors(all_namespaces=True) if a["name"].startswith("maps-"))
    with pytest.raises(ray.exceptions.WorkerCrashedError):
        ray.get(leave_and_die.remote(shelf, batch(1, 0), MAPS))
    started = time.monotonic()
    found, _ = store.ask(batch(1, 0), ("a",))
    assert time.monotonic() - started < 30
    assert found is None or torch.equal(found["a"], MAPS["a"])  # the node may still have what its worker left


def test_maps_that_are_lost_are_computed_by_others(store, monkeypatch):
    store.leave(batch(1, 0), MAPS)
    get = ray.get

    def lost(reference, **options):
        answer = get(reference, **options)
        if isinstance(answer, dict):
            raise ray.exceptions.ObjectLostError("object", None, "call site")
        return answer

    monkeypatch.setattr(ray, "get", lost)
    assert store.ask(batch(1, 0), ("a",)) == (None, False)
    assert store.ask(batch(1, 0), ("a",)) == (None, True)
    monkeypatch.undo()
    store.leave(batch(1, 0), MAPS)
    assert torch.equal(store.ask(batch(1, 0), ("a",))[0]["a"], MAPS["a"])


def test_without_its_shelf_a_trial_computes_for_itself(ray_cluster):
    name = f"maps-{time.monotonic()}"
    with shared_source_maps(name, 100):
        store = RaySourceMaps(name)
    store.leave(batch(1, 0), MAPS)
    assert store.ask(batch(1, 0), ("a",)) == (None, False)


def test_shelf_gives_the_memory_back(ray_cluster):
    before = ray.available_resources()["object_store_memory"]
    name = f"maps-{time.monotonic()}"
    with shared_source_maps(name, source_map_budget()):
        RaySourceMaps(name).leave(batch(1, 0), {"a": torch.zeros(64, 64, 64, 16)})
        assert RaySourceMaps(name).ask(batch(1, 0), ("a",))[0] is not None
    deadline = time.monotonic() + 20
    while ray.available_resources()["object_store_memory"] < before and time.monotonic() < deadline:
        time.sleep(0.1)
    assert ray.available_resources()["object_store_memory"] >= before
