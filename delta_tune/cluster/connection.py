"""Start or join the Ray cluster of a study; watch its head; redirect its logs."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import delta_tune
from delta_tune.cluster.address_check import CONNECT_TIMEOUT_S, check_address, version_mismatch
from delta_tune.cluster.nodes import Cluster, alive_nodes
from delta_tune.cluster.shared_objects import NAMESPACE
from delta_tune.config import UserError

HEAD_PATIENCE_S = 30.0
"""A head silent for this long is gone. Ray itself would end this process after 60 s, without a message."""


@contextlib.contextmanager
def ray_cluster(address: str | None) -> Iterator[Cluster]:
    """Join the Ray at `address`, or start a local one and stop it afterwards. An already joined Ray is left running.

    Args:
        address: `local`, `auto`, `host:port` or `ray://…`; None is RAY_ADDRESS, else `local`.

    Raises:
        UserError: nothing answers there, it expects another token, or it runs another version of Ray or Python.
    """
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # otherwise Ray warns about a changing default
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
        # Nodes need our dependencies, but not a checkout
        options = {"runtime_env": {"py_modules": [str(Path(delta_tune.__file__).parent)]}}
    try:
        ray.init(address, namespace=NAMESPACE, log_to_driver=False, logging_level=logging.ERROR, **options)
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.AuthenticationError) as error:
        reason = version_mismatch(str(error)) or f"Ray cannot be joined there ({error})."
        raise UserError(f"--address {address}: {reason}") from error


@contextlib.contextmanager
def _on_loopback() -> Iterator[None]:
    """Make a Ray started in the block listen on the loopback interface only.

    This is the default on macOS and Windows; on Linux it takes this private switch, read at import (ray#18730). A Ray
    without the switch uses its default.
    """
    try:
        from ray._private import ray_constants

        before, variable = ray_constants.ENABLE_RAY_CLUSTER, ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR
    except (ImportError, AttributeError):
        yield
        return
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        with _environment({variable: "0"}):
            yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


@contextlib.contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables while the block runs, also for processes started in it."""
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


class HeadMonitor:
    """Monitors whether the head of the joined Ray still answers."""

    def __init__(self) -> None:
        import ray

        host, _, port = ray.get_runtime_context().gcs_address.rpartition(":")
        self._address = host.strip("[]"), int(port)
        self._answered = time.monotonic()

    def patience(self) -> float:
        """Seconds that the head may still stay silent; call it regularly."""
        try:
            socket.create_connection(self._address, timeout=CONNECT_TIMEOUT_S).close()
            self._answered = time.monotonic()
        except OSError:
            pass  # it may be restarting
        return HEAD_PATIENCE_S - (time.monotonic() - self._answered)


# Tune prints tables that verbose=0 does not silence, and writes CSV and JSON logs that it leaves open if a time budget
# ends a trial; our tables have the same content.
TUNE_ENVIRONMENT = {"RAY_AIR_NEW_OUTPUT": "0", "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1"}


@contextlib.contextmanager
def redirect_ray_logs(file: Path) -> Iterator[None]:
    """Redirect log messages of Ray and the trackers to `file` while the block runs."""
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
