"""Studies whose results are kept on a real S3 server."""

from __future__ import annotations

import json

import pyarrow.parquet as pq
import pytest
import safetensors.torch
from helpers.objects import at

import delta_tune
from delta_tune.config import UserError
from delta_tune.inference.ensemble import members_of
from delta_tune.study import final_runs, remote
from delta_tune.study.remote import RemoteStudies


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "WORKPLACE", tmp_path / "workplace")


def test_address_without_a_bucket_is_refused(s3_server):
    with pytest.raises(
        UserError, match=r"--out s3://nowhere-at-all/x cannot be written to .*give a bucket that you can write to"
    ):
        RemoteStudies("s3://nowhere-at-all/x")


def test_address_of_another_kind_is_refused():
    with pytest.raises(UserError, match="--out ftp://host/x is no address that results can go to; give s3://"):
        RemoteStudies("ftp://host/x")


@pytest.fixture
def settings(image_folder, tiny_weights, bucket):
    """A study of seconds at an address."""
    fixed = {"batch_size": 8, "regularizer": "l2"}
    return {
        **{"data": str(image_folder), "model": "timm:test_resnet", "weights": str(tiny_weights), "image_size": 64},
        **{"out": f"s3://{bucket}/my results", "name": "study", "verbose": 0, "max_epochs": 2, "num_trials": 2},
        **{"set": fixed, "final_runs": 0, "gpus_per_trial": 0, "max_concurrent_trials": 1},
    }


@pytest.mark.slow
def test_study_at_an_address_is_whole_there_and_is_resumed_on_another_machine(
    ray_cluster, settings, tmp_path, monkeypatch, bucket
):
    first = delta_tune.tune(**settings)
    found = at(f"s3://{bucket}/my%20results/study")
    record = json.loads(found["study.json"])
    winner = f"{record['winner']:05d}"
    assert [name for name in found if name.startswith("checkpoints")] == [f"checkpoints/{winner}/best.safetensors"]
    assert record["settings"]["out"] == settings["out"]
    assert pq.read_table(first.path / "trials.parquet").equals(first.trials)
    for name in ("trials.parquet", "epochs.parquet", "best/model.safetensors", "best/config.json", "best/README.md"):
        assert found[name] == (first.path / name).read_bytes()
    assert safetensors.torch.load(found["best/model.safetensors"])
    assert any(name.startswith("ray/run-1/") for name in found)
    with pytest.raises(UserError, match=r"'study' is taken: s3://.*/my results/study holds a study; give --resume"):
        delta_tune.tune(**settings)
    monkeypatch.setattr(remote, "WORKPLACE", tmp_path / "elsewhere")
    again = delta_tune.tune(name="study", out=settings["out"], resume=True, num_trials=3, verbose=0)
    assert again.trials.slice(0, 3).equals(first.trials), "the first model and two trials"
    assert again.trials.num_rows == 4
    then = at(f"s3://{bucket}/my%20results/study")
    assert {name.split("/")[1] for name in then if name.startswith("ray/")} == {"run-1", "run-2"}
    assert len([name for name in then if name.startswith("checkpoints")]) == 1


@pytest.mark.slow
def test_final_runs_at_an_address_leave_a_model_there_and_resume_on_another_machine(
    ray_cluster, settings, tmp_path, monkeypatch, bucket
):
    def interrupted(race, run, scores):
        ended(race, run, scores)
        raise KeyboardInterrupt

    ended, address = final_runs.Race.ended, f"s3://{bucket}/my%20results/study"
    rivals = {"final_runs": 3, "members": 2}
    monkeypatch.setattr(final_runs, "finalists", lambda tables, num_val: [1, 2])
    with monkeypatch.context() as patch:
        patch.setattr(final_runs.Race, "ended", interrupted)
        delta_tune.tune(**settings | rivals)
    found = at(address)
    assert any(name.startswith("checkpoints/final-00001-0/") for name in found)
    monkeypatch.setattr(remote, "WORKPLACE", tmp_path / "elsewhere")
    again = delta_tune.tune(name="study", out=settings["out"], resume=True, verbose=0)
    found = at(address)
    assert not [name for name in found if name.startswith("checkpoints/final")]
    for name in ("best/model.safetensors", "best/model-2.safetensors", "best/config.json", "held_out.parquet"):
        assert found[name] == (again.path / name).read_bytes()
    assert len(members_of(delta_tune.load(f"s3://{bucket}/my results/study").network)) == 2
