from __future__ import annotations

import os

from delta_tune.study.resume import foreign_owner_note


def test_study_of_another_user_is_told_of_with_its_pickles(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "getuid", lambda: tmp_path.stat().st_uid + 1)
    (told,) = foreign_owner_note(tmp_path)
    assert told.startswith(f"{tmp_path} belongs to another user.")
    assert f"{tmp_path / 'ray'} holds Ray's state as pickles" in told


def test_nothing_is_said_of_ones_own_study(tmp_path):
    assert foreign_owner_note(tmp_path) == ()
