"""Ray's own processes as `ray start` starts them on the machines of a cluster, with token authentication on."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil

import delta_tune

RAY = str(Path(sys.executable).with_name("ray"))
CHECKOUT = Path(delta_tune.__file__).parents[1]
MEMORY = str(150 * 2**20)
LIMIT_S = 240.0
"""Of any single wait."""


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def ip(*command, check=True):
    return subprocess.run(["ip", *command], capture_output=True, text=True, check=check)


class Network:
    """Network namespaces on a bridge of this machine's: each node has an address and a loopback of its own.

    Raises:
        OSError: that is not allowed here.
    """

    def __init__(self):
        self._bridge, self._names = f"dt{os.getpid() % 10**6}", []
        third = os.getpid() % 250
        self._prefix = f"10.213.{third}"
        self.head = f"{self._prefix}.1"
        try:
            ip("link", "add", self._bridge, "type", "bridge")
            ip("addr", "add", f"{self.head}/24", "dev", self._bridge)
            ip("link", "set", self._bridge, "up")
            self.add()  # the first is a trial
        except (OSError, subprocess.CalledProcessError) as error:
            self.end()
            raise OSError(f"network namespaces are not allowed here: {getattr(error, 'stderr', error)}") from error

    def add(self):
        """A machine's address, and what runs a command there."""
        number = len(self._names) + 2
        name = f"{self._bridge}n{number}"
        self._names.append(name)
        ip("netns", "add", name)
        outer, inner = f"{self._bridge}o{number}", f"{self._bridge}i{number}"
        ip("link", "add", outer, "type", "veth", "peer", "name", inner)
        ip("link", "set", inner, "netns", name)
        ip("link", "set", outer, "master", self._bridge, "up")
        address = f"{self._prefix}.{number}"
        ip("-n", name, "addr", "add", f"{address}/24", "dev", inner)
        for device in ("lo", inner):
            ip("-n", name, "link", "set", device, "up")
        return address, ["ip", "netns", "exec", name]

    def end(self):
        with contextlib.suppress(FileNotFoundError):
            for name in self._names:
                ip("netns", "del", name, check=False)
            ip("link", "del", self._bridge, check=False)


class Nodes:
    """A head and its nodes, each started by `ray start`, on machines without a checkout of this project.

    Args:
        place: a folder for what they write.
        network: of the machines; without one they share this machine's loopback.
    """

    def __init__(self, place, network=None):
        self.place, self._network, self._processes = place, network, []
        (place / "elsewhere").mkdir()
        (place / "token").write_text(secrets.token_hex(16))
        (place / "token").chmod(0o600)
        # In place of the installed project, which these nodes shall not have
        (place / "delta_tune").mkdir()
        (place / "delta_tune" / "__init__.py").write_text("raise ImportError('there is no checkout on this node')\n")
        self.port, self.dashboard = free_port(), free_port()
        self._head = network.head if network else "127.0.0.1"
        self.address = f"{self._head}:{self.port}"
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(place / "token"),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        }

    def start(self, *flags, within=()):
        """A node in the foreground of a process of its own, so that it is known by it."""
        # Unpacked packages lie in a node's own folder: Ray unpacks a job's anew for each node, over the other's
        flags += ("--temp-dir", f"/tmp/dt-{self.port}-{len(self._processes)}")
        command = [*within, RAY, "start", *flags, "--block", "--object-store-memory", MEMORY, "--disable-usage-stats"]
        environment = self.environment | {"PYTHONPATH": str(self.place)}
        with (self.place / f"node-{len(self._processes)}.txt").open("w") as output:
            self._processes.append(
                subprocess.Popen(command, env=environment, cwd=self.place, stdout=output, stderr=subprocess.STDOUT)
            )
        return self._processes[-1]

    def start_head(self, cpus=1, autoscaling=None):
        flags = ["--head", "--port", str(self.port), "--num-cpus", str(cpus), "--node-ip-address", self._head]
        if autoscaling:
            flags += ["--autoscaling-config", str(autoscaling)]
        self.start(*flags, "--dashboard-host", "127.0.0.1", "--dashboard-port", str(self.dashboard))
        self._wait_for_cpus(cpus)

    def start_autoscaling_head(self, nodes):
        """A head without CPUs and Ray's own autoscaler, which starts up to so many nodes of one CPU on this machine."""
        kinds = {
            "head": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "worker": {"resources": {"CPU": 1, "object_store_memory": int(MEMORY)}, "node_config": {}}
            | {"min_workers": 0, "max_workers": nodes},
        }
        file = self.place / "autoscaling.json"
        # Ray's schema wants all of them
        lists = ("initialization", "setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray")
        empty = {key: {} for key in ("docker", "auth", "file_mounts")} | {f"{key}_commands": [] for key in lists}
        empty |= {key: [] for key in ("cluster_synced_files", "rsync_exclude", "rsync_filter")}
        file.write_text(
            json.dumps(
                {
                    **empty,
                    **{"cluster_name": "here", "max_workers": nodes, "upscaling_speed": 1.0, "idle_timeout_minutes": 5},
                    **{"provider": {"type": "fake_multinode", "gcs_address": self.address}, "head_node_type": "head"},
                    **{"available_node_types": kinds, "file_mounts_sync_continuously": False},
                }
            )
        )
        self.environment |= {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"}
        self.start_head(cpus=0, autoscaling=file)

    def add_node(self, cpus_then, gpus=0):
        """A node with one CPU, and GPUs that are names only, when this returns it has joined.

        Args:
            cpus_then: how many CPUs the cluster has then.
            gpus: how many GPUs.
        """
        address, within = self._network.add() if self._network else (None, [])
        flags = ["--node-ip-address", address] if address else []
        flags += ["--num-cpus", "1", "--num-gpus", str(gpus)]
        node = self.start("--address", self.address, *flags, within=within)
        self._wait_for_cpus(cpus_then)
        return node

    def _wait_for_cpus(self, number):
        """Wait until `ray status` counts so many CPUs."""
        deadline = time.monotonic() + LIMIT_S
        command = [RAY, "status", "--address", self.address]
        while True:
            done = subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False)
            if (f"/{number}.0 CPU" if number else "Resources") in done.stdout:
                return
            assert time.monotonic() < deadline, (self.place / "node-0.txt").read_text() + done.stdout + done.stderr

    def _command(self, flags, environment):
        """Of `launch.py` on this Ray, from a folder that is not the checkout."""
        command = [sys.executable, str(CHECKOUT / "launch.py"), *map(str, flags), "--address", self.address]
        return {"args": command, "env": environment or self.environment, "cwd": self.place / "elsewhere", "text": True}

    def launch(self, *flags, environment=None):
        """A session of `launch.py`, from its start to its end."""
        return subprocess.run(**self._command(flags, environment), capture_output=True, timeout=LIMIT_S, check=False)

    def begin(self, *flags):
        """A session of `launch.py` that goes on, and the file of what it says."""
        output = self.place / "driver.txt"
        with output.open("w") as file:
            process = subprocess.Popen(**self._command(flags, None), stdout=file, stderr=subprocess.STDOUT)
        return process, output

    def lose(self, node):
        """A node and all that runs on it, at once, as of a machine that is switched off."""
        for process in family(node.pid):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        node.wait(30)

    def end(self):
        for each in self._processes:
            if each.poll() is None:
                self.lose(each)
        for number in range(len(self._processes)):
            shutil.rmtree(f"/tmp/dt-{self.port}-{number}", ignore_errors=True)
        if self._network:
            self._network.end()


def family(pid):
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]
