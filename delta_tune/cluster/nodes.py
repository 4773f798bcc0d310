"""The nodes of a Ray cluster and how many trials fit on them."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

from delta_tune.config import UserError
from delta_tune.console.format import format_count


@dataclass(frozen=True, slots=True)
class Node:
    """CPUs and GPUs of one machine."""

    cpus: float
    gpus: float

    def slots(self, cpus_per_trial: float, gpus_per_trial: float) -> int:
        """How many trials fit on this node at a time."""
        by_cpu = self.cpus / cpus_per_trial if cpus_per_trial else math.inf
        by_gpu = self.gpus / gpus_per_trial if gpus_per_trial else math.inf
        if 0 < gpus_per_trial < 1:  # a fraction of a GPU lies on one GPU
            by_gpu = int(self.gpus) * int(1 / gpus_per_trial + 1e-9)
        return int(min(by_cpu, by_gpu) + 1e-9)


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """The nodes that a study may use."""

    where: str
    nodes: tuple[Node, ...]
    may_grow: bool = False
    """Whether nodes may join later; False for a local Ray that we started."""

    @property
    def cpus(self) -> float:
        """CPUs of all nodes."""
        return sum(node.cpus for node in self.nodes)

    @property
    def gpus(self) -> float:
        """GPUs of all nodes."""
        return sum(node.gpus for node in self.nodes)

    @property
    def cpus_per_gpu(self) -> float:
        """CPUs for each GPU, where they are fewest; 0 without GPUs."""
        return min((node.cpus / node.gpus for node in self.nodes if node.gpus), default=0.0)

    def __str__(self) -> str:
        many = f"{len(self.nodes)} nodes, " if len(self.nodes) != 1 else ""
        return f"{self.where} ({many}{format_count(self.cpus, 'CPU')}, {format_count(self.gpus, 'GPU')})"

    def slots(self, cpus_per_trial: float, gpus_per_trial: float) -> int:
        """How many trials fit on the cluster at a time.

        Raises:
            UserError: no node has room for even one trial.
        """
        if slots := sum(node.slots(cpus_per_trial, gpus_per_trial) for node in self.nodes):
            return slots
        most = max(node.gpus for node in self.nodes)
        asked = f"--gpus-per-trial {gpus_per_trial:g}"
        allowed = f"allowed is at most {most:g}" if most else "leave it out to train on CPUs"
        kind = "GPUs"
        if gpus_per_trial <= most:
            most = max(node.cpus for node in self.nodes if node.gpus >= gpus_per_trial)
            asked = f"--cpus-per-trial {cpus_per_trial:g}"
            allowed, kind = f"allowed is at most {most:g}", "CPUs"
        later = "; if its autoscaler can add such nodes, set --max-concurrent-trials" if self.may_grow else ""
        raise UserError(f"{asked} asks for more {kind} than a node of {self} has ({most:g}); {allowed}{later}.")


def cpus_to_spare(cpus_per_trial: float, gpus_per_trial: float) -> int:
    """CPUs that each trial may use on this process's node if as many trials as fit run there; at least 1."""
    import ray

    own = ray.get_runtime_context().get_node_id()
    found = [each["Resources"] for each in ray.nodes() if each["NodeID"] == own]
    node = Node(found[0].get("CPU", 0.0), found[0].get("GPU", 0.0)) if found else Node(0.0, 0.0)
    return max(1, int(node.cpus / max(1, node.slots(cpus_per_trial, gpus_per_trial))))


def is_only_node() -> bool:
    """Whether the joined Ray has no other node than this process's."""
    import ray

    own = ray.get_runtime_context().get_node_id()
    return [node["NodeID"] for node in ray.nodes() if node["Alive"]] == [own]


def alive_nodes(without: Collection[str] = ()) -> tuple[Node, ...]:
    """The nodes of the joined Ray that are alive now, except those with these ids."""
    import ray

    alive = [node["Resources"] for node in ray.nodes() if node["Alive"] and node["NodeID"] not in without]
    return tuple(Node(resources.get("CPU", 0.0), resources.get("GPU", 0.0)) for resources in alive)
