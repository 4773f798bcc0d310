"""What the labels decide of a study's settings, and what is refused with several labels an image."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from delta_tune.config import MULTILABEL_METRIC, StudyConfig, TrialConfig, UserError
from delta_tune.spaces.validation import CheckedSpace
from delta_tune.study.labels import check_terms, settings_for_labels


def drawn(*configs):
    proposals = tuple(SimpleNamespace(config=config) for config in configs)
    return CheckedSpace(space=None, drawn=proposals, points=(), notes=())


def test_metric_of_several_labels_is_mean_average_precision_if_none_is_given(label_task):
    config, (note,) = settings_for_labels(StudyConfig(), label_task.dataset, ())
    assert (config.metric, config.task) == (MULTILABEL_METRIC, "multilabel")
    assert note.startswith(f"The metric is {MULTILABEL_METRIC}, because images have several labels")


def test_metric_that_is_given_stays(label_task):
    config, notes = settings_for_labels(StudyConfig(metric="val_macro_f1"), label_task.dataset, {"metric"})
    assert (config.metric, config.task, notes) == ("val_macro_f1", "multilabel", ())


def test_settings_of_one_label_stay_as_they_are(task):
    config = StudyConfig()
    assert settings_for_labels(config, task.dataset, ()) == (config, ())


def test_metric_of_several_labels_is_refused_with_one(task):
    with pytest.raises(UserError, match=r"is of data with several labels an image, but .* has one; give val_accuracy"):
        settings_for_labels(StudyConfig(metric=MULTILABEL_METRIC), task.dataset, {"metric"})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (TrialConfig(regularizer="co_tuning"), "co_tuning cannot be used .*; leave the trials of co_tuning out"),
        (TrialConfig(regularizer="bi_tuning"), "bi_tuning cannot be used .*; leave the trials of bi_tuning out"),
        (TrialConfig(regularizer="l2", contrast=0.5), "contrast cannot be used .*; give --set contrast=0"),
        (TrialConfig(sampling="balanced"), "sampling must be random for .*; --set class_weights=balanced is there"),
        (TrialConfig(logit_adjustment=0.5), "logit_adjustment must be 0 for .*; --set class_weights=balanced is there"),
    ],
)
def test_terms_that_need_one_class_are_refused_with_several_labels(task, label_task, config, message):
    with pytest.raises(UserError, match=message):
        check_terms(label_task.dataset, drawn(TrialConfig(), config))
    check_terms(task.dataset, drawn(config))


def test_all_that_need_one_class_are_named_at_once(label_task):
    space = drawn(TrialConfig(regularizer="co_tuning"), TrialConfig(regularizer="bi_tuning", co_tuning=0.5))
    with pytest.raises(UserError, match="leave the trials of co_tuning and bi_tuning out"):
        check_terms(label_task.dataset, space)


def test_methods_of_several_labels_are_allowed(label_task):
    check_terms(label_task.dataset, drawn(*(TrialConfig(regularizer=r) for r in ("l2", "l2_sp", "l2_fe", "delta"))))
