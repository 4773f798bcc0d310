"""Hung trials, in processes of their own: the watchdog ends them."""

from __future__ import annotations

import subprocess
import sys

import pytest

from delta_tune.search import watchdog
from delta_tune.search.watchdog import timeout_from_note, watch_epochs

TRIAL = """
import sys, time
from pathlib import Path
from delta_tune.search.watchdog import watch_epochs

def hang():
    time.sleep(60)

with watch_epochs(Path(sys.argv[1]), factor=3, least_s={least}, first_s={first}) as watch:
    for seconds in {epochs}:
        time.sleep(seconds)
        watch.end()
        time.sleep({between})
        watch.begin()
    hang() if {hangs} else None
"""


def run(note, *, epochs=(), between=0.0, first=60.0, least=0.0, hangs=True):
    text = TRIAL.format(epochs=list(epochs), between=between, first=first, least=least, hangs=hangs)
    return subprocess.run([sys.executable, "-c", text, str(note)], timeout=50, check=False).returncode


def test_first_epoch_that_hangs_ends_the_process_and_says_where(tmp_path):
    assert run(tmp_path / "trial" / "hung", first=0.5) == 1
    assert "in hang" in (tmp_path / "trial" / "hung").read_text()
    assert timeout_from_note(tmp_path / "trial" / "hung") == 0.5


def test_later_epoch_is_measured_by_the_longest_before(tmp_path):
    assert run(tmp_path / "hung", epochs=[0.3, 0.05]) == 1
    assert 0.9 <= timeout_from_note(tmp_path / "hung") < 9, "three times the longest"


def test_time_between_epochs_is_not_the_trial_s(tmp_path):
    assert run(tmp_path / "hung", epochs=[0.01, 0.01], between=1.0, least=0.5, hangs=False) == 0
    assert not (tmp_path / "hung").exists()


@pytest.fixture
def forgets(monkeypatch):
    monkeypatch.setattr(watchdog, "_longest", None)


def test_trial_that_raises_leaves_no_limit_behind(tmp_path, forgets):
    with pytest.raises(RuntimeError), watch_epochs(tmp_path / "hung", first_s=0.2):
        raise RuntimeError
    assert timeout_from_note(tmp_path / "hung") is None


def test_epoch_of_an_earlier_process_counts_with_the_time_that_it_took_there(tmp_path, forgets):
    with watch_epochs(tmp_path / "hung") as watch:
        watch.end(1000.0)
        assert watchdog._longest == 1000.0


def test_limit_of_what_was_never_written_is_none(tmp_path):
    assert timeout_from_note(tmp_path / "hung") is None
