"""A worker on a real GPU: its share of the memory is a cap, and a trial above it comes back as one."""

from types import SimpleNamespace

import pytest
import torch

from delta_tune.config import TrialConfig
from delta_tune.search import worker
from delta_tune.search.messages import TrialAssignment, TrialOutcome

pytestmark = pytest.mark.gpu
SHARE = 0.05


@pytest.fixture
def reports(monkeypatch, task):
    """What the worker told Tune."""
    told = []
    monkeypatch.setattr(worker.ray, "get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: "node"))
    monkeypatch.setattr(worker.tune, "report", told.append)
    monkeypatch.setattr(worker, "get_shared", lambda name: [task])
    monkeypatch.setattr(worker, "_tasks", None)
    monkeypatch.setattr(worker, "cpus_to_spare", lambda cpus, gpus: 1)
    yield told
    torch.cuda.set_per_process_memory_fraction(1.0)


def run(folder, gpus):
    settings = worker.WorkerSettings(
        shelf="study", checkpoints=str(folder), metric="val_accuracy", threads=1, device="cuda", maps=None
    )
    config = TrialConfig(regularizer="l2", batch_size=8, max_epochs=2)
    worker.run_tune_trial(TrialAssignment(number=3, gpus=gpus, hyperparameters=config.record()).to_config(), settings)


def test_a_trial_runs_within_its_share(reports, tmp_path):
    run(tmp_path, SHARE)
    assert [report["epoch"] for report in reports] == [1, 2]
    assert not any(map(TrialOutcome.from_result, reports))


def test_a_trial_that_needs_more_than_its_share_is_out_of_memory_and_the_next_one_runs(reports, tmp_path):
    total = torch.cuda.get_device_properties(0).total_memory
    ballast = torch.empty(int(SHARE * total), dtype=torch.uint8, device="cuda")  # as if the network were that large
    run(tmp_path / "a", SHARE)
    (report,) = reports
    assert TrialOutcome.from_result(report).kind == "out of memory"
    del ballast, report
    torch.cuda.empty_cache()
    reports.clear()
    run(tmp_path / "b", SHARE)
    assert [report["epoch"] for report in reports] == [1, 2]
