"""A finished study whose model and data are those of `best` and `task`."""

from __future__ import annotations

import shutil

import pytest
from helpers import studies

from delta_tune.inference.model import load
from delta_tune.results.remembered_studies import remember_study
from delta_tune.results.study_record import StudyRecord

STUDY_ID = "5" * 32


@pytest.fixture
def study(best, task, image_folder, tmp_path, monkeypatch):
    """Its folder; this user began it."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    folder = tmp_path / "study"
    shutil.copytree(best, folder / "best")
    prints = {"data": task.dataset.fingerprint, "weights": "w" * 32}
    studies.study_json(folder, id=STUDY_ID, fingerprints=prints)
    studies.change_settings(folder, data=str(image_folder))
    record = StudyRecord.read(folder)
    assert remember_study(STUDY_ID, str(folder), record.settings, record.space) is None
    return folder


@pytest.fixture
def model(study):
    return load(study)
