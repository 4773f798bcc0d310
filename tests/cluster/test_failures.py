"""Ends from outside: what is said, and what may still be saved. The Ray of these tests is replaced by sockets."""

from __future__ import annotations

import socket
import subprocess
import sys
from types import SimpleNamespace

import pytest
import ray
import torch
from ray.exceptions import RayTaskError

from delta_tune.cluster import connection
from delta_tune.cluster.connection import RayMonitor
from delta_tune.cluster.failures import BrokenGpuError, ExternalFailure, as_user_error, device_faults_named
from delta_tune.config import UserError
from delta_tune.results.layout import STUDY_FILE


def fail_with(error, folder):
    with as_user_error(folder, str(folder.parent)):
        raise error


def test_failure_before_the_study_began_names_nothing_to_resume(tmp_path):
    with pytest.raises(UserError, match=r"^The study did not begin: no room; nothing is saved yet") as told:
        fail_with(ExternalFailure("no room"), tmp_path / "study")
    assert "--resume" not in str(told.value)


@pytest.fixture
def folder(tmp_path):
    """A study's folder."""
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / STUDY_FILE).touch()
    return tmp_path / "study"


def test_failure_of_a_study_that_began_names_the_command(folder):
    with pytest.raises(UserError, match=r"^The study stopped: no room.* --resume --name study --out "):
        fail_with(ExternalFailure("no room"), folder)


def test_interrupt_of_a_study_that_began_names_the_command(folder):
    with pytest.raises(KeyboardInterrupt, match=r"^interrupted; continue with: .* --resume --name study --out "):
        fail_with(KeyboardInterrupt(), folder)


def test_interrupt_before_the_study_began_has_nothing_to_say(tmp_path):
    with pytest.raises(KeyboardInterrupt) as told:
        fail_with(KeyboardInterrupt(), tmp_path / "study")
    assert str(told.value) == ""


@pytest.fixture
def sockets(monkeypatch):
    """Two listening sockets in the place of Ray's head and its node here."""
    monkeypatch.setattr(connection, "HEAD_PATIENCE_S", 0.0)
    with socket.create_server(("127.0.0.1", 0)) as head, socket.create_server(("127.0.0.1", 0)) as node:
        host, port = node.getsockname()
        here = {"NodeID": "here", "NodeManagerAddress": host, "NodeManagerPort": port}
        context = SimpleNamespace(gcs_address="{}:{}".format(*head.getsockname()), get_node_id=lambda: here["NodeID"])
        monkeypatch.setattr(ray, "get_runtime_context", lambda: context)
        monkeypatch.setattr(ray, "nodes", lambda: [{"NodeID": "other"}, here])
        monkeypatch.setattr(ray, "is_initialized", lambda: True)
        yield SimpleNamespace(head=head, node=node, here=here)


def test_ray_that_answers_has_no_failure(sockets, monkeypatch):
    monkeypatch.setattr(connection, "HEAD_PATIENCE_S", 60.0)
    assert RayMonitor().failure() is None


def test_node_that_ended_is_a_failure(sockets, monkeypatch):
    monkeypatch.setattr(connection, "HEAD_PATIENCE_S", 60.0)
    monitor = RayMonitor()
    sockets.node.close()
    assert monitor.failure() == "Ray's process on this machine (its raylet) has ended"


def test_ray_that_this_process_has_shut_down_is_none(sockets, monkeypatch):
    monkeypatch.setattr(connection, "HEAD_PATIENCE_S", 60.0)
    monitor = RayMonitor()
    sockets.node.close()
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    assert monitor.failure() is None


def test_node_out_of_reach_from_the_beginning_is_none(sockets, monkeypatch):
    monkeypatch.setattr(connection, "HEAD_PATIENCE_S", 60.0)
    sockets.node.close()
    assert RayMonitor().failure() is None


def test_head_that_is_silent_for_too_long_is_a_failure(sockets):
    monitor = RayMonitor()
    sockets.head.close()
    assert monitor.failure() == "Ray's head is gone"


DRIVER = """
import sys, time
from pathlib import Path
from delta_tune.cluster import failures
failures.HEAD_CHECK_S = 0.1
class Gone:
    def failure(self):
        return "Ray is gone"
failures.RayMonitor = Gone
def save():
    print("saved", flush=True)
    {fault}
with failures.exit_if_head_dies(Path(sys.argv[1]), "results", lambda: print("closed"), save):
    time.sleep(60)
"""


@pytest.mark.parametrize("fault", ["pass", "raise OSError('the disk is full')"])
def test_process_without_ray_ends_with_a_sentence_and_saves_what_it_can(folder, fault):
    command = [sys.executable, "-c", DRIVER.format(fault=fault), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)
    assert (done.returncode, done.stdout) == (2, "closed\nsaved\n")
    assert done.stderr.startswith("launch.py: The study stopped: Ray is gone. Everything finished is saved in ")
    assert done.stderr.endswith("continue with: python launch.py --resume --name study --out results\n")


def raised_in_a_task(error):
    return RayTaskError("measure", "Traceback (most recent call last):", error, ip="127.0.0.1").as_instanceof_cause()


def test_error_of_a_task_that_is_raised_from_the_task_s_is_itself(tmp_path):
    task_error = raised_in_a_task(KeyError("layer"))
    with pytest.raises(KeyError, match="layer"), as_user_error(tmp_path, str(tmp_path.parent)):
        raise task_error.cause from task_error


@pytest.mark.parametrize("wrap", [lambda error: error, raised_in_a_task], ids=["here", "in a task"])
@pytest.mark.parametrize(
    ("error", "words"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "a larger --gpus-per-trial gives more"),
        (torch.AcceleratorError("CUDA error: out of memory"), "a smaller batch_size or --image-size needs less"),
        (torch.AcceleratorError("CUDA error: unspecified launch failure\nSearch for"), "a GPU cannot be used any more"),
        (MemoryError("Unable to allocate 8 GiB"), "a smaller --max-concurrent-trials leaves more"),
    ],
)
def test_fault_of_a_device_outside_of_trials_is_one_sentence_with_advice(folder, wrap, error, words):
    with pytest.raises(UserError, match=r"^The study stopped: ") as told:
        fail_with(wrap(error), folder)
    assert words in str(told.value)
    assert "Traceback" not in str(told.value)
    assert "\n" not in str(told.value)


def test_sentence_of_another_process_comes_without_its_traceback(folder):
    with pytest.raises(UserError, match=r"^The study stopped: no room\. Everything finished"):
        fail_with(raised_in_a_task(ExternalFailure("no room")), folder)


@pytest.mark.parametrize(
    ("error", "kind"),
    [(torch.AcceleratorError("CUDA error: misaligned address"), BrokenGpuError), (MemoryError(), ExternalFailure)],
)
def test_fault_in_a_task_says_what_was_done_and_where(error, kind):
    where = f"^measuring on node {socket.gethostname()}: .*{type(error).__name__}"
    with pytest.raises(kind, match=where), device_faults_named("measuring"):
        raise error


def test_other_errors_of_a_task_stay_as_they_are():
    with pytest.raises(ZeroDivisionError), device_faults_named("measuring"):
        raise ZeroDivisionError
