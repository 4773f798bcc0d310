"""Start or join the Ray cluster of a study; watch its head; redirect its logs."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import delta_tune
from delta_tune.cluster.address_check import CONNECT_TIMEOUT_S, check_address, version_mismatch
from delta_tune.cluster.local_ray import (
    environment,
    keep_signal_handler,
    make_private_folder,
    on_loopback,
    provide_token,
    separate_processes,
)
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
        UserError: nothing answers there, it expects another token, it runs another version of Ray or Python, or no Ray
            can be started here.
        KeyboardInterrupt: SIGTERM came while Ray started.
    """
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # otherwise Ray warns about a changing default
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    address = address or os.environ.get("RAY_ADDRESS") or "local"
    joined = ray.is_initialized()
    with contextlib.ExitStack() as stack:
        if not joined:
            if address == "local":
                _start(stack)
            else:
                _join(address)
            stack.callback(_leave)
        where = "this Ray" if joined else ("this machine" if address == "local" else f"the cluster at {address}")
        yield Cluster(where=where, nodes=alive_nodes(), may_grow=not joined and address != "local")


def _start(stack: contextlib.ExitStack) -> None:
    """Start a Ray of our own; its files go at the end of `stack`, unless the user chose their place."""
    import ray

    folder = make_private_folder()
    provide_token()
    stack.enter_context(on_loopback())
    try:
        with separate_processes():
            _init("local", include_dashboard=False, _temp_dir=str(folder / "ray"))
    except KeyboardInterrupt:
        _leave()
        shutil.rmtree(folder, ignore_errors=True)
        raise
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise UserError(
            f"Ray cannot be started on this machine ({error}); {folder}/ray/session_latest/logs says more."
        ) from error
    if not os.environ.get("RAY_TMPDIR"):
        stack.callback(shutil.rmtree, folder, ignore_errors=True)


def _join(address: str) -> None:
    import ray

    check_address(address)
    try:
        # Nodes need our dependencies, but not a checkout
        _init(address, runtime_env={"py_modules": [str(Path(delta_tune.__file__).parent)]})
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        reason = version_mismatch(str(error)) or f"Ray cannot be joined there ({error})."
        raise UserError(f"--address {address}: {reason}") from error


def _init(address: str, **options: Any) -> None:
    import ray

    with keep_signal_handler():
        ray.init(address, namespace=NAMESPACE, log_to_driver=False, logging_level=logging.ERROR, **options)


def _leave() -> None:
    import ray

    with keep_signal_handler():
        ray.shutdown(wait_for_processes=True)


class RayMonitor:
    """Monitors whether the head of the joined Ray and this machine's node of it still answer."""

    def __init__(self) -> None:
        import ray

        context = ray.get_runtime_context()
        host, _, port = context.gcs_address.rpartition(":")
        self._head = host.strip("[]"), int(port)
        self._answered = time.monotonic()
        here = context.get_node_id()
        node = next((node for node in ray.nodes() if node["NodeID"] == here), None)
        self._node = None if node is None else (node["NodeManagerAddress"], node["NodeManagerPort"])
        if self._node is not None and _fault(self._node):  # from a Ray client it may be out of reach
            self._node = None

    def failure(self) -> str | None:
        """Who has been silent for too long, in words; None if nobody. Call it regularly."""
        import ray

        refused = self._node is not None and isinstance(_fault(self._node), ConnectionRefusedError)
        if refused and ray.is_initialized():  # else this process has shut it down
            return "Ray's process on this machine (its raylet) has ended"
        if _fault(self._head) is None:
            self._answered = time.monotonic()
        if time.monotonic() - self._answered >= HEAD_PATIENCE_S:  # it may be restarting
            return "Ray's head is gone"
        return None


def _fault(address: tuple[str, int]) -> OSError | None:
    """Why nothing answers at an address; None if something does."""
    try:
        socket.create_connection(address, timeout=CONNECT_TIMEOUT_S).close()
    except OSError as error:
        return error
    return None


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
        with environment(TUNE_ENVIRONMENT):
            yield
    finally:
        for logger, handlers, propagate in before:
            logger.handlers, logger.propagate = handlers, propagate
        handler.close()
