"""The device that trials train on: the nodes' GPUs are asked before the study begins."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from functools import cache
from typing import Any

import ray
import torch
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from delta_tune.cluster.assigned_gpu import use_assigned_gpu
from delta_tune.cluster.failures import ExternalFailure
from delta_tune.cluster.nodes import Cluster
from delta_tune.config import UserError
from delta_tune.models.device_check import Accelerator, UnusableDeviceError, check_accelerator, gpu_device

DEVICE_VARIABLE = "DELTA_TUNE_DEVICE"
"""Environment variable: trials train on this device, and no GPU is asked, as where Ray's GPUs are names only."""
DEVICES = ("cpu", "cuda", "xpu", "mps")
ANSWER_S = 300.0
"""For the first GPU to answer: its process starts, and loads torch from a shared disk."""
OTHERS_S = 30.0
"""For the other kinds of GPUs after that: others may use them, and their first trials ask them again."""
LOOK_S = 1.0
ACCELERATOR_TYPE = "accelerator_type:"
"""Prefix of the resource with which Ray names a node's kind of GPU."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Device:
    """What trials train on."""

    type: str
    """`cpu`, `cuda`, `xpu` or `mps`."""
    why: str
    """A sentence for the plan."""
    accelerators: tuple[Accelerator, ...] = ()
    """One of each kind that was asked."""


def chosen_device() -> Device | None:
    """The device that the environment chooses; None if it chooses none.

    Raises:
        UserError: there is no such device.
    """
    chosen = os.environ.get(DEVICE_VARIABLE)
    if not chosen:
        return None
    if chosen not in DEVICES:
        raise UserError(f"{DEVICE_VARIABLE} must be one of {', '.join(DEVICES)}, but is {chosen!r}.")
    return Device(type=chosen, why=f"trains on {chosen}: {DEVICE_VARIABLE} says so, and no GPU was asked")


def device_without_gpus(cluster: Cluster, *, asked_for_cpus: bool) -> Device:
    """The device of trials without one of Ray's GPUs: Apple's GPU if it is there and works, else the CPU.

    Args:
        cluster: the nodes.
        asked_for_cpus: the user wants no GPU.
    """
    if (chosen := chosen_device()) is not None:
        return chosen
    if asked_for_cpus:
        return Device(type="cpu", why="trains on the CPU: 0 GPUs per trial were asked for")
    if len(cluster.nodes) == 1 and torch.backends.mps.is_available():
        check: Any = ray.remote(num_cpus=0, max_calls=1)(_answer)
        answer = ask({"this machine": check.remote("mps")}).get("this machine", "it did not answer")
        if isinstance(answer, Accelerator):
            return Device(type="mps", why=f"trains on mps: {answer}", accelerators=(answer,))
        return Device(type="cpu", why=f"trains on the CPU: torch cannot use Apple's GPU ({answer})")
    if cluster.may_grow:
        return Device(
            type="cpu",
            why="trains on the CPU: no node has a GPU now; if an autoscaler can add one, give --gpus-per-trial auto "
            "and --max-concurrent-trials",
        )
    return Device(type="cpu", why="trains on the CPU: no GPU found")


def device_with_gpus(gpus: float, where: str) -> Device:
    """The device of trials with a GPU of Ray's; one node of each kind computes something small with a trial's share.

    Args:
        gpus: share of a trial.
        where: the cluster in words.

    Raises:
        UserError: torch cannot use the GPUs of a node.
        ExternalFailure: none answered in time.
    """
    if (chosen := chosen_device()) is not None:
        return chosen
    check: Any = ray.remote(num_cpus=0, num_gpus=gpus, max_calls=1, max_retries=1)(_answer)
    answers = ask(
        {
            name: check.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(None)
            for node, name in gpu_nodes().items()
        }
    )
    if not answers:
        raise ExternalFailure(f"no GPU of {where} answered within {ANSWER_S / 60:g} minutes")
    found = {}
    for node, answer in answers.items():
        if not isinstance(answer, Accelerator):
            raise UserError(
                f"Ray counts GPUs on node {node} that torch there cannot use: {answer}, or give --gpus-per-trial 0 to "
                f"train on CPUs."
            )
        found[answer] = node
    if len(types := {accelerator.device for accelerator in found}) > 1:
        raise UserError(
            f"The nodes' GPUs are of several makers ({', '.join(sorted(types))}), but a study trains on one; start a "
            f"Ray with one kind, or give --gpus-per-trial 0 to train on CPUs."
        )
    (device,) = types
    return Device(type=device, why=f"trains on {device}: {'; '.join(map(str, found))}", accelerators=tuple(found))


def gpu_nodes() -> dict[str, str]:
    """Node id → name of one alive node of each kind that has GPUs."""
    kinds = {}
    for node in ray.nodes():
        if node["Alive"] and node["Resources"].get("GPU", 0.0) > 0:
            kind = frozenset(name for name in node["Resources"] if name.startswith(ACCELERATOR_TYPE))
            kinds[kind] = node
    return {node["NodeID"]: f"{node['NodeManagerHostname']} ({node['NodeID'][:8]})" for node in kinds.values()}


@cache
def lasting_fault(device: str) -> str:
    """Why no trial of this node can use its GPU, found once in a process; empty if nothing is known of it.

    A node that joins a study is asked by its first trials with this.
    """
    if device == "cpu":
        return ""
    use_assigned_gpu()
    try:
        check_accelerator(device)
    except UnusableDeviceError as fault:
        return str(fault) if fault.lasting else ""
    return ""


def ask(questions: dict[str, Any]) -> dict[str, Accelerator | str]:
    """Node → its answer; without the nodes that are silent."""
    names = {question: name for name, question in questions.items()}
    ready, waiting = _wait(list(names), 1, ANSWER_S)
    if ready and waiting:
        ready, waiting = _wait(list(names), len(names), OTHERS_S)
    for question in waiting:
        ray.cancel(question, force=True)
    answers: dict[str, Accelerator | str] = {}
    for question in ready:
        try:
            answers[names[question]] = ray.get(question)
        except RayError as error:
            answers[names[question]] = f"the process that tried it ended ({str(error).strip().splitlines()[-1]:.200})"
    return answers


def _answer(device: str | None) -> Accelerator | str:
    """The GPU of this process, or why torch cannot use it."""
    use_assigned_gpu()
    try:
        return check_accelerator(device or gpu_device())
    except UnusableDeviceError as fault:
        return str(fault)


def _wait(questions: list[Any], count: int, seconds: float) -> tuple[list[Any], list[Any]]:
    """`ray.wait` in steps, because it cannot be interrupted."""
    deadline = time.monotonic() + seconds
    while True:
        ready, waiting = ray.wait(questions, num_returns=count, timeout=LOOK_S)
        if len(ready) >= count or time.monotonic() >= deadline:
            return ready, waiting
