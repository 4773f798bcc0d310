"""The phases of a study, each replaced: an interrupt in any of them ends the study in order."""

from __future__ import annotations

import pytest

from delta_tune.study import tune


def interrupted(*args):
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("search", "confirm"),
    [
        (interrupted, None),  # while attention is measured
        (lambda *args: True, None),  # while trials run: Tune handles it
        (lambda *args: False, interrupted),  # in the attention of a new split or the final training
        (lambda *args: False, lambda *args: True),
    ],
)
def test_interrupt_ends_the_study_in_order(monkeypatch, search, confirm):
    for before in ("fit_first_model", "plan_by_budget"):
        monkeypatch.setattr(tune, before, lambda *args: None)
    monkeypatch.setattr(tune, "search", search)
    monkeypatch.setattr(tune, "confirm_and_retrain", confirm)
    assert tune.run_phases(None, None)
