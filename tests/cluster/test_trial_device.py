"""Which device trials get, and how a GPU that torch cannot use is refused."""

from __future__ import annotations

import pytest
import ray
import torch

from delta_tune.cluster import trial_device
from delta_tune.cluster.failures import ExternalFailure
from delta_tune.cluster.gpu_sharing import Footprint
from delta_tune.cluster.nodes import Cluster, Node
from delta_tune.cluster.resources import allocate, find_gpus
from delta_tune.cluster.trial_device import Device, chosen_device, device_without_gpus, gpu_nodes, lasting_fault
from delta_tune.config import UserError, study_config
from delta_tune.models.device_check import Accelerator, UnusableDeviceError

T4 = Accelerator(device="cuda", name="Tesla T4", memory=2**34, capability="7.5", torch="2.14.1", runtime="CUDA 13.0")
MAC = Accelerator(device="mps", name="Apple GPU", memory=2**34, capability="", torch="2.14.1", runtime="")


def cluster(*nodes, may_grow=False):
    return Cluster(where="this Ray", nodes=nodes or (Node(8, 0),), may_grow=may_grow)


def no_measurement():
    raise AssertionError("nothing is to be measured")


def resources(given, nodes, device, measure=no_measurement):
    return allocate(study_config(given), nodes, 100, device, measure)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_gpu_that_ray_counts_and_torch_cannot_use_is_refused_with_torchs_reason(ray_cluster):
    with pytest.raises(UserError, match=r"^Ray counts GPUs on node .* that torch there cannot use: torch ") as raised:
        find_gpus(study_config({"gpus_per_trial": 0.5}), cluster(Node(2, 1)), None)
    assert "--gpus-per-trial 0" in str(raised.value)
    assert "Traceback" not in str(raised.value)


def test_environment_chooses_the_device_of_gpus_that_are_names_only(ray_cluster, monkeypatch):
    monkeypatch.setenv("DELTA_TUNE_DEVICE", "cpu")
    _, device = find_gpus(study_config({"gpus_per_trial": 0.5}), cluster(Node(2, 1)), None)
    assert device.type == "cpu"
    assert "DELTA_TUNE_DEVICE" in device.why


def test_environment_that_names_no_device_is_refused(monkeypatch):
    monkeypatch.setenv("DELTA_TUNE_DEVICE", "gpu")
    with pytest.raises(UserError, match="DELTA_TUNE_DEVICE must be one of cpu, cuda, xpu, mps, but is 'gpu'"):
        chosen_device()


def test_one_node_of_each_kind_is_asked(monkeypatch):
    def node(name, alive=True, **amounts):
        return {"NodeID": name * 10, "NodeManagerHostname": name, "Alive": alive, "Resources": amounts}

    nodes = [
        node("head", CPU=8.0),
        *(node(name, GPU=1.0, **{"accelerator_type:T4": 1.0}) for name in ("a", "b")),
        node("c", GPU=4.0, **{"accelerator_type:A10G": 1.0}),
        node("gone", alive=False, GPU=1.0, **{"accelerator_type:V100": 1.0}),
        node("d", GPU=1.0),
    ]
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    assert sorted(name[0] for name in gpu_nodes().values()) == ["b", "c", "d"]


@pytest.mark.parametrize(
    ("asked_for_cpus", "may_grow", "why"),
    [
        (True, False, "trains on the CPU: 0 GPUs per trial were asked for"),
        (False, False, "trains on the CPU: no GPU found"),
        (False, True, "if an autoscaler can add one, give --gpus-per-trial auto and --max-concurrent-trials"),
    ],
)
def test_plan_says_why_trials_train_on_the_cpu(asked_for_cpus, may_grow, why, monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    device = device_without_gpus(cluster(may_grow=may_grow), asked_for_cpus=asked_for_cpus)
    assert device.type == "cpu"
    assert why in device.why


@pytest.fixture
def mac(monkeypatch):
    """A Mac; what its check answers is set by hand."""
    answer = {}
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(trial_device, "ask", lambda questions: answer)
    return answer


def test_mac_trains_one_trial_at_a_time_on_its_gpu(mac, ray_cluster):
    mac["this machine"] = MAC
    nodes, device = find_gpus(study_config({}), cluster(), None)
    assert (device.type, device.accelerators) == ("mps", (MAC,))
    given = resources({}, nodes, device)
    assert (given.device, given.cpus_per_trial, given.gpus_per_trial, given.slots, given.most) == ("mps", 8, 0, 1, 1)


def test_mac_whose_gpu_fails_trains_on_the_cpu_and_says_why(mac, ray_cluster):
    mac["this machine"] = "torch says: no"
    device = device_without_gpus(cluster(), asked_for_cpus=False)
    assert device == Device(type="cpu", why="trains on the CPU: torch cannot use Apple's GPU (torch says: no)")


def test_mac_whose_gpu_does_not_answer_trains_on_the_cpu(mac, ray_cluster):
    assert device_without_gpus(cluster(), asked_for_cpus=False).type == "cpu"


def test_mac_trains_on_the_cpu_if_asked_to(mac):
    assert device_without_gpus(cluster(), asked_for_cpus=True).type == "cpu"


def test_mac_that_joined_a_cluster_does_not_train_there(mac):
    assert device_without_gpus(cluster(Node(8, 0), Node(8, 0)), asked_for_cpus=False).type == "cpu"


@pytest.mark.parametrize("asked", ["auto", 1, 0.5])
def test_gpus_that_no_node_has_are_not_replaced_by_cpus_where_nodes_may_join(asked):
    with pytest.raises(UserError, match=r"asks for more GPUs than .* set --max-concurrent-trials"):
        find_gpus(study_config({"gpus_per_trial": asked}), cluster(may_grow=True), None)


def test_auto_on_gpus_to_come_asks_for_one_before_it_measures(monkeypatch):
    asked = []
    monkeypatch.setattr("delta_tune.cluster.resources.wait_for_resources", lambda wanted, say: asked.append(wanted))
    monkeypatch.setattr("delta_tune.cluster.resources.alive_nodes", lambda: (Node(8, 0), Node(4, 1)))
    monkeypatch.setattr(
        "delta_tune.cluster.resources.device_with_gpus",
        lambda gpus, where: Device(type="cuda", why="", accelerators=(T4,)),
    )
    given = {"gpus_per_trial": "auto", "max_concurrent_trials": 4}
    grown, device = find_gpus(study_config(given), cluster(may_grow=True), print)
    assert [(each.cpus_per_trial, each.gpus_per_trial) for each in asked] == [(1, 1)]
    assert (grown.gpus, device.type) == (1, "cuda")


def test_plan_does_not_start_machines():
    given = {"gpus_per_trial": 1, "max_concurrent_trials": 4}
    _, device = find_gpus(study_config(given), cluster(may_grow=True), None)
    assert device.type == "cuda"
    with pytest.raises(UserError, match="--gpus-per-trial auto measures a trial on a GPU"):
        find_gpus(study_config(given | {"gpus_per_trial": "auto"}), cluster(may_grow=True), None)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (None, ""),
        (UnusableDeviceError("old", lasting=True), "old"),
        (UnusableDeviceError("out of memory", lasting=False), ""),
    ],
)
def test_node_that_joins_is_asked_once_by_its_first_trial(fault, said, monkeypatch):
    asked = []

    def check(device):
        asked.append(device)
        if fault is not None:
            raise fault

    monkeypatch.setattr(trial_device, "check_accelerator", check)
    lasting_fault.cache_clear()
    assert [lasting_fault("cuda"), lasting_fault("cuda"), lasting_fault("cpu")] == [said, said, ""]
    assert asked == ["cuda"]
    lasting_fault.cache_clear()


MEASURED = Footprint(peak=2**30, total=2**34, busy=0.3, images_per_second=100.0)
CUDA = Device(type="cuda", why="trains on cuda: a GPU", accelerators=(T4,))


@pytest.mark.parametrize(
    ("given", "gpus", "cpus", "slots"),
    [
        ({}, 0.25, 2, 8),
        ({"gpus_per_trial": "auto"}, 0.25, 2, 8),
        ({"cpus_per_trial": 3}, 0.5, 3, 4),
        ({"gpus_per_trial": 1}, 1, 8, 2),
        ({"gpus_per_trial": 1 / 3}, 0.3333, 2, 6),
        ({"gpus_per_trial": 1, "max_concurrent_trials": 1}, 1, 8, 1),
    ],
)
def test_gpu_is_filled_with_trials_that_share_its_cpus(given, gpus, cpus, slots):
    nodes = cluster(Node(64, 0), Node(8, 1), Node(16, 1))
    found = resources(given, nodes, CUDA, lambda: MEASURED)
    assert (found.gpus_per_trial, found.cpus_per_trial, found.slots, found.device) == (gpus, cpus, slots, "cuda")
    assert found.accelerators == (T4,)
    assert found.why[0] == "trains on cuda: a GPU"
    assert (MEASURED.sentence in found.why) == (given.get("gpus_per_trial", "auto") == "auto")


def test_cpu_cluster_has_the_defaults_it_always_had():
    found = resources({}, cluster(), Device(type="cpu", why="no GPU found"))
    assert (found.cpus_per_trial, found.threads, found.gpus_per_trial, found.slots) == (1, 1, 0, 8)
    assert (found.most, found.device) == (None, "cpu")


def test_gpu_that_only_cuda_could_measure_is_not_shared_by_default():
    found = resources({}, cluster(Node(8, 2)), Device(type="xpu", why=""))
    assert (found.gpus_per_trial, found.cpus_per_trial, found.slots) == (1, 4, 2)


def test_gpu_that_is_in_use_by_others_is_waited_for_with_a_word_and_a_limit(ray_cluster, monkeypatch):
    class Service:
        def answer(self):
            return 1

    service = ray.remote(num_gpus=1)(Service).remote()
    ray.get(service.answer.remote())
    monkeypatch.setattr("delta_tune.cluster.resources.BUSY_S", 0.3)
    monkeypatch.setattr("delta_tune.cluster.resources.NODE_WAIT_S", 0.5)
    said = []
    try:
        with pytest.raises(ExternalFailure, match=r"^others have used what a trial with 2 CPUs and 1 GPU needs of "):
            find_gpus(study_config({}), cluster(Node(2, 1)), said.append)
    finally:
        ray.kill(service)
    assert said[0].startswith("All room for a trial with 2 CPUs and 1 GPU on this Ray")
