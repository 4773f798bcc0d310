"""Which trials a study is to have."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from delta_tune.config import StudyConfig, TrialConfig
from delta_tune.study.trial_plan import plan_trials

SPACE = """
def space(trial):
    trial.suggest_float("lr", 1e-4, 1e-2, log=True)
    return {"regularizer": "l2"}

START = [{"lr": 0.001}, {"lr": 0.002}]
"""


@pytest.mark.parametrize(("sampler", "rates"), [("grid", [0.001, 0.002]), ("random", [0.004, 0.001, 0.002])])
def test_grid_runs_start_alone_and_others_begin_with_the_earlier_study(tmp_path, sampler, rates):
    (tmp_path / "space.py").write_text(SPACE)
    config = StudyConfig(space=str(tmp_path / "space.py"), sampler=sampler, start_from="first", num_trials=9)
    record = SimpleNamespace(trial_defaults=TrialConfig(), start_from=[{"regularizer": "l2", "lr": 0.004}])
    plan = plan_trials(config, record)
    assert [point["lr"] for point in plan.checked.points] == rates
    assert plan.num_trials == (2 if sampler == "grid" else 9)
    assert any("without --start-from" in note for note in plan.notes) == (sampler == "grid")


def test_plan_says_that_l2_with_terms_alone_is_no_plain_l2(tmp_path):
    (tmp_path / "space.py").write_text(SPACE.replace('"l2"}', '"l2", "contrast": 0.5}'))
    config = StudyConfig(space=str(tmp_path / "space.py"), num_trials=9, confirm=2)
    plan = plan_trials(config, SimpleNamespace(trial_defaults=TrialConfig(), start_from=None))
    assert plan.num_trials == 9
    assert "space.py has L2 with contrast or co_tuning alone: no plain L2 is compared." in plan.notes
