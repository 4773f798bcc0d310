"""The driver has everything measured elsewhere, several jobs side by side."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading

import numpy as np
import psutil
import pytest
import torch
from helpers.nodes import CHECKOUT, LIMIT_S, Network, Nodes
from torch import nn

from delta_tune.cluster.failures import ExternalFailure
from delta_tune.cluster.measuring import Measuring, shares
from delta_tune.cluster.resources import Resources
from delta_tune.config import TrialConfig, UserError
from delta_tune.models.backbones import build_target
from delta_tune.report.feature_map_images import save_feature_map_images
from delta_tune.report.predictions import split_logits
from delta_tune.training.task import Task

LAYERS = ("layer1.0.conv2", "layer4.0.conv2")


@contextlib.contextmanager
def no_bar(text, total):
    yield lambda count: None


def measuring(say=print, *, slots=2, gpus=0.0):
    return Measuring(Resources(cpus_per_trial=1, gpus_per_trial=gpus, slots=slots), say, no_bar)


def test_slots_are_shared_out_to_all_jobs():
    assert shares(2, 2) == [1, 1]
    assert shares(7, 3) == [3, 2, 2]


def test_jobs_run_side_by_side_and_are_told_one_after_the_other():
    second_is_done, said = threading.Event(), []

    def first(place, say):
        say("first begins")
        assert second_is_done.wait(30)
        say("first ends")

    def second(place, say):
        say("second")
        second_is_done.set()

    measuring(said.append).side_by_side([first, second], "Two jobs")
    assert said == ["first begins", "first ends", "second"]


def test_more_jobs_than_slots_all_run():
    said = []
    measuring(said.append).side_by_side([lambda place, say, n=n: say(str(n)) for n in range(5)], "Five jobs")
    assert said == ["0", "1", "2", "3", "4"]


def test_job_that_fails_ends_the_others():
    begun = []

    def broken(place, say):
        raise UserError("it cannot be measured")

    jobs = [broken, *(lambda place, say, n=n: begun.append(n) for n in range(20))]
    with pytest.raises(UserError, match=r"^it cannot be measured$"):
        measuring(slots=1).side_by_side(jobs, "Jobs")
    assert len(begun) < 20


def test_interrupt_ends_jobs_that_wait_for_workers(ray_cluster):
    def interrupt(sentence):
        raise KeyboardInterrupt

    def endless(place, say):
        say("begun")
        place.run(lambda device: __import__("time").sleep(3600))

    with pytest.raises(KeyboardInterrupt):
        measuring(interrupt).side_by_side([endless, endless], "Two jobs")


def test_driver_runs_no_network(task, tmp_path, ray_cluster, monkeypatch):
    network = build_target(task.backbone, len(task.dataset.classes), torch.Generator().manual_seed(3)).eval()
    expected = split_logits(task, task.dataset.test, network)
    fresh = Task(dataset=task.dataset, backbone=task.backbone, seed=0)
    monkeypatch.setattr(nn.Module, "__call__", lambda *args: pytest.fail("the driver ran a network"))
    with measuring().workplace(probes=True) as place:
        fresh.measurements.measure([TrialConfig(layers=LAYERS), TrialConfig(regularizer="l2_fe")], workplace=place)
        logits = split_logits(task, task.dataset.test, network, place)
        weights = {"layer1": np.full(32, 1 / 32, dtype=np.float32)}
        save_feature_map_images(task, weights, network, tmp_path / "maps.parquet", place)
    assert fresh.measurements.features.keys() == {"train", "val"}
    assert fresh.measurements.attention["exact"].keys() == set(LAYERS)
    assert torch.equal(logits, expected)
    assert (tmp_path / "maps.parquet").exists()


def test_machine_alone_computes_in_this_process():
    resources, said = Resources(cpus_per_trial=1, gpus_per_trial=0, slots=2), []
    alone = Measuring(resources, said.append, no_bar, here=True)
    alone.side_by_side([lambda place, say: say(place.run(lambda device: os.getpid()))] * 2, "Jobs")
    with alone.workplace() as place:
        said.append(place.run(lambda device: os.getpid()))
    assert said == [os.getpid()] * 3


def test_workers_are_kept_for_all_workplaces_of_a_block_and_end_with_it(ray_cluster):
    place_of_work, processes = measuring(slots=1), []

    def work():
        with place_of_work.workplace() as place:
            processes.append(place.run(lambda device: __import__("os").getpid()))

    with place_of_work.kept_workers():
        work()
        work()
    with contextlib.suppress(psutil.NoSuchProcess):
        psutil.Process(processes[0]).wait(30)  # raises if it lives on
    work()
    assert processes[0] == processes[1] != processes[2]


def test_worker_has_the_share_of_a_gpu_that_a_trial_has(ray_cluster):
    with measuring(gpus=0.5).workplace() as place:
        gpus, threads = place.run(
            lambda device: (__import__("ray").get_gpu_ids(), __import__("torch").get_num_threads())
        )
    assert (gpus, threads) == ([0], 1)


@pytest.mark.faults
def test_work_of_a_worker_that_dies_is_done_by_another(ray_cluster, tmp_path):
    died = tmp_path / "died"

    def once(device):
        if not died.exists():
            died.touch()
            os._exit(1)
        return "done"

    with measuring().workplace() as place:
        assert place.run(once) == "done"


def raising(error):
    def fail(device):
        raise error

    return fail


@pytest.mark.faults
@pytest.mark.parametrize(
    ("error", "told"),
    [
        (UserError("give another head."), UserError),
        (torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), ExternalFailure),
        (RuntimeError("CUDA error: an illegal memory access was encountered\nmore lines"), ExternalFailure),
        (KeyError("layer"), KeyError),
    ],
)
def test_failure_of_a_worker_is_told_as_itself_or_in_one_line(ray_cluster, error, told):
    with measuring().workplace() as place, pytest.raises(told) as raised:
        place.run(raising(error))
    assert "\n" not in str(raised.value)
    assert str(error).splitlines()[0] in str(raised.value)


DRIVER = """
import json, sys
import ray, torch
from delta_tune import tune

forward, seen = torch.nn.Module.__call__, []

def counted(module, *args, **kwargs):
    sizes = [len(each) for each in args if isinstance(each, torch.Tensor) and each.dim() == 4]
    if ray.is_initialized() and max(sizes, default=0) > 1:
        seen.append(type(module).__name__)
    return forward(module, *args, **kwargs)

torch.nn.Module.__call__ = counted
settings, file = json.loads(sys.argv[1]), sys.argv[2]
result = tune(**settings)
with open(file, "w") as output:
    json.dump({"forwards": seen, "scores": result.best_metrics}, output)
"""


@pytest.mark.cluster
def test_study_from_a_head_without_gpu_runs_every_network_on_the_nodes(image_folder, tiny_weights, tmp_path):
    try:
        network = Network()
    except OSError as error:
        pytest.skip(str(error))
    (tmp_path / "nodes").mkdir()
    nodes = Nodes(tmp_path / "nodes", network)
    settings = {"data": str(image_folder), "model": "timm:test_resnet", "weights": str(tiny_weights), "image_size": 64}
    settings |= {"cache": str(tmp_path / "cache"), "out": str(tmp_path), "name": "study", "address": nodes.address}
    settings |= {"num_trials": 2, "max_epochs": 2, "confirm": 2, "final_runs": 0, "gpus_per_trial": 1}
    settings |= {"set": {"layers": "layer4.0.conv2"}, "grace_period": 2}
    try:
        nodes.start_head(cpus=0)
        nodes.add_node(1, gpus=1)
        nodes.add_node(2, gpus=1)
        done = subprocess.run(
            [sys.executable, "-c", DRIVER, json.dumps(settings), str(tmp_path / "told.json")],
            **{
                "env": nodes.environment | {"PYTHONPATH": str(CHECKOUT), "DELTA_TUNE_DEVICE": "cpu"},
                "cwd": tmp_path / "nodes" / "elsewhere",
            },
            **{"capture_output": True, "text": True, "timeout": LIMIT_S, "check": False},
        )
    finally:
        nodes.end()
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads((tmp_path / "told.json").read_text())
    assert told["forwards"] == []
    assert 0 <= told["scores"]["test_accuracy"] <= 1
