"""Where a run stands, and the view of it."""

import io

import pytest
from rich.console import Console

from delta_tune.config import TrialConfig
from delta_tune.console import live_view
from delta_tune.console.live_view import RunProgress, gpu_utilization, render_progress
from delta_tune.results.columns import EPOCH_COLUMNS
from delta_tune.results.tables import StudyTables


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def tables(tmp_path):
    return StudyTables(tmp_path, "val_accuracy")


@pytest.fixture
def time():
    return Clock()


def make(tables, time, total=8, slots=2):
    standing = RunProgress(tables, total, time)
    standing.begin(lambda: slots)
    return standing


def propose(tables, number):
    tables.add(number, TrialConfig(regularizer="l2", max_epochs=9), {}, {})


def report(tables, standing, number, epoch, score=0.5):
    tables.report(number, dict.fromkeys(EPOCH_COLUMNS, 0.5) | {"epoch": epoch, "val_accuracy": score})
    standing.reported(number, epoch)


def run(tables, standing, number, epochs, state):
    propose(tables, number)
    standing.started(number)
    for epoch in range(1, epochs + 1):
        report(tables, standing, number, epoch)
    tables.finish(number, state)
    standing.ended(number)


def test_standing_counts_epochs_bought_and_those_that_rungs_saved(tables, time):
    standing = make(tables, time)
    run(tables, standing, 0, 9, "completed")
    run(tables, standing, 1, 1, "pruned")
    run(tables, standing, 2, 3, "diverged")
    assert (standing.done, standing.bought, standing.saved) == (3, 13, 8)


def test_standing_of_a_resumed_study_is_as_if_it_had_gone_on(tables, time):
    first = make(tables, time)
    run(tables, first, 0, 9, "completed")
    run(tables, first, 1, 1, "pruned")
    propose(tables, 2)
    first.started(2)
    report(tables, first, 2, 1)
    again = make(tables, time)
    assert (again.done, again.bought, again.saved, again.best) == (2, 11, 8, "50.0 % (trial 0, l2)")
    again.started(2)
    assert again.running == {2: 1}
    report(tables, again, 2, 2)
    assert again.bought == 12


def test_standing_counts_an_epoch_that_a_lost_worker_repeats_once(tables, time):
    standing = make(tables, time)
    propose(tables, 0)
    standing.started(0)
    for epoch in (1, 2, 3, 2, 3):
        report(tables, standing, 0, epoch)
    standing.started(0)
    assert (standing.bought, standing.running) == (3, {0: 3})


def test_standing_counts_stopped_trials_of_an_earlier_session_as_to_come(tables, time):
    standing = make(tables, time)
    propose(tables, 0)
    tables.finish(0, "stopped")
    standing.begin(lambda: 2)
    assert standing.done == 0


def test_time_left_is_unknown_until_a_trial_ended_here(tables, time):
    standing = make(tables, time)
    propose(tables, 0)
    standing.started(0)
    time.now += 50
    assert standing.left is None


def test_time_left_is_the_mean_trial_s_on_the_slots(tables, time):
    standing = make(tables, time)
    for number in (0, 1):
        propose(tables, number)
        standing.started(number)
    for number, seconds in ((0, 10), (1, 20)):
        time.now += seconds
        report(tables, standing, number, 9)
        tables.finish(number, "completed")
        standing.ended(number)
    assert standing.left == pytest.approx(6 * 20 / 2), "trials of 10 and 30 s, six to come, two at a time"
    propose(tables, 2)
    standing.started(2)
    time.now += 5
    assert standing.left == pytest.approx((5 * 20 + 15) / 2)


def test_time_left_is_no_more_than_the_time_budget_s(tables, time):
    standing = make(tables, time, total=1000)
    propose(tables, 0)
    standing.started(0)
    time.now += 10
    tables.finish(0, "failed")
    standing.ended(0)
    standing.ends_in(60)
    assert standing.left == pytest.approx(60)


def test_run_without_a_number_of_trials_ends_with_its_time(tables, time):
    standing = make(tables, time, total=None)
    run(tables, standing, 0, 9, "completed")
    assert standing.left is None
    standing.ends_in(60)
    time.now += 20
    assert standing.left == pytest.approx(40)
    console = Console(file=io.StringIO(), width=100)
    console.print(render_progress(standing, "val_accuracy", "Search", 0))
    assert "1 trial done, 0 running" in console.file.getvalue()
    assert "0:20 gone, about 0:40 left" in console.file.getvalue()


def test_trial_that_gives_way_is_to_come_again(tables, time):
    standing = make(tables, time)
    propose(tables, 0)
    standing.started(0)
    standing.requeued(0)
    assert (standing.running, standing.done) == ({}, 0)


def drawn(standing, gpus=0, width=80):
    out = io.StringIO()
    console = Console(file=out, width=width, force_terminal=True, color_system=None, soft_wrap=True)
    console.print(render_progress(standing, "val_accuracy", "Search", gpus), soft_wrap=False)
    return out.getvalue()


def test_view_says_it_all(tables, time):
    standing = make(tables, time)
    run(tables, standing, 0, 9, "completed")
    run(tables, standing, 1, 4, "pruned")
    propose(tables, 2)
    standing.started(2)
    report(tables, standing, 2, 3)
    time.now += 75
    said = drawn(standing)
    assert "2 of 8 trials done, 1 running, 5 to come" in said
    assert "val_accuracy 50.0 % (trial 0, l2)" in said
    assert "16 bought, 5 saved" in said
    assert "1:15 gone" in said
    assert "CPU" in said
    assert "2 (epoch 3 of 9)" in said


def test_view_keeps_its_lines_whatever_runs(tables, time):
    standing = make(tables, time, total=90)
    for number in range(64):
        propose(tables, number)
        standing.started(number)
    lines = drawn(standing, width=60).splitlines()
    assert len(lines) == len(drawn(make(tables, time)).splitlines())
    assert all(len(line) <= 60 for line in lines)


def test_view_shows_the_use_of_gpus_where_it_is_known(tables, time, monkeypatch):
    standing = make(tables, time)
    monkeypatch.setattr(live_view.torch.cuda, "utilization", lambda device: [40, 60][device])
    assert "GPU 50 %" in drawn(standing, gpus=2)


class NVMLError_NotSupported(Exception):  # noqa: N801
    """As in the package nvidia-ml-py, whose errors have no other base."""


REFUSALS = [NVMLError_NotSupported("Not Supported"), RuntimeError("Can't initialize NVML"), OSError()]


@pytest.mark.parametrize("error", REFUSALS, ids=repr)
def test_view_goes_on_without_gpu_use_where_nvml_refuses(tables, time, monkeypatch, error):
    def refused(device):
        raise error

    monkeypatch.setattr(live_view.torch.cuda, "utilization", refused)
    assert "GPU" not in drawn(make(tables, time), gpus=2)


@pytest.mark.parametrize("error", [live_view.psutil.AccessDenied(), FileNotFoundError("/proc/stat")], ids=repr)
def test_view_goes_on_without_cpu_use_where_the_system_hides_it(tables, time, monkeypatch, error):
    def hidden():
        raise error

    monkeypatch.setattr(live_view.psutil, "cpu_percent", hidden)
    assert "CPU –" in drawn(make(tables, time), gpus=0)


def test_gpu_use_is_unknown_without_the_package_that_torch_asks(monkeypatch):
    def missing(device):
        raise ModuleNotFoundError("pynvml")

    monkeypatch.setattr(live_view.torch.cuda, "utilization", missing)
    assert gpu_utilization(1) is None
