"""The Ray cluster that a study runs on, and what its trials share through the object store."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from delta_tune.config import UserError
from delta_tune.joining import CONNECT_TIMEOUT_S, check_address, told_mismatch

NAMESPACE = "delta_tune"
HEAD_PATIENCE_S = 30.0
"""A head that answers for so long no more is gone. Ray itself ends this process after 60 s of it, without our word."""


@dataclass(frozen=True, slots=True)
class Node:
    """What one machine lends."""

    cpus: float
    gpus: float

    def slots(self, cpus_per_trial: float, gpus_per_trial: float) -> int:
        """Trials that fit on it at a time."""
        by_cpu = self.cpus / cpus_per_trial if cpus_per_trial else math.inf
        by_gpu = self.gpus / gpus_per_trial if gpus_per_trial else math.inf
        if 0 < gpus_per_trial < 1:  # a trial's part lies on one GPU
            by_gpu = int(self.gpus) * int(1 / gpus_per_trial + 1e-9)
        return int(min(by_cpu, by_gpu) + 1e-9)


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """What a study may use."""

    where: str
    nodes: tuple[Node, ...]
    may_grow: bool = False
    """Whether nodes may join: not on a Ray of our own."""

    @property
    def cpus(self) -> float:
        """Of all nodes."""
        return sum(node.cpus for node in self.nodes)

    @property
    def gpus(self) -> float:
        """Of all nodes."""
        return sum(node.gpus for node in self.nodes)

    def __str__(self) -> str:
        many = f"{len(self.nodes)} nodes, " if len(self.nodes) != 1 else ""
        return f"{self.where} ({many}{self.cpus:g} CPUs, {self.gpus:g} GPUs)"

    def slots(self, cpus_per_trial: float, gpus_per_trial: float) -> int:
        """Trials that run at a time.

        Raises:
            UserError: not even one fits on any node.
        """
        if found := sum(node.slots(cpus_per_trial, gpus_per_trial) for node in self.nodes):
            return found
        most = max(node.gpus for node in self.nodes)
        asked = f"--gpus-per-trial {gpus_per_trial:g}"
        allowed = f"allowed is at most {most:g}" if most else "leave it out to train on CPUs"
        kind = "GPUs"
        if gpus_per_trial <= most:
            most = max(node.cpus for node in self.nodes if node.gpus >= gpus_per_trial)
            asked = f"--cpus-per-trial {cpus_per_trial:g}"
            allowed, kind = f"allowed is at most {most:g}", "CPUs"
        later = (
            "; if its autoscaler can add such nodes, say with --max-concurrent-trials how many may run"
            if self.may_grow
            else ""
        )
        raise UserError(f"{asked} asks for more {kind} than a node of {self} has ({most:g}); {allowed}{later}.")


@contextlib.contextmanager
def ray_cluster(address: str | None) -> Iterator[Cluster]:
    """Join the Ray of that address, or start a local one and end it afterwards. A Ray already joined is left as it is.

    Args:
        address: `local`, `auto`, `host:port` or `ray://…`; None is RAY_ADDRESS, else `local`.

    Raises:
        UserError: nothing answers there, it wants another token, or runs another Ray or Python.
    """
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else Ray warns about its next default
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    address = address or os.environ.get("RAY_ADDRESS") or "local"
    joined = ray.is_initialized()
    with contextlib.ExitStack() as stack:
        if not joined:
            if address == "local":
                stack.enter_context(_on_loopback())
            _join(address)
            stack.callback(ray.shutdown)
        where = "this Ray" if joined else ("this machine" if address == "local" else f"the cluster at {address}")
        yield Cluster(where=where, nodes=alive_nodes(), may_grow=not joined and address != "local")


def _join(address: str) -> None:
    import ray

    options: dict[str, Any] = {"include_dashboard": False}
    if address != "local":
        check_address(address)
        # Nodes need our dependencies, but no checkout
        options = {"runtime_env": {"py_modules": [str(Path(__file__).parent)]}}
    try:
        ray.init(address, namespace=NAMESPACE, log_to_driver=False, logging_level=logging.ERROR, **options)
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.AuthenticationError) as error:
        reason = told_mismatch(str(error)) or f"Ray cannot be joined there ({error})."
        raise UserError(f"--address {address}: {reason}") from error


@contextlib.contextmanager
def _on_loopback() -> Iterator[None]:
    """A Ray that is started and ended meanwhile listens to this machine alone, not to its networks.

    As it does on macOS and Windows; on Linux only this switch, which is read at its import, says so (ray#18730).
    """
    from ray._private import ray_constants

    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        with _environment({ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR: "0"}):
            yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


@contextlib.contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Within it these variables are set, for processes that are started meanwhile too."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def alive_nodes() -> tuple[Node, ...]:
    """The nodes of the Ray that was joined, as they are now."""
    import ray

    found = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return tuple(Node(each.get("CPU", 0.0), each.get("GPU", 0.0)) for each in found)


class Head:
    """Whether the head of the Ray that was joined still answers."""

    def __init__(self) -> None:
        import ray

        host, _, port = ray.get_runtime_context().gcs_address.rpartition(":")
        self._address = host.strip("[]"), int(port)
        self._answered = time.monotonic()

    def patience(self) -> float:
        """Seconds that it may stay silent yet; to be asked again and again."""
        try:
            socket.create_connection(self._address, timeout=CONNECT_TIMEOUT_S).close()
            self._answered = time.monotonic()
        except OSError:
            pass  # it may be starting again
        return HEAD_PATIENCE_S - (time.monotonic() - self._answered)


def beside_driver() -> dict[str, Any]:
    """Options of an actor that is to live as long as this process: any other node may be lost before."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    node = ray.get_runtime_context().get_node_id()  # soft affinity puts actors without CPUs anywhere
    return {
        "num_cpus": 0,
        "namespace": NAMESPACE,
        "scheduling_strategy": NodeAffinitySchedulingStrategy(node_id=node, soft=False),
    }


class _Shelf:
    """An actor that holds a reference to one object, so that trials find it by name.

    A reference in the trainable's closure would be pinned in the store until the driver ends.
    """

    def __init__(self, boxed: list[Any]) -> None:
        self._boxed = boxed

    def get(self) -> list[Any]:
        """The reference, boxed: Ray would otherwise resolve it here."""
        return self._boxed


@contextlib.contextmanager
def shared(value: Any, name: str) -> Iterator[None]:
    """Put an object into the store once, found by `fetch(name)` anywhere in the cluster; gone afterwards."""
    import ray

    reference = ray.put(value)
    shelf = ray.remote(_Shelf).options(name=name, **beside_driver()).remote([reference])
    try:
        ray.get(shelf.get.remote())  # a name that is taken, or a cluster without room, shows here
        yield
    finally:
        ray.kill(shelf)
        del reference


def fetch(name: str) -> Any:
    """The object of that name; its arrays are read-only views into the node's store."""
    import ray

    (reference,) = ray.get(ray.get_actor(name, namespace=NAMESPACE).get.remote())
    return ray.get(reference)


# Tune prints tables of its own that verbose=0 does not silence, and logs to CSV and JSON files that it leaves open
# where a time budget ends a trial; our tables hold what they would.
TUNE_ENVIRONMENT = {"RAY_AIR_NEW_OUTPUT": "0", "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1"}


@contextlib.contextmanager
def quiet_tune(file: Path) -> Iterator[None]:
    """Within it messages of Ray, and of what it calls, go into the study's log instead of the terminal."""
    handler = logging.FileHandler(file)
    handler.setFormatter(logging.Formatter("%(asctime)s %(name)s %(levelname)s %(message)s"))
    loggers = [logging.getLogger(name) for name in ("ray", "ray.tune", "mlflow", "wandb")]
    before = [(logger, logger.handlers[:], logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.handlers, logger.propagate = [handler], False
    try:
        with _environment(TUNE_ENVIRONMENT):
            yield
    finally:
        for logger, handlers, propagate in before:
            logger.handlers, logger.propagate = handlers, propagate
        handler.close()
