"""What a study's networks are called, and which of them its trials have."""

from __future__ import annotations

import dataclasses

import pytest
from helpers.small_networks import small_backbone

from delta_tune.config import TrialConfig, UserError
from delta_tune.results.study_identity import BackboneIdentity
from delta_tune.results.study_record import StudyRecord
from delta_tune.spaces.joint import join_spaces
from delta_tune.spaces.space import Space
from delta_tune.spaces.validation import check_space
from delta_tune.study.networks import label_tasks, space_of, task_of, used_tasks
from delta_tune.study.resume import check_same_study, study_identity


@pytest.fixture
def other(task):
    """The same data with another network."""
    backbone = dataclasses.replace(task.backbone, weights="/from/other.pth", fingerprint="other")
    return dataclasses.replace(task, backbone=backbone)


def of_l2(trial):
    trial.suggest_float("lr", 1e-4, 1e-2)
    return {"regularizer": "l2"}


def space(function=of_l2, **more):
    return check_space(Space(name="mine.py", function=function, source="text", **more), seed=0)


def test_label_is_the_models_name_and_with_the_same_model_that_of_its_weights(task, other):
    model = task.backbone.model
    assert list(label_tasks([task])) == [model]
    renamed = dataclasses.replace(other, backbone=dataclasses.replace(other.backbone, model="resnet18"))
    assert list(label_tasks([task, renamed])) == [model, "resnet18"]
    assert list(label_tasks([task, other])) == [f"{model} (tiny.safetensors)", f"{model} (other.pth)"]


def test_labels_stay_where_files_were_moved(task, other):
    known = [
        BackboneIdentity(label=label, model="", weights="", fingerprints={"weights": each.backbone.fingerprint})
        for label, each in (("first", task), ("second", other))
    ]
    assert list(label_tasks([task, other], known)) == ["first", "second"]


def test_same_weights_twice_are_refused(task):
    copied = dataclasses.replace(task, backbone=dataclasses.replace(task.backbone, weights="copy.pth"))
    with pytest.raises(UserError, match="twice: both have the same weights"):
        label_tasks([task, copied])


def test_configuration_runs_on_its_network_and_without_a_name_on_the_first(task, other):
    tasks = {"a": task, "b": other}
    assert task_of(tasks, TrialConfig(backbone="b")) is other
    assert task_of(tasks, TrialConfig()) is task


def test_networks_that_no_trial_has_are_left_out(task, other):
    tasks = {"a": task, "b": other}
    assert list(used_tasks(tasks, space(fixed={"backbone": "b"}))) == ["b"]
    assert list(used_tasks(tasks, space())) == ["a"]
    assert list(used_tasks(tasks, join_spaces({"a": space(), "b": space()}))) == ["a", "b"]


def test_network_that_the_study_does_not_have_is_refused(task, other):
    with pytest.raises(UserError, match=r"backbone 'bb' \(did you mean .*b.*\), but the study has a and b"):
        used_tasks({"a": task, "b": other}, space(fixed={"backbone": "bb"}))


def test_each_network_is_checked_with_the_configurations_of_its_own_trials(task, other):
    tasks = {"a": task, "b": other}
    joint = join_spaces({"a": space(), "b": space(fixed={"lr": 0.5})})
    assert {config.backbone for config in space_of(tasks, "a", joint).configs} == {"a"}
    assert {config.lr for config in space_of(tasks, "b", joint).configs} == {0.5}
    alone = space()
    assert space_of({"a": task}, "a", alone) is alone


def test_identity_holds_all_networks_of_a_study_of_several_alone(task, other):
    joint = join_spaces({"a": space(), "b": space()})
    identity = study_identity({"a": task, "b": other}, joint)
    assert [(each.label, each.fingerprints["weights"]) for each in identity.backbones] == [
        ("a", task.backbone.fingerprint),
        ("b", "other"),
    ]
    assert "backbone" in identity.distributions
    one = study_identity({task.backbone.model: task}, space())
    assert one.backbones == ()
    record = StudyRecord()
    record.begin(one, {}, versions={}, git_commit=None, command=[])
    assert "backbones" not in record.content
    assert "backbone" not in record.content["trial_defaults"]


def test_identity_says_what_the_channels_of_tokens_are(task):
    transformer = dataclasses.replace(task, backbone=small_backbone("small_vit"))
    first = transformer.backbone.layers[0]
    alone = study_identity({"small_vit": transformer}, space()).layers
    assert alone.startswith(f"{first} (32), ")
    assert alone.endswith("whose entries are the channels; the class token is compared apart.")
    both = join_spaces({"a": space(), "b": space()})
    assert study_identity({"a": task, "b": transformer}, both).layers == f"b: {alone}"
    assert study_identity({"a": task}, space()).layers == ""


@pytest.mark.parametrize(
    ("labels", "weights", "fault"),
    [
        ("ab", "other", None),
        ("ba", "other", "its networks were a and b, and now they are b and a"),
        ("a", "other", "its networks were a and b, and now they are a"),
        ("ab", "changed", r"its weights \(b\) changed since"),
    ],
)
def test_study_is_resumed_with_the_same_networks_alone(task, other, tmp_path, labels, weights, fault):
    tasks = {"a": task, "b": other}
    record = StudyRecord()
    joint = join_spaces({"a": space(), "b": space()})
    record.begin(study_identity(tasks, joint), {}, versions={}, git_commit=None, command=[])
    changed = dataclasses.replace(other, backbone=dataclasses.replace(other.backbone, fingerprint=weights))
    now = {label: (task if label == "a" else changed) for label in labels}
    again = join_spaces({label: space() for label in labels}) if len(labels) > 1 else space()
    if fault is None:
        check_same_study(record, tmp_path, now, again)
        return
    with pytest.raises(UserError, match=fault):
        check_same_study(record, tmp_path, now, again)
