"""The phases of a study, each replaced: an interrupt in any of them ends the study in order."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace

import pytest

from delta_tune.study import confirm_phase, tune
from delta_tune.study.time_budget import PostSearchBudget


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
    for before in ("fit_first_model", "plan_by_budget", "spend_rest"):
        monkeypatch.setattr(tune, before, lambda *args: None)
    monkeypatch.setattr(tune, "search", search)
    monkeypatch.setattr(tune, "confirm_and_retrain", confirm)
    workers = SimpleNamespace(measuring=SimpleNamespace(kept_workers=nullcontext))
    assert tune.run_phases(None, workers)


def test_confirmation_fits_although_the_search_took_a_moment_to_end():
    asked = []
    study = SimpleNamespace(
        config=SimpleNamespace(confirm=2),
        budget=SimpleNamespace(total=100.0, left=48.0, too_short_to_confirm=lambda *args: ""),
        confirms=True,
        tables=SimpleNamespace(searched={1: {}}, ranked=lambda: [1]),
        progress=SimpleNamespace(say=lambda text: None),
        reserve=lambda within, session: (asked.append(within), PostSearchBudget())[1],
    )
    assert not confirm_phase.confirm_and_retrain(study, None)
    assert asked[0] > 49, "which the search has left to it"
