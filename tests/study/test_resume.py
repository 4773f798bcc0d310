from __future__ import annotations

import contextlib
import dataclasses
import os
from types import SimpleNamespace

import pytest

from delta_tune.config import UserError
from delta_tune.results.study_record import StudyRecord
from delta_tune.spaces.space import Space
from delta_tune.spaces.validation import check_space
from delta_tune.study.resume import check_same_study, foreign_owner_note, seconds_spent, study_identity


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


@pytest.mark.parametrize(("method", "refused"), [("co_tuning", True), ("l2", False)])
def test_study_whose_trials_train_the_sources_head_is_not_resumed_with_another(task, tmp_path, method, refused):
    checked = check_space(Space(name="own", function=lambda trial: {"regularizer": method}), seed=0)
    head = {name: value + 1 for name, value in task.backbone.source_head.items()}
    other = dataclasses.replace(task, backbone=dataclasses.replace(task.backbone, source_head=head))
    record = StudyRecord(dataclasses.asdict(study_identity({"net": task}, checked)))
    check_same_study(record, tmp_path, {"net": task}, checked)
    with pytest.raises(UserError, match="its source head changed since") if refused else contextlib.nullcontext():
        check_same_study(record, tmp_path, {"net": other}, checked)
    record.content["fingerprints"].pop("source_head", None)  # as earlier versions wrote it
    check_same_study(record, tmp_path, {"net": other}, checked)
