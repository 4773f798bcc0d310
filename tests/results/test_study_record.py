"""`study.json`: what is written is read back, an older version's is read too, and a damaged one is refused."""

from __future__ import annotations

import dataclasses
import json

import pytest
from helpers.studies import study_json

from delta_tune.config import StudyConfig, TrialConfig, UserError
from delta_tune.results.layout import STUDY_FILE
from delta_tune.results.study_identity import BackboneIdentity, StudyIdentity
from delta_tune.results.study_record import StudyRecord
from delta_tune.results.utilization import TimeUse

IDENTITY = StudyIdentity(
    fingerprints={"data": "d", "weights": "w"},
    backbone="resnet50",
    images={"train": 100, "val": 50},
    space="def space(trial): ...\n",
    distributions={"lr": {"name": "FloatDistribution"}},
)
SETTINGS = {"metric": "val_accuracy", "model": "resnet50", "name": "study"}
ENVIRONMENT = {"versions": {"torch": "2.14"}, "git_commit": None, "command": ["launch.py"]}


@pytest.fixture
def begun():
    record = StudyRecord()
    record.begin(IDENTITY, SETTINGS, **ENVIRONMENT)
    return record


def file_keys(folder):
    return list(json.loads((folder / STUDY_FILE).read_text()))


def test_record_is_read_back_with_all_that_was_noted(begun, tmp_path):
    use = TimeUse(total=9.0, training=5.0, validation=1.0, inside=1.0, between=1.0, tail=1.0)
    begun.start_from = [{"regularizer": "l2", "lr": 0.1}]
    begun.set_attention(3.0, "noisy")
    begun.set_ready_seconds(4.0)
    begun.set_reserved({"repetitions": 2})
    begun.set_time(12.5)
    begun.set_time_use(use)
    begun.set_confirmation({"metric": "val_accuracy", "scores": {"l2": [0.9]}, "trials": {"l2": 3}, "sentences": []})
    begun.set_model(3, "trial 3")
    begun.add_scoring({"images": 60, "test_accuracy": 0.9, "test_accuracy_interval": [0.8, 0.95]})
    begun.end("finished")
    begun.write(tmp_path)
    read = StudyRecord.read(tmp_path)
    assert read == begun
    assert (read.metric, read.backbone) == ("val_accuracy", "resnet50")
    assert read.settings == dataclasses.asdict(StudyConfig()) | {"final_runs": 0, "resize": "crop"} | SETTINGS, (
        "earlier ones had none"
    )
    assert (read.fingerprints, read.images, read.space) == (IDENTITY.fingerprints, IDENTITY.images, IDENTITY.space)
    assert (read.start_from, read.attention_seconds, read.attention_verdict) == (begun.start_from, 3.0, "noisy")
    assert (read.ready_seconds, read.spent_seconds, read.time_use) == (4.0, 12.5, use)
    assert (read.winner, read.model, read.confirmed, read.finished) == (3, "trial 3", True, True)


def test_record_has_the_keys_of_the_version_before_in_their_order(begun, tmp_path):
    begun.set_time(1.0)
    begun.set_model(3, "trial 3")
    begun.end("interrupted")
    begun.write(tmp_path)
    assert file_keys(tmp_path) == [
        *("fingerprints", "backbone", "images", "space", "distributions", "versions", "git_commit", "command"),
        *("started", "test_scorings", "trial_defaults", "settings", "spent_seconds", "spent_seconds_at", "winner"),
        *("model", "model_epoch", "interrupted"),
    ]


def test_session_that_resumes_keeps_what_the_first_wrote_but_its_settings_and_its_end(begun):
    begun.set_model(3, "trial 3")
    begun.add_scoring({"images": 60})
    begun.end("interrupted")
    begun.content["of a later version"] = 1
    other = StudyIdentity(fingerprints={}, backbone="other", images={}, space="", distributions={})
    before = dict(begun.content)
    begun.begin(other, SETTINGS | {"num_trials": 9}, versions={}, git_commit="abc", command=[])
    assert begun.running
    assert begun.content == {k: v for k, v in before.items() if k != "interrupted"} | {
        "settings": SETTINGS | {"num_trials": 9}
    }


def test_trials_of_a_resumed_study_have_the_defaults_that_were_written(begun, tmp_path):
    assert begun.trial_defaults == StudyRecord().trial_defaults == TrialConfig()
    begun.content["trial_defaults"] |= {"lr": 0.5, "max_grad_norm": None, "of a later version": 1}
    begun.write(tmp_path)
    assert StudyRecord.read(tmp_path).trial_defaults == TrialConfig(lr=0.5, max_grad_norm=None)


def test_methods_of_a_resumed_study_keep_their_own_strengths(begun, tmp_path):
    begun.write(tmp_path)
    written = StudyRecord.read(tmp_path).trial_defaults
    assert dataclasses.replace(written, regularizer="co_tuning").effective_co_tuning == 1
    assert dataclasses.replace(written, regularizer="bi_tuning").effective_contrast == 1


def test_trials_of_a_study_of_an_early_version_have_the_defaults_of_that_time(begun):
    del begun.content["trial_defaults"]
    early = TrialConfig(head_start="random", lr=0.001, head_lr_multiplier=10.0, max_grad_norm=None)
    assert begun.trial_defaults == early


def test_default_that_no_trial_can_have_is_refused(begun, tmp_path):
    begun.content["trial_defaults"]["lr"] = -1.0
    begun.write(tmp_path)
    with pytest.raises(UserError, match="lr must be"):
        StudyRecord.read(tmp_path)


def test_gpus_of_the_last_session_are_noted_and_early_versions_have_none(begun, tmp_path):
    assert (begun.device, begun.accelerators) == (None, [])
    gpu = {"device": "cuda", "name": "Tesla T4", "memory": 2**38, "capability": "7.5", "torch": "2.14", "runtime": ""}
    begun.set_accelerators("cuda", [gpu])
    begun.write(tmp_path)
    read = StudyRecord.read(tmp_path)
    assert (read.device, read.accelerators) == ("cuda", [gpu])
    read.set_accelerators("cpu", [])
    assert (read.device, read.accelerators) == ("cpu", [])


def test_record_of_a_study_that_runs_is_neither_finished_nor_interrupted(begun):
    assert (begun.running, begun.ended, begun.winner, begun.model, begun.scoring) == (True, None, None, None, None)
    begun.end("interrupted")
    assert (begun.running, begun.finished, begun.interrupted) == (False, False, True)
    assert begun.ended == begun.content["interrupted"]


def test_attention_seconds_are_the_longest_of_all_sessions(begun):
    begun.set_attention(30.0, "")
    begun.set_attention(0.1, "noisy")
    assert (begun.attention_seconds, begun.attention_verdict) == (30.0, "noisy")


def test_scoring_is_the_final_models_and_tells_how_often_the_split_was_scored(begun):
    scores = {"images": 60, "test_accuracy": 0.9, "test_accuracy_interval": [0.8, 0.95]}
    begun.set_model(0, "trial 0")
    begun.add_scoring(scores)
    assert str(begun.scoring) == "90.0 % on 60 images, scored once (95 % interval 80.0 to 95.0 %)"
    begun.set_model(3, "trial 3 retrained on 150 images")
    assert begun.scoring is None
    begun.add_scoring(scores)
    assert begun.scoring.content == {"trial": 3, "model": "trial 3 retrained on 150 images", **scores}
    assert "scoring 2 of this split, so not an unseen one" in str(begun.scoring)


def test_record_of_the_version_before_is_read(tmp_path):
    found = {"metric": "val_accuracy", "scores": {"delta": [0.9, 0.8]}, "trials": {"delta": 0}, "sentences": ["So."]}
    study_json(tmp_path, confirmation=found, winner=0)
    record = StudyRecord.read(tmp_path)
    assert (record.metric, record.backbone, record.images["val"]) == ("val_accuracy", "resnet50", 50)
    assert (record.model, record.winner, record.confirmed, record.scoring.accuracy) == ("trial 0", 0, True, 0.9)
    assert (record.started, record.ended) == ("2026-11-23T00:00:00+00:00", "2026-11-23T01:00:00+00:00")
    record.write(tmp_path)
    assert StudyRecord.read(tmp_path) == record


def test_what_an_early_version_did_not_write_is_empty(tmp_path):
    (tmp_path / STUDY_FILE).write_text(json.dumps({"settings": SETTINGS}))
    record = StudyRecord.read(tmp_path)
    assert (record.backbone, record.images, record.distributions) == ("resnet50", {}, {})
    assert (record.spent_seconds, record.spent_seconds_at, record.ready_seconds, record.time_use) == (None,) * 4
    assert (record.attention_seconds, record.attention_verdict, record.start_from) == (0.0, "", None)
    assert (record.confirmation, record.confirmed, record.winner, record.model, record.scoring) == (
        *(None, False, None, None),
        None,
    )


def test_read_refuses_a_folder_without_a_study(tmp_path):
    with pytest.raises(UserError, match=r"There is no study in .*; --name and --out must name one that was started"):
        StudyRecord.read(tmp_path / "nothing")


def test_read_refuses_a_path_below_a_file(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="There is no study in"):
        StudyRecord.read(tmp_path / "file" / "study")


@pytest.mark.parametrize("content", [b"", b'{"a": ', b"\xff\xfe\x00", b"[]", b"{}", b'{"settings": null}'])
def test_read_refuses_what_is_damaged(tmp_path, content):
    (tmp_path / STUDY_FILE).write_bytes(content)
    with pytest.raises(UserError, match=r"study.json is damaged .*; start a new study"):
        StudyRecord.read(tmp_path)


def test_what_final_runs_said_holds_until_there_is_another_model(begun):
    begun.set_model(3, "trial 3 retrained 5 times on 135 of 150 images, weights averaged")
    begun.set_held_out({"accuracy": 0.9})
    assert begun.held_out == {"accuracy": 0.9}
    begun.set_model(3, "trial 3 retrained on 150 images")
    assert begun.held_out is None


NETWORKS = tuple(
    BackboneIdentity(label=label, model=model, weights="default", fingerprints={"data": "d", "weights": label})
    for label, model in (("a", "resnet18"), ("b", "vgg11"))
)


def test_networks_of_a_study_of_several_are_read_back(tmp_path):
    record = StudyRecord()
    record.begin(dataclasses.replace(IDENTITY, backbones=NETWORKS), SETTINGS | {"space": None}, **ENVIRONMENT)
    record.write(tmp_path)
    read = StudyRecord.read(tmp_path)
    assert read.backbones == NETWORKS
    assert (read.model_of("b"), read.model_of(None)) == ("vgg11", "resnet50")
    assert read.settings["space"] is None, "each has its own"


@pytest.mark.parametrize("damage", [{"label": 3}, {"fingerprints": None}, {"model": None}])
def test_damaged_networks_are_refused(tmp_path, damage):
    record = StudyRecord()
    record.begin(dataclasses.replace(IDENTITY, backbones=NETWORKS), SETTINGS, **ENVIRONMENT)
    record.content["backbones"][1] |= damage
    record.write(tmp_path)
    with pytest.raises(UserError, match=f"backbones.1.{next(iter(damage))}"):
        StudyRecord.read(tmp_path)
