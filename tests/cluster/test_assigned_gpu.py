"""Which GPU a worker uses."""

from __future__ import annotations

import os
import socket

import pytest
import ray

from delta_tune.cluster import assigned_gpu
from delta_tune.cluster.assigned_gpu import NOSET, place_in_words, use_assigned_gpu


@pytest.fixture(autouse=True)
def deterministic(monkeypatch):
    """The tests' process stays as it was."""
    monkeypatch.setattr(assigned_gpu.torch.backends.cudnn, "deterministic", False)


@pytest.mark.parametrize("asked", NOSET)
@pytest.mark.parametrize("value", ["1", "true"])
def test_worker_uses_its_own_gpu_where_ray_leaves_that_to_it(monkeypatch, asked, value):
    monkeypatch.setenv(asked, value)
    monkeypatch.setenv(NOSET[asked], "0,1,2,3")
    monkeypatch.setattr(assigned_gpu, "gpus_of_process", lambda: ["3"])
    use_assigned_gpu()
    assert os.environ[NOSET[asked]] == "3"


@pytest.mark.parametrize("asked", NOSET)
def test_what_ray_chose_stays(monkeypatch, asked):
    monkeypatch.setenv(asked, "0")
    monkeypatch.setenv(NOSET[asked], "2")
    monkeypatch.setattr(assigned_gpu, "gpus_of_process", lambda: ["3"])
    use_assigned_gpu()
    assert os.environ[NOSET[asked]] == "2"


def test_place_names_the_node_and_its_gpu(ray_cluster):
    assert ray.get(ray.remote(num_gpus=0.5)(place_in_words).remote()) == f"GPU 0 of node {socket.gethostname()}"
    assert ray.get(ray.remote(num_cpus=1)(place_in_words).remote()) == f"node {socket.gethostname()}"


def test_convolutions_of_a_worker_repeat():
    use_assigned_gpu()
    assert assigned_gpu.torch.backends.cudnn.deterministic
