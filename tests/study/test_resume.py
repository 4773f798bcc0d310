from __future__ import annotations

import os
from types import SimpleNamespace

import pytest

from delta_tune.study.resume import foreign_owner_note, seconds_spent


def spent(*, ended, reported):
    """Seconds of a study that noted 100 s at 1000, and whose driver was killed later."""
    epochs = [{"seconds": 20.0, "eval_seconds": 5.0, "reported": at} for at in (990.0, *reported)]
    tables = SimpleNamespace(trials={0: {"ended": ended}}, epochs={0: epochs})
    return seconds_spent(SimpleNamespace(spent_seconds=100.0, spent_seconds_at=1000.0), tables)


def test_time_until_the_last_epoch_of_a_killed_driver_counts():
    assert spent(ended=1040.0, reported=[1020.0, 1040.0]) == 140.0
    assert spent(ended=990.0, reported=[]) == 100.0


@pytest.mark.parametrize(("step", "seconds"), [(86400.0, 150.0), (-7200.0, 100.0)])
def test_step_of_the_clock_before_a_kill_is_no_time_spent(step, seconds):
    assert spent(ended=1050.0 + step, reported=[1025.0 + step, 1050.0 + step]) == seconds


def test_study_of_another_user_is_told_of_with_its_pickles(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "getuid", lambda: tmp_path.stat().st_uid + 1)
    (told,) = foreign_owner_note(tmp_path)
    assert told.startswith(f"{tmp_path} belongs to another user.")
    assert f"{tmp_path / 'ray'} holds Ray's state as pickles" in told


def test_nothing_is_said_of_ones_own_study(tmp_path):
    assert foreign_owner_note(tmp_path) == ()
