from __future__ import annotations

import ipaddress
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import ray

from delta_tune.cluster.nodes import Cluster, Node
from delta_tune.cluster.shared_objects import get_shared, put_shared
from delta_tune.config import UserError


@pytest.mark.parametrize(
    ("cpus_per_trial", "gpus_per_trial", "slots"),
    [
        (1, 0, 16),
        (4, 0, 4),
        (1, 1, 4),
        (1, 2, 2),
        (1, 0.5, 8),
        (1, 0.3333, 12),
        (1, 0.4, 8),  # two on a GPU: the fifths that are left over are on different ones
        (3, 0.5, 5),
        (0.5, 0.1, 32),
    ],
)
def test_slots_are_what_fits_at_a_time(cpus_per_trial, gpus_per_trial, slots):
    cluster = Cluster(where="this machine", nodes=(Node(16, 4),))
    assert cluster.slots(cpus_per_trial, gpus_per_trial) == slots


@pytest.mark.parametrize(("cpus", "gpus", "flag"), [(17, 0, "--cpus-per-trial"), (1, 5, "--gpus-per-trial")])
def test_a_trial_that_never_fits_is_refused(cpus, gpus, flag):
    with pytest.raises(UserError, match=flag):
        Cluster(where="this machine", nodes=(Node(16, 4),)).slots(cpus, gpus)


@pytest.mark.parametrize(
    ("cpus_per_trial", "gpus_per_trial", "slots"),
    [(1, 0, 8), (3, 0, 2), (2, 0.5, 2), (4, 1, 1)],  # a trial lies on one node
)
def test_slots_are_those_of_each_node(cpus_per_trial, gpus_per_trial, slots):
    cluster = Cluster(where="a cluster", nodes=(Node(4, 0), Node(4, 1)))
    assert cluster.slots(cpus_per_trial, gpus_per_trial) == slots


def test_refusal_on_a_cluster_that_may_grow_says_how_to_ask_for_nodes():
    with pytest.raises(UserError, match=r"more GPUs than a node of a cluster \(2 nodes, .*--max-concurrent-trials"):
        Cluster(where="a cluster", nodes=(Node(4, 0), Node(4, 0)), may_grow=True).slots(1, 1)


LISTENING = """
import psutil, ray
from delta_tune.cluster.connection import ray_cluster
with ray_cluster("local"):
    ray.get(ray.remote(lambda: 1).remote())
    me = psutil.Process()
    for process in (me, *me.children(recursive=True)):
        for each in process.net_connections(kind="inet"):
            if each.status == "LISTEN":
                print(each.laddr.ip)
"""


def test_a_ray_of_our_own_listens_on_loopback_only():
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-c", LISTENING], env=environment, capture_output=True, text=True, check=False
    )
    addresses = done.stdout.split()
    assert len(addresses) > 4, done.stderr
    assert {ipaddress.ip_address(each.removeprefix("::ffff:")).is_loopback for each in addresses} == {True}, addresses


WITHOUT_SWITCH = """
import ray
from ray._private import ray_constants
from delta_tune.cluster.connection import ray_cluster
del ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR
with ray_cluster("local"):
    print(ray.get(ray.remote(lambda: "it runs").remote()))
"""


@pytest.mark.cluster
def test_a_ray_without_the_private_switch_for_loopback_is_started_as_it_comes():
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_SWITCH], env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout.splitlines() == ["it runs"], done.stderr


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux's /proc")
def test_all_processes_of_a_node_read_one_copy_of_what_is_shared(ray_cluster):
    class Reader:
        def place(self, name):
            address = get_shared(name)["pixels"].__array_interface__["data"][0]
            for line in Path("/proc/self/maps").read_text().splitlines():
                span, _, offset, _, inode, *_ = line.split()
                start, end = (int(bound, 16) for bound in span.split("-"))
                if start <= address < end:
                    return inode, int(offset, 16) + address - start, os.getpid()
            raise AssertionError("the array lies nowhere")

    with put_shared({"pixels": np.arange(2_000_000)}, "one copy"):
        readers = [ray.remote(num_cpus=0.5)(Reader).remote() for _ in range(2)]
        (inode, offset, one), (other_inode, other_offset, other) = ray.get(
            [r.place.remote("one copy") for r in readers]
        )
    assert one != other
    assert (inode, offset) == (other_inode, other_offset)


def test_what_is_shared_cannot_be_found_afterwards(ray_cluster):
    with put_shared({"a": 1}, "for a while"):
        assert get_shared("for a while") == {"a": 1}
    with pytest.raises(ValueError, match="for a while"):
        get_shared("for a while")
