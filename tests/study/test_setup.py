"""What is refused before Ray starts."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest

from delta_tune.config import TrialConfig, UserError
from delta_tune.study.setup import check_head, check_source_head


@pytest.fixture
def uncut(task):
    return dataclasses.replace(task, backbone=dataclasses.replace(task.backbone, head_fault="It cannot be cut out."))


def drawn(*configs):
    return SimpleNamespace(drawn=[SimpleNamespace(config=config) for config in configs])


def test_head_that_cannot_be_cut_out_is_refused_where_trials_begin_with_a_fitted_one(task, uncut):
    advice = "or do without a fitted head: --set head_start=random --set head_lr_multiplier=10"
    with pytest.raises(UserError, match=rf"^It cannot be cut out, {advice}\.$"):
        check_head(uncut, drawn(TrialConfig(regularizer="l2")))
    with pytest.raises(UserError, match=r"10 and no trials of delta and l2_fe\.$"):
        check_head(uncut, drawn(TrialConfig(), TrialConfig(regularizer="l2_fe")))
    check_head(task, drawn(TrialConfig()))


def test_head_that_cannot_be_cut_out_may_begin_at_random(uncut):
    check_head(uncut, drawn(*(TrialConfig(regularizer=r, head_start="random") for r in ("l2", "delta_uniform"))))


def test_weights_without_a_source_head_are_refused_where_trials_train_it_along(task):
    without = dataclasses.replace(task, backbone=dataclasses.replace(task.backbone, source_head=None))
    check_source_head(without, drawn(TrialConfig(), TrialConfig(regularizer="co_tuning", co_tuning=0.0)))
    with pytest.raises(
        UserError, match=r"bring no classifier .* weights that have it, or do without: --set co_tuning=0\.$"
    ):
        check_source_head(without, drawn(TrialConfig(), TrialConfig(co_tuning=0.5)))
    with pytest.raises(UserError, match=r", or do without: no trials of co_tuning\.$"):
        check_source_head(without, drawn(TrialConfig(), TrialConfig(regularizer="co_tuning")))
    check_source_head(task, drawn(TrialConfig(regularizer="co_tuning")))


def test_source_head_that_cannot_be_cut_out_is_refused_where_trials_train_it_along(uncut):
    check_source_head(uncut, drawn(TrialConfig(regularizer="l2", head_start="random")))
    with pytest.raises(UserError, match=r"^It cannot be cut out, or do without: --set co_tuning=0\.$"):
        check_source_head(uncut, drawn(TrialConfig(regularizer="l2", head_start="random", co_tuning=1.0)))
