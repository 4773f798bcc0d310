"""Nodes that see the results folder and nodes that do not: the latter have a file system of their own, really."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
import ray

from delta_tune.cluster import shared_folder_check
from delta_tune.cluster.shared_folder_check import check_shared_folder
from delta_tune.config import UserError

RAY = Path(sys.executable).with_name("ray")
IP = "127.0.0.4"


@pytest.fixture(scope="module")
def hidden(ray_cluster, tmp_path_factory):
    """A folder over which another node, one without CPUs, sees an empty one; None where that is not allowed here."""
    folder = tmp_path_factory.mktemp("hidden")
    command = [
        *(str(RAY), "start", "--block", f"--address={ray.get_runtime_context().gcs_address}", "--num-cpus=0"),
        *(f"--node-ip-address={IP}", f"--object-store-memory={100 * 2**20}"),
    ]
    allowed = subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode == 0
    if allowed:
        mount = f'mount -t tmpfs none "{folder}" && exec "$@"'
        command = ["unshare", "--mount", "sh", "-c", mount, "sh", *command]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + 60
        while not joined():
            assert process.poll() is None, process.stdout.read().decode()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        yield folder if allowed else None
    finally:
        process.terminate()
        process.communicate(timeout=60)
        while joined():
            time.sleep(0.1)


def joined():
    return any(node["Alive"] and node["NodeManagerAddress"] == IP for node in ray.nodes())


@pytest.fixture
def said():
    return []


def test_one_node_alone_is_not_asked(ray_cluster, said, monkeypatch):
    monkeypatch.setattr(shared_folder_check, "_marker", None)
    check_shared_folder(Path("/nowhere"), said.append)


def test_folder_that_a_node_does_not_see_is_refused_with_its_name(hidden, said):
    if hidden is None:
        pytest.skip("mount namespaces are not allowed here")
    with pytest.raises(UserError, match=rf"--out {hidden}/new is not seen by node \S+ \(\w{{8}}\).*all 2 nodes"):
        check_shared_folder(hidden / "new", said.append)
    assert said == []
    assert list(hidden.iterdir()) == []


@pytest.mark.usefixtures("hidden")
def test_folder_that_all_nodes_see_is_as_it_was_afterwards(tmp_path, said):
    (tmp_path / "out").mkdir()
    check_shared_folder(tmp_path / "out", said.append)
    check_shared_folder(tmp_path / "new" / "er", said.append)
    assert said == []
    assert [path.name for path in tmp_path.rglob("*")] == ["out"]


@pytest.mark.usefixtures("hidden")
def test_node_that_does_not_answer_is_named_and_not_waited_for(tmp_path, said, monkeypatch):
    monkeypatch.setattr(shared_folder_check, "ANSWER_TIMEOUT_S", 0.0)
    check_shared_folder(tmp_path, said.append)
    (sentence,) = said
    assert sentence.startswith(f"No answer within 0 s: could not check that {tmp_path} is visible on node ")


@pytest.mark.usefixtures("hidden")
def test_folder_that_cannot_be_made_is_refused(tmp_path, said):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"--out .*file/out cannot be written to \(Not a directory\)"):
        check_shared_folder(tmp_path / "file" / "out", said.append)
