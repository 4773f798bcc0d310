"""A Ray of separate processes, started as people do it, with token authentication on."""

from __future__ import annotations

import socket
import subprocess
import time
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
from helpers.nodes import CHECKOUT, LIMIT_S, RAY, Nodes, free_port

from delta_tune.cluster.address_check import check_address, version_mismatch
from delta_tune.config import UserError


def test_port_where_nothing_answers_is_told_at_once():
    address = f"127.0.0.1:{free_port()}"
    with pytest.raises(UserError, match=f"^--address {address}: nothing answers there .*ray start --head"):
        check_address(address)


@pytest.mark.faults
def test_port_of_something_else_is_told_in_time():
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(
            UserError, match=f"^--address {address}: something listens there but did not answer like Ray"
        ):
            check_address(address)


def test_other_versions_are_told_in_a_sentence():
    message = (
        "Version mismatch: The cluster was started with:\n    Ray: 2.59.0\n    Python: 3.12.1\n"
        "This process on Ray Client was started with:\n    Ray: 2.60.0\n    Python: 3.11.7\n"
    )
    assert version_mismatch(message) == (
        "the cluster runs Ray 2.59.0 on Python 3.12.1, but this process Ray 2.60.0 on Python 3.11.7; "
        "install the same on both."
    )
    assert version_mismatch("Could not connect.") is None


@pytest.fixture(scope="module")
def nodes(tmp_path_factory):
    """A head with a node beside it, and a server for jobs; a CPU each."""
    started = Nodes(tmp_path_factory.mktemp("nodes"))
    try:
        started.start_head()
        started.add_node(2)
        yield started
    finally:
        started.end()


@pytest.fixture(scope="module")
def flags(image_folder, tiny_weights, tmp_path_factory):
    """A study of seconds on the tiny network."""
    shared = tmp_path_factory.mktemp("cluster")
    return [
        *("--data", image_folder, "--model", "timm:test_resnet", "--weights", tiny_weights, "--image-size", "64"),
        *("--cache", shared / "cache", "--out", shared, "--metric", "val_loss", "--gpus-per-trial", "0"),
        *("--num-trials", "4", "--max-epochs", "2", "--grace-period", "2", "--final-runs", "0"),
    ]


@pytest.fixture(scope="module")
def joined(nodes, flags):
    """A study on that cluster."""
    return nodes.launch(*flags, "--name", "joined")


@pytest.mark.cluster
def test_study_joins_a_cluster_and_says_which(nodes, joined):
    assert joined.returncode == 0, joined.stdout + joined.stderr
    assert f"the cluster at {nodes.address} (2 nodes, 2 CPUs, 0 GPUs)" in joined.stdout


@pytest.mark.cluster
def test_trials_run_on_nodes_without_a_checkout(nodes, joined, flags):
    table = pq.read_table(Path(flags[flags.index("--out") + 1]) / "joined" / "trials.parquet").to_pylist()
    assert [row["state"] for row in table] == ["completed"] * 5  # with the first model


@pytest.mark.cluster
@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"RAY_AUTH_TOKEN_PATH": None, "RAY_AUTH_TOKEN": "another"}, "the token given here is a different one"),
        ({"RAY_AUTH_TOKEN_PATH": None, "HOME": "/nonexistent"}, "none is given here"),
        ({"RAY_AUTH_TOKEN_PATH": None, "RAY_AUTH_MODE": None, "HOME": "/nonexistent"}, "none is given here"),
    ],
)
def test_wrong_or_missing_token_is_told_in_a_sentence(nodes, flags, changes, reason):
    environment = {k: v for k, v in (nodes.environment | changes).items() if v is not None}
    refused = nodes.launch(*flags, environment=environment)
    assert refused.returncode == 2
    (told,) = refused.stderr.strip().splitlines()
    assert told.startswith(f"launch.py: --address {nodes.address}: Ray there expects a token, and {reason}; ")


@pytest.mark.cluster
def test_other_version_of_ray_is_told_in_a_sentence(nodes, flags):
    (nodes.place / "other").mkdir()
    (nodes.place / "other" / "sitecustomize.py").write_text("import ray\nray.__version__ = '2.1.0'\n")
    path = f"{nodes.place / 'other'}:{CHECKOUT}"
    refused = nodes.launch(*flags, environment=nodes.environment | {"PYTHONPATH": path})
    assert refused.returncode == 2
    assert "but this process Ray 2.1.0 on Python" in refused.stderr
    assert "Traceback" not in refused.stderr


@pytest.mark.cluster
def test_study_is_submitted_as_a_job(nodes, flags):
    command = [RAY, "job", "submit", "--address", f"http://127.0.0.1:{nodes.dashboard}", "--working-dir", str(CHECKOUT)]
    command += ["--", "python", "launch.py", *map(str, flags), "--name", "job", "--address", "auto"]
    deadline = time.monotonic() + LIMIT_S
    while True:
        done = subprocess.run(
            command,
            env=nodes.environment,
            cwd=nodes.place,
            capture_output=True,
            text=True,
            timeout=2 * LIMIT_S,
            check=False,
        )
        # Ray's agent on the head may not be up yet on a busy machine
        if "No available agent to submit job" not in done.stderr or time.monotonic() > deadline:
            break
        time.sleep(2)
    assert done.returncode == 0, done.stdout + done.stderr
    folder = Path(flags[flags.index("--out") + 1]) / "job"
    assert {row["state"] for row in pq.read_table(folder / "trials.parquet").to_pylist()} == {"completed"}


@pytest.mark.cluster
def test_token_is_in_no_result_log_or_process_list(nodes, joined, flags):
    token = (nodes.place / "token").read_text()
    assert token not in joined.stdout + joined.stderr
    assert not any(token in " ".join(process.cmdline()) for process in psutil.Process().children(recursive=True))
    folders = [Path(flags[flags.index("--out") + 1]), *Path("/tmp").glob(f"dt-{nodes.port}-*")]
    files = [file for folder in folders for file in folder.rglob("*") if file.is_file()]
    assert len(files) > 10
    assert not [file for file in files if token.encode() in file.read_bytes()]
