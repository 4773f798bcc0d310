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
