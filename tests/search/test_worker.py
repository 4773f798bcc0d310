"""What a worker reports of a trial, without Ray."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from delta_tune.config import TrialConfig
from delta_tune.results.layout import HUNG_BEFORE_FILE, HUNG_FILE
from delta_tune.search import worker
from delta_tune.search.messages import TrialAssignment, TrialOutcome
from delta_tune.training.trial import TrialResult


@pytest.fixture
def reports(monkeypatch, task):
    """What the worker told Tune."""
    told = []
    context = SimpleNamespace(get_node_id=lambda: "node")
    monkeypatch.setattr(worker.ray, "get_runtime_context", lambda: context)
    monkeypatch.setattr(worker.tune, "report", told.append)
    monkeypatch.setattr(worker, "get_shared", lambda name: [task])
    monkeypatch.setattr(worker, "_tasks", None)
    return told


def run(folder, gpus=0.0, lr=0.01):
    settings = worker.WorkerSettings(
        shelf="study", checkpoints=str(folder), metric="val_accuracy", threads=1, device="cpu", maps=None
    )
    config = TrialConfig(regularizer="l2", lr=lr, batch_size=8, max_epochs=2)
    assignment = TrialAssignment(number=3, gpus=gpus, hyperparameters=config.record())
    worker.run_tune_trial(assignment.to_config(), settings)


def outcome(report):
    return TrialOutcome.from_result(report)


def test_each_epoch_is_reported_once_with_where_and_when(reports, tmp_path):
    run(tmp_path)
    assert [report["epoch"] for report in reports] == [1, 2]
    assert {report["node"] for report in reports} == {"node"}
    assert reports[0]["began"] <= reports[0]["ended"] <= reports[1]["ended"]
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
    rows = [{k: v for k, v in report.items() if k not in ("began", "ended")} for report in reports]
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
    (report,) = reports
    assert outcome(report).kind == "blocked"
    assert "/checkpoints/00003 cannot be written to (no answer)" in outcome(report).error


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


def test_a_node_whose_gpu_no_trial_can_use_stops_the_study_and_leaves_nothing(reports, tmp_path, monkeypatch):
    monkeypatch.setattr(worker, "lasting_fault", lambda device: "torch says: the driver is too old; update it")
    run(tmp_path)
    (report,) = reports
    assert outcome(report).kind == "blocked"
    assert "cannot use its GPU: torch says: the driver is too old; update it" in outcome(report).error
    assert list(tmp_path.iterdir()) == []
