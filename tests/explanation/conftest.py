"""A finished study whose model and data are those of `best` and `task`."""

from __future__ import annotations

import pytest
from helpers import studies

from delta_tune.inference.model import load


@pytest.fixture
def study(best, task, image_folder, tmp_path, monkeypatch):
    """Its folder; this user began it."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return studies.remembered_study(tmp_path / "study", best, task, image_folder)


@pytest.fixture
def model(study):
    return load(study)
