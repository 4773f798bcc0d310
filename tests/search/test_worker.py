"""What a worker reports of a trial, without Ray."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from types import SimpleNamespace

import pytest
import torch
from helpers.objects import at

from delta_tune.config import TrialConfig
from delta_tune.results.layout import BROKEN_FILE, HUNG_BEFORE_FILE, HUNG_FILE
from delta_tune.search import process_faults, worker
from delta_tune.search.messages import TrialAssignment, TrialOutcome, reported_epochs
from delta_tune.training import checkpoint
from delta_tune.training.checkpoint import read_resume_point
from delta_tune.training.trial import TrialResult, run_trial


@pytest.fixture
def reports(monkeypatch, task):
    """What the worker told Tune."""
    told = []
    context = SimpleNamespace(get_node_id=lambda: "node")
    monkeypatch.setattr(worker.ray, "get_runtime_context", lambda: context)
    monkeypatch.setattr(worker.tune, "report", told.append)
    monkeypatch.setattr(worker, "cpus_to_spare", lambda cpus, gpus: 1)
    monkeypatch.setattr(worker, "get_shared", lambda name: [task])
    monkeypatch.setattr(worker, "_tasks", None)
    return told


def run(folder, gpus=0.0, lr=0.01, max_epochs=2, rungs=()):
    settings = worker.WorkerSettings(
        shelf="study", checkpoints=str(folder), metric="val_accuracy", threads=1, device="cpu", maps=None, rungs=rungs
    )
    config = TrialConfig(regularizer="l2", lr=lr, batch_size=8, max_epochs=max_epochs)
    assignment = TrialAssignment(number=3, gpus=gpus, hyperparameters=config.record())
    worker.run_tune_trial(assignment.to_config(), settings)


def outcome(report):
    return TrialOutcome.from_result(report)


def epochs(reports):
    return [[row["epoch"] for row in reported_epochs(report)] for report in reports]


def test_short_epochs_are_reported_together_and_rungs_and_the_end_at_once(reports, tmp_path, monkeypatch):
    monkeypatch.setattr(worker, "REPORT_S", 1000.0)
    run(tmp_path, max_epochs=6, rungs=(3,))
    assert epochs(reports) == [[1], [2, 3], [4, 5, 6]]
    assert [report["epoch"] for report in reports] == [1, 3, 6]
    rows = [row for report in reports for row in reported_epochs(report)]
    assert [row["ended"] for row in rows] == sorted({row["ended"] for row in rows})
    assert not any("epochs" in row for row in rows)


def test_long_epochs_are_reported_one_by_one(reports, tmp_path, monkeypatch):
    monkeypatch.setattr(worker, "REPORT_S", 0.0)
    run(tmp_path, max_epochs=4)
    assert epochs(reports) == [[1], [2], [3], [4]]


def test_busy_driver_is_told_less_often(reports, tmp_path, monkeypatch):
    monkeypatch.setattr(worker, "REPORT_S", 0.0)
    monkeypatch.setattr(worker.tune, "report", lambda report: (reports.append(report), time.sleep(0.05)))
    monkeypatch.setattr(worker, "REPORTING_SHARE", 1e-4)
    run(tmp_path, max_epochs=4)
    assert epochs(reports) == [[1], [2, 3, 4]]


def test_bad_end_brings_the_epochs_that_were_waiting(reports, tmp_path, monkeypatch):
    monkeypatch.setattr(worker, "REPORT_S", 1000.0)

    def fail(task, config, report, **settings):
        for epoch in (1, 2, 3):
            report({"epoch": epoch, "seconds": 1.0, "eval_seconds": 0.0})
        raise ZeroDivisionError

    monkeypatch.setattr(worker, "run_trial", fail)
    run(tmp_path, max_epochs=6)
    assert epochs(reports) == [[1], [2, 3]]
    assert outcome(reports[-1]).kind == "failed"


def test_each_epoch_is_reported_once_with_where_and_when(reports, tmp_path):
    run(tmp_path)
    assert [report["epoch"] for report in reports] == [1, 2]
    assert {report["node"] for report in reports} == {"node"}
    first, second = (row for report in reports for row in reported_epochs(report))
    assert first["began"] <= first["ended"] <= second["ended"]
    assert not any(map(outcome, reports))


def test_a_node_that_does_not_see_the_study_stops_it_and_leaves_nothing(reports, tmp_path):
    run(tmp_path / "study" / "checkpoints")
    (report,) = reports
    assert outcome(report).kind == "blocked"
    assert f"{tmp_path / 'study'} is not seen by node" in outcome(report).error
    assert list(tmp_path.iterdir()) == []


def test_a_run_continued_from_an_address_tells_all_its_epochs_again(reports, bucket):
    run(f"s3://{bucket}/checkpoints")
    run(f"s3://{bucket}/checkpoints")
    told = [row for report in reports for row in reported_epochs(report)]
    rows = [{k: v for k, v in row.items() if k not in ("began", "ended")} for row in told]
    assert [row["epoch"] for row in rows] == [1, 2, 1, 2]
    assert rows[2:] == rows[:2], "it is not trained again: even the seconds are the same"


def test_a_run_that_the_study_knows_nothing_of_any_more_goes(reports, bucket):
    run(f"s3://{bucket}/checkpoints")
    run(f"s3://{bucket}/checkpoints", lr=0.02)
    assert [report["epoch"] for report in reports] == [1, 2, 1, 2]
    assert not any(map(outcome, reports))
    assert reports[0]["train_loss"] != reports[2]["train_loss"]


def test_an_address_that_does_not_answer_stops_the_study(reports, bucket, monkeypatch):
    def fail(mirror):
        raise OSError("no answer")

    monkeypatch.setattr(worker, "WAIT_S", 0.0)
    monkeypatch.setattr(worker.Mirror, "push", fail)
    run(f"s3://{bucket}/checkpoints")
    assert outcome(reports[-1]).kind == "blocked"
    assert "/checkpoints/00003 cannot be written to (no answer)" in outcome(reports[-1]).error
    assert [row["epoch"] for report in reports for row in reported_epochs(report)] == [1], "the end is not saved"


def test_checkpoint_is_pushed_while_the_next_epoch_runs_and_one_at_a_time(reports, bucket, monkeypatch):
    monkeypatch.setattr(checkpoint, "INTERVAL_S", 0.0)
    seen, goes_on, pushing = [], threading.Event(), threading.Lock()

    def push(mirror, push=worker.Mirror.push):
        assert pushing.acquire(blocking=False), "one is on its way"
        if len(seen) == 0:
            assert goes_on.wait(60), "the run waited for a push"
        push(mirror)
        seen.append(read_resume_point(mirror.folder).epoch)
        pushing.release()

    monkeypatch.setattr(worker.Mirror, "push", push)
    monkeypatch.setattr(worker, "REPORT_S", 0.0)
    monkeypatch.setattr(
        worker.tune, "report", lambda report: (reports.append(report), report["epoch"] == 3 and goes_on.set())
    )
    run(f"s3://{bucket}/checkpoints", max_epochs=5)
    assert not any(map(outcome, reports))
    assert (seen[0], seen[-1]) == (1, 5)
    found = at(f"s3://{bucket}/checkpoints/00003")
    assert json.loads(found["resume.json"])["epoch"] == 5
    assert {"weights-5.safetensors", "optimizer-5.pt", "best.safetensors"} <= set(found)


def test_an_address_that_cannot_be_read_stops_the_study(reports, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    run("s3://bucket/checkpoints")
    (report,) = reports
    assert outcome(report).kind == "blocked"
    assert "cannot be read" in outcome(report).error


@pytest.mark.parametrize(("gpus", "kind"), [(0.25, "out of memory"), (1.0, "failed"), (0.0, "failed")])
def test_only_a_part_of_a_gpu_is_worth_another_try(reports, tmp_path, monkeypatch, gpus, kind):
    def starve(*args, **kwargs):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(worker, "run_trial", starve)
    run(tmp_path, gpus)
    (report,) = reports
    assert outcome(report).kind == kind
    assert "CUDA out of memory" in outcome(report).error


def test_an_exception_is_reported_with_its_place_and_kept(reports, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise ZeroDivisionError("of a test")

    monkeypatch.setattr(worker, "run_trial", fail)
    run(tmp_path)
    (report,) = reports
    assert outcome(report).kind == "failed"
    assert "ZeroDivisionError: of a test (test_worker.py:" in outcome(report).error
    assert "ZeroDivisionError" in (tmp_path / "00003" / "error.txt").read_text()


def test_a_diverged_trial_says_why(reports, tmp_path, monkeypatch):
    monkeypatch.setattr(worker, "run_trial", lambda *a, **k: TrialResult(state="diverged", error="the loss is nan"))
    run(tmp_path)
    assert outcome(reports[-1]) == TrialOutcome(kind="diverged", error="the loss is nan")


def test_memory_is_given_back_after_any_end(reports, tmp_path, monkeypatch):
    given = []
    monkeypatch.setattr(worker, "release_memory", lambda: given.append(True))
    run(tmp_path)
    monkeypatch.setattr(worker, "run_trial", lambda *a, **k: 1 / 0)
    run(tmp_path)
    assert len(given) == 2


def test_trial_that_hung_twice_in_the_same_epoch_is_failed_and_not_run_again(reports, tmp_path):
    (tmp_path / "00003").mkdir()
    (tmp_path / "00003" / HUNG_BEFORE_FILE).touch()
    (tmp_path / "00003" / HUNG_FILE).write_text("Timeout (0:01:00)!\nThread 1 in hang\n")
    run(tmp_path)
    (report,) = reports
    assert outcome(report).kind == "failed"
    assert outcome(report).error.startswith("it hung: an epoch took more than 1:00, 20 times the longest before")
    assert "in hang" in (tmp_path / "00003" / "error.txt").read_text()


def test_trial_whose_process_stood_still_once_goes_on(reports, tmp_path):
    (tmp_path / "00003").mkdir()
    (tmp_path / "00003" / HUNG_FILE).write_text("Timeout (0:01:00)!\nThread 1 in step\n")
    run(tmp_path)
    assert [report["epoch"] for report in reports] == [1, 2]
    assert not any(map(outcome, reports))
    assert not (tmp_path / "00003" / HUNG_BEFORE_FILE).exists(), "each epoch may be held up once"


def test_epoch_that_is_told_again_is_not_one_that_ended(reports, tmp_path, monkeypatch):
    run(tmp_path)
    folder = tmp_path / "00003"
    (folder / HUNG_FILE).write_text("Timeout (0:01:00)!\nThread 1 in step\n")
    monkeypatch.setattr(worker, "run_trial", lambda task, config, report, **_: report(reports[-1]) or 1 / 0)
    run(tmp_path)
    assert (folder / HUNG_BEFORE_FILE).exists()


class ProcessEndedError(BaseException):
    """What `os._exit` is in these tests."""


@pytest.fixture
def processes(monkeypatch):
    """Runs a trial in one process after the other, until one does not end itself; returns how many there were."""

    def end(status):
        raise ProcessEndedError

    monkeypatch.setattr(process_faults.os, "_exit", end)

    def processes(folder, gpus=0.0):
        for count in range(1, 9):
            with contextlib.suppress(ProcessEndedError):
                run(folder, gpus)
                return count
        raise AssertionError("it would go on for ever")

    return processes


def raise_always(error):
    def fail(*args, **kwargs):
        raise error

    return fail


BROKEN = torch.AcceleratorError("CUDA error: an illegal memory access was encountered\nfor more see")


def test_broken_context_ends_the_process_and_the_trial_goes_on_in_another(reports, tmp_path, processes, monkeypatch):
    calls = []

    def once(*args, **kwargs):
        calls.append(None)
        if len(calls) == 1:
            raise BROKEN
        return run_trial(*args, **kwargs)

    monkeypatch.setattr(worker, "run_trial", once)
    assert processes(tmp_path, gpus=0.5) == 2
    assert [report["epoch"] for report in reports] == [1, 2]
    assert "an illegal memory access" in reports[0]["notice"]
    assert "notice" not in reports[1]
    assert not list((tmp_path / "00003").glob("broken*"))


@pytest.mark.parametrize("error", [BROKEN, RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR")], ids=str)
def test_trial_that_breaks_two_processes_is_failed_with_the_error(reports, tmp_path, processes, monkeypatch, error):
    monkeypatch.setattr(worker, "run_trial", raise_always(error))
    assert processes(tmp_path) == 3
    (report,) = reports
    assert outcome(report).kind == "failed"
    assert str(error).splitlines()[0] in outcome(report).error
    assert "Traceback" in (tmp_path / "00003" / "error.txt").read_text()


def test_memory_is_not_given_back_in_a_broken_context(reports, tmp_path, processes, monkeypatch):
    monkeypatch.setattr(worker, "release_memory", raise_always(BROKEN))
    monkeypatch.setattr(worker, "run_trial", raise_always(BROKEN))
    with pytest.raises(ProcessEndedError):
        run(tmp_path)
    assert (tmp_path / "00003" / BROKEN_FILE).exists()


@pytest.mark.parametrize(("gpus", "kind"), [(0.25, "out of memory"), (1.0, "failed")])
def test_memory_that_the_driver_refuses_ends_the_process_too(reports, tmp_path, processes, monkeypatch, gpus, kind):
    error = torch.AcceleratorError("CUDA error: out of memory\nfor more see")
    monkeypatch.setattr(worker, "run_trial", raise_always(error))
    assert processes(tmp_path, gpus) == 2
    (report,) = reports
    assert outcome(report).kind == kind
    assert "the GPU's memory is too small" in outcome(report).error


def test_note_of_a_broken_context_is_found_at_an_address(reports, bucket, processes, monkeypatch):
    monkeypatch.setattr(worker, "run_trial", raise_always(BROKEN))
    assert processes(f"s3://{bucket}/checkpoints") == 3
    (report,) = reports
    assert outcome(report).kind == "failed"


def test_too_little_memory_of_the_node_is_tried_again_in_a_new_process(reports, tmp_path, processes, monkeypatch):
    monkeypatch.setattr(worker, "run_trial", raise_always(MemoryError()))
    assert processes(tmp_path) == 3
    (report,) = reports
    assert outcome(report).kind == "failed"
    assert "the node's memory is too small (MemoryError" in outcome(report).error


def test_a_node_whose_gpu_no_trial_can_use_stops_the_study_and_leaves_nothing(reports, tmp_path, monkeypatch):
    monkeypatch.setattr(worker, "lasting_fault", lambda device: "torch says: the driver is too old; update it")
    run(tmp_path)
    (report,) = reports
    assert outcome(report).kind == "blocked"
    assert "cannot use its GPU: torch says: the driver is too old; update it" in outcome(report).error
    assert list(tmp_path.iterdir()) == []


def test_trial_runs_on_its_networks_task_with_that_networks_attention(reports, task, tmp_path, monkeypatch):
    other = task.on(task.dataset)
    kept, ran = [], []
    for each in (task, other):
        monkeypatch.setattr(each.measurements, "missing_attention", lambda configs: {"exact": ("layer",)})
        monkeypatch.setattr(each.measurements, "keep_attention", lambda found, each=each: kept.append((each, found)))
    shared = {"study": [task, other], "attention": ["of the first", "of the other"]}
    monkeypatch.setattr(worker, "get_shared", shared.__getitem__)
    done = TrialResult(state="completed", error=None, epochs=[], model_state=None)
    monkeypatch.setattr(worker, "run_trial", lambda task, *args, **more: ran.append(task) or done)
    settings = worker.WorkerSettings(
        shelf="study",
        checkpoints=str(tmp_path),
        metric="val_accuracy",
        threads=1,
        device="cpu",
        maps=None,
        attention="attention",
    )
    config = TrialConfig(regularizer="delta", backbone="other")
    assignment = TrialAssignment(number=3, task=1, hyperparameters=config.record())
    worker.run_tune_trial(assignment.to_config(), settings)
    assert ran == [other]
    assert kept == [(other, "of the other")]
