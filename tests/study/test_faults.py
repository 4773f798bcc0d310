"""Studies whose processes are killed or signalled, whose node and head are lost, whose disk fills or goes read-only.

Sessions are processes forked from one that has everything imported, so each costs seconds; their faults are real.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
import ray
from ray.cluster_utils import Cluster
from ray.exceptions import ObjectStoreFullError

from delta_tune.cli import launch
from delta_tune.cluster import connection, source_map_store
from delta_tune.cluster.failures import external_cause
from delta_tune.config import ImageSettings
from delta_tune.inference.model import load
from delta_tune.results import mirror
from delta_tune.results.columns import FINISHED
from delta_tune.results.study_record import StudyRecord
from delta_tune.results.tables import StudyTables
from delta_tune.study import remote
from delta_tune.study.remote import RemoteStudies
from delta_tune.study.setup import prepare_study
from delta_tune.training.checkpoint import read_resume_point
from delta_tune.training.source_map_index import StepKey

pytestmark = pytest.mark.faults

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["delta_tune.study.tune"])
LIMIT_S = 240.0
"""Of any single wait: a fault must never make a study hang."""
EPOCHS = 50
"""Of trials that are to outlive three faults."""
TIMES = ("train_seconds", "eval_seconds", "start_seconds", "began", "ended", "node", "seconds", "reported", "error")
SPACE = """
def space(trial):
    regularizer = trial.suggest_categorical("regularizer", ["delta_uniform", "l2"])
    trial.suggest_float("lr", 1e-4, 1e-1, log=True)
    if regularizer == "l2":
        trial.suggest_float("momentum", 0.5, 0.95)
    return {}
"""


def _session(flags, output, head_patience_s):
    """`launch.py` in this process."""
    with output.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    connection.HEAD_PATIENCE_S = head_patience_s
    sys.argv = ["launch.py", *flags]
    status = launch.main(flags)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # multiprocessing's own end closes tensorboardX's queue under its thread, which then complains


def _session_at_address(flags, output, workplace):
    remote.WORKPLACE, mirror.INTERVAL_S = workplace, 2.0
    _session(flags, output, 30.0)


class Session:
    """A driver of the study of that name, from its start to its end."""

    def __init__(self, folder, *flags, address, head_patience_s=30.0):
        self.folder, self._output = folder, folder.parent / "output.txt"
        flags = ("--name", folder.name, "--out", str(folder.parent), "--address", address, *flags)
        self._process = FORKS.Process(target=_session, args=(list(flags), self._output, head_patience_s))
        self._process.start()

    @property
    def said(self):
        return self._output.read_text()

    def wait_for(self, condition):
        """Until `condition` of trial number → row, trial number → epochs holds; whether it does before the end."""
        deadline = time.monotonic() + LIMIT_S
        while self._process.is_alive():
            assert time.monotonic() < deadline, self.said
            with contextlib.suppress(FileNotFoundError):
                if condition(*tables(self.folder)):
                    return True
            time.sleep(0.02)
        return False

    def send(self, number):
        os.kill(self._process.pid, number)

    def end(self):
        """Its exit status."""
        self._process.join(LIMIT_S)
        assert self._process.exitcode is not None, self.said
        return self._process.exitcode


def tables(folder):
    # `pq.read_table` looks at a file's size before it opens it, and another may have taken its place by then
    found = []
    for name in ("trials.parquet", "epochs.parquet"):
        with pq.ParquetFile(folder / name) as opened:
            found.append(opened.read().to_pylist())
    epochs = {row["number"]: [e for e in found[1] if e["trial_id"] == row["trial_id"]] for row in found[0]}
    return {row["number"]: row for row in found[0]}, epochs


def left(folder):
    """What a session left, whatever ended it: both tables with what the journal adds."""
    found = StudyTables.read(folder, "val_loss")
    return {n: {k: v for k, v in row.items() if v is not None} for n, row in found.trials.items()}, found.epochs


def finished(trials):
    return {number: row for number, row in trials.items() if row["state"] in FINISHED}


def timeless(folder):
    """Both tables without what no two runs have in common."""
    whole = [pq.read_table(folder / name) for name in ("trials.parquet", "epochs.parquet")]
    return [table.drop_columns([name for name in table.column_names if name in TIMES]) for table in whole]


@pytest.fixture(scope="module")
def flags(image_folder, tiny_weights, tmp_path_factory):
    """A study of seconds on the tiny network."""
    shared = tmp_path_factory.mktemp("faults")
    (shared / "space.py").write_text(SPACE)
    return [
        *("--data", str(image_folder), "--model", "timm:test_resnet", "--weights", str(tiny_weights)),
        *("--image-size", "64", "--cache", str(shared / "cache"), "--space", str(shared / "space.py")),
        *("--set", "batch_size=3", "--metric", "val_loss", "--gpus-per-trial", "0", "--max-concurrent-trials", "1"),
        *("--max-epochs", "4", "--grace-period", "1", "--reduction-factor", "2", "--final-runs", "0"),
    ]


@pytest.fixture(scope="module")
def address(ray_cluster):
    return ray.get_runtime_context().gcs_address


@pytest.fixture(scope="module")
def alone(flags, address, tmp_path_factory):
    """Twelve trials, the last of them drawn by TPE from what it learnt, run without any fault."""
    folder = tmp_path_factory.mktemp("alone") / "study"
    session = Session(folder, *flags, "--num-trials", "12", address=address)
    assert session.end() == 0, session.said
    return folder


@pytest.fixture(scope="module")
def interrupted(alone, flags, address, tmp_path_factory):
    """The same study, ended at five random moments: four times by kill -9, once by Ctrl-C; what that one said.

    None is near the study's end, which a fast machine would reach before the fault does.
    """
    folder = tmp_path_factory.mktemp("interrupted") / "study"
    rng = random.Random(0)
    total = sum(len(rows) for rows in tables(alone)[1].values())
    moments = sorted(rng.sample(range(1, total * 3 // 4), 5))
    said, kept = "", {}
    for i, moment in enumerate(moments):
        more = ["--resume"] if i else [*flags, "--num-trials", "12"]
        session = Session(folder, *more, address=address)
        assert session.wait_for(lambda trials, epochs, many=moment: sum(map(len, epochs.values())) >= many)
        time.sleep(rng.uniform(0, 0.3))
        session.send(signal.SIGINT if i == 1 else signal.SIGKILL)
        status = session.end()
        if i == 1:
            said = f"status {status}\n{session.said}"
        now = finished(left(folder)[0])
        assert kept.items() <= now.items(), "what is finished stays as it is"
        kept = now
    session = Session(folder, "--resume", address=address)
    assert session.end() == 0, session.said
    assert kept.items() <= left(folder)[0].items(), "no finished trial is run again"
    return folder, said


def test_study_interrupted_five_times_ends_with_the_same_tables_bit_for_bit(alone, interrupted):
    folder, _ = interrupted
    assert {"completed", "pruned"} <= {row["state"] for row in tables(alone)[0].values()}
    for one, other in zip(timeless(folder), timeless(alone), strict=True):
        assert one.equals(other)


def test_study_killed_between_two_final_runs_goes_on_with_the_second(flags, address, tmp_path):
    folder = tmp_path / "study"

    def ended():
        """When the last weights of runs were written that a resume takes for finished."""
        points = {run: read_resume_point(run) for run in (folder / "checkpoints").glob("final-*")}
        finished = [run for run, point in points.items() if point is not None and point.epoch == 4]
        return {run.name: (run / "weights-4.safetensors").stat().st_mtime_ns for run in finished}

    session = Session(folder, *flags, "--num-trials", "2", "--final-runs", "3", address=address)
    assert session.wait_for(lambda trials, epochs: ended())
    session.send(signal.SIGKILL)
    session.end()
    before = ended()
    assert before
    session, seen = Session(folder, "--resume", address=address), []
    assert session.wait_for(lambda trials, epochs: seen.append(ended()) or len(seen[-1]) > len(before))
    assert session.end() == 0, session.said
    assert before.items() <= seen[-1].items(), "no finished run is run again"
    assert json.loads((folder / "study.json").read_text())["held_out"]["runs"] == 3


def test_ctrl_c_ends_with_the_best_so_far_and_the_command_to_carry_on(interrupted):
    folder, said = interrupted
    assert said.startswith("status 0\n")
    assert "Best: " in said
    assert f"Interrupted. Carry on with: python launch.py --resume --name study --out {folder.parent}" in said
    assert "Traceback" not in said, said


@pytest.mark.parametrize("part", range(5))
def test_sigterm_at_any_moment_leaves_the_model_and_the_command(flags, address, tmp_path, part):
    session = Session(tmp_path / "study", *flags, "--num-trials", "99", address=address)
    assert session.wait_for(lambda trials, epochs: True), session.said
    time.sleep(1.6 * random.Random(part).uniform(part, part + 1))
    had_model, began = "First model after " in session.said, time.monotonic()
    session.send(signal.SIGTERM)
    status = session.end()
    assert time.monotonic() - began < 20, "what Slurm and Kubernetes wait at least"
    said = session.said
    assert "Traceback" not in said, said
    assert f"--resume --name study --out {tmp_path}" in said
    assert (tmp_path / "study" / "best").exists() or not had_model
    if (tmp_path / "study" / "best").exists():
        assert status == 0, said
        assert load(tmp_path / "study").predict([np.zeros((64, 64, 3), np.uint8)])


@pytest.mark.parametrize("state", ["pruned", "completed"])
def test_resume_finishes_a_trial_whose_end_was_decided_but_not_written(alone, tmp_path, state):
    shutil.copytree(alone, tmp_path / "study")
    whole = StudyTables.read(alone, "val_loss")
    number = next(n for n, row in whole.trials.items() if n > 0 and row["state"] == state)
    killed = StudyTables.read(tmp_path / "study", "val_loss")
    for n in [n for n in killed.trials if n > number]:
        del killed.trials[n], killed.epochs[n]
    killed.trials[number]["state"] = "running"
    # The epochs' table is written first, so the kill may have come before the trial's row heard of the last one.
    killed.trials[number] |= {"epochs": killed.trials[number]["epochs"] - 1, "val_loss": None, "best_val_loss": None}
    killed.write()
    record = StudyRecord.read(tmp_path / "study")
    for later in ("winner", "model", "test_scorings"):
        record.content.pop(later, None)
    record.write(tmp_path / "study")
    resumed = prepare_study({"name": "study", "out": tmp_path, "resume": True, "verbose": 0})
    assert resumed.tables.trials[number] == whole.trials[number]
    proposed = resumed.searcher.suggest("next")
    assert (proposed["number"], proposed["lr"]) == (number + 1, whole.trials[number + 1]["config.lr"])


@pytest.fixture(scope="module")
def losses(flags, address, tmp_path_factory):
    """A study on a cluster of two nodes that loses one of them, then a worker, then the head; what was seen."""
    folder = tmp_path_factory.mktemp("losses") / "study"
    seen = {"folder": folder}
    small = {"num_cpus": 1, "object_store_memory": 200 * 2**20}
    nodes = Cluster(initialize_head=True, head_node_args={**small, "include_dashboard": False})
    try:
        # An address of its own: drivers join the node of their own machine's.
        second = nodes.add_node(**small, node_ip_address="127.0.0.2")
        nodes.wait_for_nodes()
        longer = ["--num-trials", "2", "--max-epochs", str(EPOCHS), "--grace-period", str(EPOCHS)]
        session = Session(
            folder, *flags, *longer, "--max-concurrent-trials", "2", address=nodes.address, head_patience_s=3.0
        )

        def more(than):
            """Every trial has at least an epoch more than then: it has caught up."""
            return lambda _, epochs: all(len(epochs[n]) > min(len(than[n]), EPOCHS - 1) for n in (1, 2))

        assert session.wait_for(lambda _, epochs: len(epochs) == 3 and all(map(len, epochs.values())))
        nodes.remove_node(second, allow_graceful=False)
        seen["node"] = tables(folder)
        nodes.add_node(**small, node_ip_address="127.0.0.3")
        assert session.wait_for(more(seen["node"][1])), session.said
        seen["lost node"] = second.node_id
        kill_a_worker()
        seen["worker"] = tables(folder)
        assert session.wait_for(more(seen["worker"][1])), session.said
        nodes.head_node.kill_gcs_server()
        seen["head"] = tables(folder)
        began = time.monotonic()
        seen |= {"status": session.end(), "seconds": time.monotonic() - began, "said": session.said}
    finally:
        nodes.shutdown()
    session = Session(folder, "--resume", "--max-concurrent-trials", "1", address=address)
    seen |= {"resumed": session.end(), "said then": session.said}
    return seen


def kill_a_worker():
    """A process that runs a trial, not one that waits for its next; of this process's clusters alone."""
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline:  # between two epochs it looks as if it waited
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if "ray::ImplicitFunc.train" in " ".join(process.cmdline()):
                    process.kill()
                    return
    raise AssertionError("no trial runs")


def as_it_was(before, after):
    """Whether every epoch that was in the tables before is there afterwards, bit for bit, its times aside.

    What was trained since the last checkpoint is trained again.
    """
    rows = [
        {n: [{k: v for k, v in row.items() if k not in TIMES} for row in found] for n, found in epochs.items()}
        for _, epochs in (before, after)
    ]
    return all(rows[1][n][: len(each)] == each for n, each in rows[0].items())


def test_trials_of_a_lost_node_and_of_a_killed_worker_go_on_and_repeat_their_epochs_bit_for_bit(losses):
    assert losses["lost node"] in {row["node"] for row in losses["node"][0].values()}
    for fault in ("node", "worker", "head"):
        # The trial that a fault spares goes on, and may be at its end before the other is back.
        assert "running" in [row["state"] for row in losses[fault][0].values()]
    assert as_it_was(losses["node"], losses["worker"])
    assert as_it_was(losses["worker"], losses["head"])


def test_lost_head_ends_the_study_soon_and_in_a_sentence(losses):
    assert losses["status"] == 2
    assert losses["seconds"] < 30
    assert "launch.py: The study stopped: Ray's head is gone. Everything finished is saved" in losses["said"]
    assert "Traceback" not in losses["said"]


def test_resume_after_all_losses_completes_the_study(losses):
    assert losses["resumed"] == 0, losses["said then"]
    trials, epochs = tables(losses["folder"])
    assert [row["state"] for row in trials.values()] == ["completed"] * 3
    assert all([row["epoch"] for row in epochs[n]] == list(range(1, EPOCHS + 1)) for n in (1, 2))
    assert as_it_was(losses["head"], (trials, epochs))


def _session_with_a_lost_gpu(flags, output, place):
    """A session in which the first node that is met computes nothing: GPUs are names only."""
    from delta_tune.search import runner

    def on_lost_gpu(config, settings):
        import contextlib

        import ray

        from delta_tune.search import worker

        node = ray.get_runtime_context().get_node_id()
        with contextlib.suppress(FileExistsError), (place / "node").open("x") as file:
            file.write(node)
        if (place / "node").read_text() == node:
            worker._Reporter("val_loss", ()).end("GPU lost", f"GPU 0 of node {node} cannot be used any more")
        else:
            worker.run_tune_trial(config, settings)

    runner.run_tune_trial = on_lost_gpu
    os.environ["DELTA_TUNE_DEVICE"] = "cpu"  # the GPUs are names only
    _session(flags, output, 30.0)


@pytest.mark.parametrize("nodes_there", [2, 1])
def test_node_with_a_lost_gpu_gets_no_more_trials_and_fails_none(flags, tmp_path, nodes_there):
    output, folder = tmp_path / "output.txt", tmp_path / "study"
    small = {"num_cpus": 1, "num_gpus": 1, "object_store_memory": 200 * 2**20}
    nodes = Cluster(initialize_head=True, head_node_args={**small, "include_dashboard": False})
    try:
        if nodes_there == 2:
            nodes.add_node(**small, node_ip_address="127.0.0.2")
            nodes.wait_for_nodes()
        given = [*flags, "--num-trials", "4", "--max-epochs", "1", "--max-concurrent-trials", "2", "--address"]
        given += [nodes.address, "--gpus-per-trial", "1", "--name", "study", "--out", str(tmp_path)]
        process = FORKS.Process(target=_session_with_a_lost_gpu, args=(given, output, tmp_path))
        process.start()
        process.join(LIMIT_S)
        said = output.read_text()
        assert process.exitcode == (0 if nodes_there == 2 else 2), said
    finally:
        nodes.shutdown()
    lost = (tmp_path / "node").read_text()
    assert f"GPU 0 of node {lost} cannot be used any more" in said
    assert "Traceback" not in said
    trials = left(folder)[0]
    if nodes_there == 1:
        assert "no other node has room" in said
        assert "failed" not in {row["state"] for row in trials.values()}
        return
    assert {row["state"] for row in trials.values()} <= {"completed", "pruned", "diverged"}
    assert lost not in {row["node"] for number, row in trials.items() if number > 0}, "the first model uses no GPU"


def begin_alone(flags, folder, output):
    """A driver with a Ray of its own, once a trial of its is completed."""
    environment = {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "RAY_TMPDIR")}
    command = ["launch.py", *flags, "--name", folder.name, "--out", str(folder.parent)]
    text = f"import sys; sys.argv = {command!r}; from delta_tune.cli import main; sys.exit(main())"
    with output.open("w") as file:
        driver = subprocess.Popen(
            [sys.executable, "-c", text], stdout=file, stderr=file, start_new_session=True, env=environment
        )
    deadline = time.monotonic() + LIMIT_S
    while " completed " not in output.read_text():
        assert driver.poll() is None, output.read_text()
        assert time.monotonic() < deadline, output.read_text()
        time.sleep(0.2)
    return driver


@pytest.mark.parametrize("fault", ["raylet", "signals"])
def test_study_on_a_ray_of_its_own_ends_with_the_model_and_the_command(flags, tmp_path, fault):
    """Ray's process is killed, or the driver's process group gets SIGTERM twice, as from `timeout`."""
    output = tmp_path / "output.txt"
    driver = begin_alone([*flags, "--num-trials", "99"], tmp_path / "study", output)
    children = psutil.Process(driver.pid).children(recursive=True)
    if fault == "raylet":
        next(child for child in children if child.name() == "raylet").kill()
    else:
        for _ in range(2):
            os.killpg(driver.pid, signal.SIGTERM)
    assert driver.wait(LIMIT_S) == (2 if fault == "raylet" else 0), output.read_text()
    assert f"--resume --name study --out {tmp_path}" in output.read_text()
    assert "Traceback" not in output.read_text()
    assert (tmp_path / "study" / "best" / "config.json").exists()
    _, alive = psutil.wait_procs(children, timeout=30)
    assert not alive


def test_study_at_an_address_goes_on_on_another_machine_and_ends_the_same(
    flags, address, bucket, tmp_path, monkeypatch
):
    """Two drivers are killed, each with a disk of its own that nothing of is left for the next."""
    more = [*flags, "--num-trials", "7", "--confirm", "2", "--space", "search_spaces/methods.py"]
    more += ["--name", "study", "--address", address]
    at = ["--out", f"s3://{bucket}/results"]
    cut = 10
    for number in range(3):
        place = tmp_path / f"machine-{number}"
        place.mkdir()
        monkeypatch.setattr(remote, "WORKPLACE", place)
        given = ["--resume", "--name", "study", "--address", address, *at] if number else [*more, *at]
        process = FORKS.Process(target=_session_at_address, args=(given, place / "output.txt", place))
        process.start()
        folder = RemoteStudies(at[1]).here / "study"
        began = time.monotonic()
        while process.is_alive() and number < 2:
            assert time.monotonic() - began < LIMIT_S
            with contextlib.suppress(FileNotFoundError):
                if sum(map(len, tables(folder)[1].values())) >= cut * (number + 1) - 4:
                    time.sleep(0.5)
                    process.kill()
            time.sleep(0.05)
        process.join(LIMIT_S)
        said = (place / "output.txt").read_text()
        assert process.exitcode == (0 if number == 2 else -signal.SIGKILL), said
    alone = FORKS.Process(target=_session, args=([*more, "--out", str(tmp_path)], tmp_path / "output.txt", 30.0))
    alone.start()
    alone.join(LIMIT_S)
    assert alone.exitcode == 0
    for folders in ((folder, tmp_path / "study"), (folder / "confirm", tmp_path / "study" / "confirm")):
        for one, other in zip(*map(timeless, folders), strict=True):
            assert one.equals(other)


@contextlib.contextmanager
def mounted(*command):
    """A mount for a while; skips the test where that is not allowed."""
    where = command[-1]
    done = subprocess.run(["mount", *map(str, command)], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"mount is not allowed here: {done.stderr.strip()}")
    try:
        yield where
    finally:
        subprocess.run(["umount", "--lazy", str(where)], check=True)


@pytest.fixture(scope="module")
def disk(flags, address, tmp_path_factory):
    """A study on a disk of its own that fills, then goes read-only, then is as it should be; what was seen."""
    if shutil.which("mount") is None:
        pytest.skip("there is no mount")
    place = tmp_path_factory.mktemp("disk")
    folder = place / "study"
    seen = {"folder": folder}
    with mounted("-t", "tmpfs", "-o", "size=24m", "tmpfs", place):
        session = Session(folder, *flags, "--num-trials", "8", address=address)
        assert session.wait_for(lambda trials, epochs: len(finished(trials)) >= 2)
        with (place / "filler").open("wb", buffering=0) as filler, contextlib.suppress(OSError):
            while filler.write(bytes(2**12)):
                pass
        seen["full"] = (session.end(), session.said, left(folder))
        (place / "filler").unlink()
        session = Session(folder, "--resume", address=address)
        many = len(finished(seen["full"][2][0])) + 2
        assert session.wait_for(lambda trials, epochs: len(finished(trials)) >= many)
        aside = tmp_path_factory.mktemp("aside")
        with mounted("--bind", place, aside):
            # Made read-only where nobody writes, then laid over the place: a mount that is written to is busy.
            subprocess.run(["mount", "-o", "remount,bind,ro", str(aside)], check=True)
            with mounted("--bind", aside, place):
                assert not os.access(place, os.W_OK)
                seen["read-only"] = (session.end(), (place / "output.txt").read_text(), left(folder))
        session = Session(folder, "--resume", address=address)
        seen["resumed"] = (session.end(), session.said, left(folder))
    return seen


@pytest.mark.parametrize(
    ("fault", "reason"), [("full", "No space left on device"), ("read-only", "Read-only file system")]
)
def test_disk_fault_stops_the_study_with_the_reason(disk, fault, reason):
    status, said, (trials, _) = disk[fault]
    assert status == 2
    (told,) = [line for line in said.splitlines() if line.startswith("launch.py: The study stopped: ")]
    assert reason in told
    assert f"--resume --name study --out {disk['folder'].parent}" in told
    assert "Traceback" not in said
    assert "failed" not in {row["state"] for row in trials.values()}, "it is no fault of a configuration"


def test_resume_after_disk_faults_completes_the_study_and_keeps_what_was_finished(disk):
    status, said, (trials, _) = disk["resumed"]
    assert status == 0, said
    assert len(finished(trials)) == 9
    assert {row["state"] for row in trials.values()} <= {"completed", "pruned", "diverged"}
    for fault in ("full", "read-only"):
        assert finished(disk[fault][2][0]).items() <= trials.items()


def test_full_object_store_is_told_as_the_cause():
    error = RuntimeError("of a trial")
    error.__cause__ = ObjectStoreFullError("full")
    assert external_cause(error) == "Ray's object store has no room left (ObjectStoreFullError)"


def test_full_object_store_leaves_trials_without_shared_maps(monkeypatch, ray_cluster, task):
    def full(value):
        raise ObjectStoreFullError("full")

    with source_map_store.shared_source_maps("full", 2**20) as shelf:
        maps = source_map_store.RaySourceMaps("full")
        monkeypatch.setattr(source_map_store.ray, "put", full)
        maps.leave(StepKey(0, 8, ImageSettings(augmentation="none"), 1, 0), {})
        assert ray.get(shelf.report.remote()).left == 0
