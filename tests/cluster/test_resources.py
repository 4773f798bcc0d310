from __future__ import annotations

import math
import signal
import time

import pytest
import ray
from helpers.nodes import LIMIT_S, Network, Nodes

from delta_tune.cluster.failures import ExternalFailure
from delta_tune.cluster.nodes import Node
from delta_tune.cluster.resources import (
    CHECK_INTERVAL_S,
    IDLE_S,
    NODE_WAIT_S,
    Capacity,
    Resources,
    wait_for_resources,
)
from delta_tune.results.tables import StudyTables

FOUR = (Node(4, 0),)


class Watched:
    """A room in a cluster whose nodes and time are set by hand."""

    def __init__(self, *, most=None, cpus=1.0, gpus=0.0, nodes=FOUR):
        self.now, self.nodes, self.said, self.runs = 0.0, nodes, [], True
        slots = max(1, sum(node.slots(cpus, gpus) for node in nodes))
        resources = Resources(cpus_per_trial=cpus, gpus_per_trial=gpus, slots=slots, most=most)
        self.room = Capacity(
            resources, self.said.append, nodes=lambda: self.nodes, clock=lambda: self.now, runs=lambda: self.runs
        )

    def after(self, seconds, nodes):
        self.now, self.nodes = self.now + seconds, nodes
        return self.room


def test_limit_is_what_fits_on_the_nodes_of_the_moment():
    watched = Watched()
    assert watched.room.limit == 4
    assert watched.after(CHECK_INTERVAL_S, (Node(4, 0), Node(8, 0))).limit == 12
    assert watched.after(CHECK_INTERVAL_S, (Node(8, 0),)).limit == 8
    assert watched.said == [
        "The cluster now has room for 12 trials at a time (before: 4).",
        "The cluster now has room for 8 trials at a time (before: 12).",
    ]


def test_nothing_is_said_of_a_cluster_that_stays_as_it_is():
    said = []
    few = Resources(cpus_per_trial=1, gpus_per_trial=0, slots=2, most=2)  # fewer trials than there is room for
    room = Capacity(few, said.append, nodes=lambda: (Node(16, 0),), clock=lambda: 0.0)
    assert room.limit == 2
    assert said == []


def test_nodes_are_looked_at_now_and_then_only():
    watched = Watched()
    assert watched.room.limit == 4
    assert watched.after(CHECK_INTERVAL_S / 2, (Node(8, 0),)).limit == 4


@pytest.mark.parametrize(("slots", "most", "limit"), [(4, 64, 5), (20, 64, 22), (60, 64, 64), (4, 2, 2), (0, 8, 1)])
def test_where_more_are_allowed_a_tenth_is_proposed_ahead(slots, most, limit):
    watched = Watched(most=most, nodes=(Node(slots, 0),))
    assert watched.room.limit == limit == min(most, slots + max(1, math.ceil(0.1 * slots)))


def test_room_is_given_up_after_the_stated_wait():
    watched = Watched(cpus=2, gpus=1, nodes=(Node(4, 1),))
    assert watched.room.out_of_room is None
    assert watched.after(CHECK_INTERVAL_S, (Node(64, 0),)).out_of_room is None
    assert watched.after(NODE_WAIT_S - CHECK_INTERVAL_S, watched.nodes).out_of_room is None
    assert watched.after(CHECK_INTERVAL_S, watched.nodes).out_of_room == (
        "no node of the cluster had room for a trial with 2 CPUs and 1 GPU for 10 minutes"
    )
    assert watched.said == ["No node has room for a trial with 2 CPUs and 1 GPU any more; waiting up to 10 minutes."]


def test_node_that_comes_in_time_ends_the_wait():
    watched = Watched(gpus=1, nodes=(Node(4, 1),))
    assert watched.after(CHECK_INTERVAL_S, ()).out_of_room is None
    assert watched.after(NODE_WAIT_S / 2, (Node(4, 2),)).out_of_room is None
    assert watched.after(NODE_WAIT_S, (Node(4, 2),)).out_of_room is None
    assert watched.room.limit == 2


def test_room_that_never_comes_is_refused_in_a_sentence(ray_cluster, monkeypatch):
    monkeypatch.setattr("delta_tune.cluster.resources.NODE_WAIT_S", 0.5)
    said = []
    with pytest.raises(ExternalFailure, match=r"^no node with room for a trial with 1 CPU and 3 GPUs came within "):
        wait_for_resources(Resources(cpus_per_trial=1, gpus_per_trial=3, slots=1), said.append)
    assert said[0].startswith("No node has room for a trial with 1 CPU and 3 GPUs yet; requesting one")
    assert ray.cluster_resources()["GPU"] == 1


def test_nothing_is_asked_for_where_a_trial_fits(ray_cluster):
    said = []
    wait_for_resources(Resources(cpus_per_trial=1, gpus_per_trial=1, slots=1), said.append)
    assert not said


def test_room_that_others_use_in_mid_study_is_told_once_and_given_up_after_the_stated_wait():
    watched = Watched()
    watched.runs = False
    assert watched.after(IDLE_S - CHECK_INTERVAL_S, FOUR).out_of_room is None
    assert watched.said == []
    assert watched.after(CHECK_INTERVAL_S, FOUR).out_of_room is None
    assert watched.after(NODE_WAIT_S - IDLE_S - CHECK_INTERVAL_S, FOUR).out_of_room is None
    assert watched.said == [
        "No trial has run for 30 s: what a trial with 1 CPU needs is in use by others; waiting up to 10 minutes."
    ]
    assert watched.after(CHECK_INTERVAL_S, FOUR).out_of_room == (
        "others used what the cluster has, and a trial with 1 CPU could not start for 10 minutes"
    )


def test_trial_that_runs_again_ends_the_wait_for_others():
    watched = Watched()
    for _ in range(3):
        watched.runs = False
        assert watched.after(NODE_WAIT_S - CHECK_INTERVAL_S, FOUR).out_of_room is None
        watched.runs = True
        assert watched.after(CHECK_INTERVAL_S, FOUR).out_of_room is None
    assert len(watched.said) == 3


@pytest.fixture
def held(ray_cluster):
    """All CPUs of Ray, held by somebody else's actor."""

    class Service:
        def answer(self):
            return 1

    service = ray.remote(num_cpus=2)(Service).remote()
    ray.get(service.answer.remote())
    yield service
    ray.kill(service)


ONE = Resources(cpus_per_trial=1, gpus_per_trial=0, slots=1, where="this Ray")


def test_room_that_others_use_is_told_and_given_up_in_a_sentence(held, monkeypatch):
    monkeypatch.setattr("delta_tune.cluster.resources.BUSY_S", 0.3)
    monkeypatch.setattr("delta_tune.cluster.resources.NODE_WAIT_S", 0.5)
    said = []
    with pytest.raises(ExternalFailure, match=r"^others have used what a trial with 1 CPU needs of this Ray for "):
        wait_for_resources(ONE, said.append)
    assert said[0].startswith("All room for a trial with 1 CPU on this Ray is in use by others; waiting up to ")


def test_room_that_others_leave_ends_the_wait(held, monkeypatch):
    monkeypatch.setattr("delta_tune.cluster.resources.BUSY_S", 0.3)
    said = []

    def leave(text):
        said.append(text)
        ray.kill(held)

    wait_for_resources(ONE, leave)
    assert len(said) == 1


@pytest.fixture(scope="module")
def seen(image_folder, tiny_weights, tmp_path_factory):
    """A study on a head without CPUs and a node, which another joins; the first is lost, and a third takes its place.

    Trials that end at an interrupt only, so that no machine is too fast or too slow for the faults.
    """
    out = tmp_path_factory.mktemp("room")
    try:
        network = Network()
    except OSError as error:
        pytest.skip(str(error))
    nodes = Nodes(tmp_path_factory.mktemp("nodes"), network)
    found = {}
    driver = None
    try:
        nodes.start_head(cpus=0)
        first = nodes.add_node(1)
        driver, output = nodes.begin(
            *("--data", image_folder, "--model", "timm:test_resnet", "--weights", tiny_weights, "--image-size", "64"),
            *("--cache", out / "cache", "--out", out, "--metric", "val_loss", "--gpus-per-trial", "0"),
            *("--num-trials", "2", "--max-epochs", "10000", "--grace-period", "10000", "--name", "study"),
            *("--set", "regularizer=delta_uniform"),  # with a single slot, attention waits for the end of a trial
        )

        def once(*trials, anew=None):
            """The tables once each of these trials has an epoch; `anew` is a trial that must be on another node."""
            before = None if anew is None else found["joined"][anew]["node"]
            deadline = time.monotonic() + LIMIT_S
            while driver.poll() is None:
                assert time.monotonic() < deadline, output.read_text()
                time.sleep(0.2)
                if not (out / "study" / "trials.parquet").exists():
                    continue
                tables = StudyTables.read(out / "study", "val_loss")
                there = all(tables.epochs.get(number) for number in trials)
                if there and (anew is None or tables.trials[anew]["node"] != before):
                    return tables
            raise AssertionError(output.read_text())

        found["alone"] = once(1).trials
        nodes.add_node(2)
        found["joined"] = once(1, 2).trials
        nodes.lose(first)
        found["lost"] = StudyTables.read(out / "study", "val_loss").epochs
        nodes.add_node(2)
        found["replaced"] = once(1, 2, anew=1).trials
        driver.send_signal(signal.SIGINT)
        found["status"] = driver.wait(LIMIT_S)
        found["said"] = output.read_text()
        found["epochs"] = StudyTables.read(out / "study", "val_loss").epochs
    finally:
        if driver and driver.poll() is None:
            driver.kill()
            driver.wait()
        nodes.end()
    return found


@pytest.mark.cluster
def test_node_that_joins_in_mid_study_is_used(seen):
    assert seen["alone"].keys() == {0, 1}, "the first model and a trial"
    assert len({seen["joined"][number]["node"] for number in (1, 2)}) == 2
    assert "The cluster now has room for 2 trials at a time (before: 1)." in seen["said"]


@pytest.mark.cluster
def test_trial_of_a_lost_node_goes_on_elsewhere_and_repeats_epochs_bit_for_bit(seen):
    assert seen["joined"][2]["node"] == seen["replaced"][2]["node"]
    assert seen["joined"][1]["node"] != seen["replaced"][1]["node"]
    for number, before in seen["lost"].items():
        # Epochs after its last checkpoint are computed again
        same = [(row["epoch"], row["train_loss"], row["val_loss"]) for row in seen["epochs"][number]]
        assert same[: len(before)] == [(row["epoch"], row["train_loss"], row["val_loss"]) for row in before]
        assert [row["epoch"] for row in seen["epochs"][number]] == list(range(1, len(seen["epochs"][number]) + 1))


@pytest.mark.cluster
def test_study_that_lost_a_node_ends_cleanly_at_an_interrupt(seen):
    assert seen["status"] == 0, "there is the first model"
    assert "Interrupted. Carry on with: " in seen["said"]
    assert "Traceback" not in seen["said"]


@pytest.mark.cluster
def test_autoscaler_is_asked_for_a_node_where_none_has_room(image_folder, tiny_weights, tmp_path):
    (tmp_path / "nodes").mkdir()
    nodes = Nodes(tmp_path / "nodes")
    try:
        nodes.start_autoscaling_head(1)
        done = nodes.launch(
            *("--data", image_folder, "--model", "timm:test_resnet", "--weights", tiny_weights, "--image-size", "64"),
            *("--cache", tmp_path / "cache", "--out", tmp_path, "--name", "study", "--gpus-per-trial", "0"),
            *("--num-trials", "1", "--max-epochs", "1", "--max-concurrent-trials", "2"),
        )
    finally:
        nodes.end()
    assert done.returncode == 0, done.stdout + done.stderr
    assert "No node has room for a trial with 1 CPU yet; requesting one" in done.stdout
    trials = StudyTables.read(tmp_path / "study", "val_accuracy").trials.values()
    assert [trial["state"] for trial in trials] == ["completed"] * 2, "the first model and a trial"
