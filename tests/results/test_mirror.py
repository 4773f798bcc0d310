"""Studies whose results are kept on a real S3 server."""

from __future__ import annotations

import json

import pyarrow.parquet as pq
import pytest
import safetensors.torch
from pyarrow import fs

import delta_tune
from delta_tune.cluster.shared_folder_check import check_shared_folder
from delta_tune.config import UserError
from delta_tune.results.mirror import Mirror, local_copy
from delta_tune.study import remote
from delta_tune.study.remote import RemoteStudies


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "WORKPLACE", tmp_path / "workplace")


def at(address):
    """File → content, of what lies there."""
    filesystem, root = fs.FileSystem.from_uri(address)
    infos = filesystem.get_file_info(fs.FileSelector(root, recursive=True, allow_not_found=True))
    paths = [info.path for info in infos if info.is_file]
    return {path.removeprefix(f"{root}/"): filesystem.open_input_stream(path).read() for path in paths}


@pytest.fixture
def here(tmp_path):
    """A folder with a file in it and one below."""
    folder = tmp_path / "here"
    (folder / "below").mkdir(parents=True)
    (folder / "a").write_text("a")
    (folder / "below" / "b").write_text("")
    return folder


def test_mirror_brings_what_changed_and_takes_away_what_is_gone(bucket, here, monkeypatch):
    one = Mirror(here, f"s3://{bucket}/copy")
    one.push()
    assert at(one.address) == {"a": b"a", "below/b": b""}
    (here / "below" / "b").write_text("new")
    (here / "a").unlink()
    (here / ".c.partial").write_text("half")
    written = []
    monkeypatch.setattr(
        one, "_write", lambda path, content, real=one._write: (written.append(str(path)), real(path, content))
    )
    one.push()
    assert written == ["below/b"]
    assert at(one.address) == {"below/b": b"new"}


def test_mirror_brings_what_names_other_files_last_and_as_it_was_before_them(bucket, here, monkeypatch):
    for name in ("study.json", "trials.parquet", "epochs.parquet", "resume.json"):
        (here / name).write_text("old")
    one = Mirror(here, f"s3://{bucket}/copy")
    written = []

    def write(path, content, real=one._write):
        written.append(path.name)
        (here / "trials.parquet").write_text("newer than the epochs that are on their way")
        real(path, content)

    monkeypatch.setattr(one, "_write", write)
    one.push()
    assert written[2:] == ["resume.json", "epochs.parquet", "trials.parquet", "study.json"]
    assert at(one.address)["trials.parquet"] == b"old"
    one.push()
    assert at(one.address)["trials.parquet"].startswith(b"newer")


def test_mirror_discards_only_with_a_push_that_came_through(bucket, here, monkeypatch):
    worker = Mirror(here, f"s3://{bucket}/copy/checkpoints/00001")
    worker.push()
    one = Mirror(here, f"s3://{bucket}/copy", skip=("checkpoints",))
    one.discard(here / "checkpoints" / "00001", {"b"})

    def fail(path, content):
        raise OSError("no answer")

    with monkeypatch.context() as patch:
        patch.setattr(one, "_write", fail)
        with pytest.raises(OSError, match="no answer"):
            one.push()
    assert at(worker.address).keys() == {"a", "below/b"}
    one.push()
    assert at(worker.address).keys() == {"below/b"}


def test_folder_at_hand_is_what_lies_there_and_is_gone_afterwards(bucket, here):
    address = f"s3://{bucket}/copy"
    Mirror(here, address).push()
    with local_copy(address) as (folder, found):
        assert (folder / "a").read_text() == "a"
        (folder / "a").write_text("more")
        found.push()
    assert not folder.exists()
    assert at(address)["a"] == b"more"


def test_address_without_a_bucket_is_refused(s3_server):
    with pytest.raises(
        UserError, match=r"--out s3://nowhere-at-all/x cannot be written to .*give a bucket that you can write to"
    ):
        RemoteStudies("s3://nowhere-at-all/x")


def test_address_of_another_kind_is_refused():
    with pytest.raises(UserError, match="--out ftp://host/x is no address that results can go to; give s3://"):
        RemoteStudies("ftp://host/x")


def test_every_node_is_asked_for_an_address(ray_cluster, bucket):
    check_shared_folder(f"s3://{bucket}/some results", None)
    assert at(f"s3://{bucket}") == {}


def test_node_that_cannot_read_an_address_is_named(ray_cluster, bucket, monkeypatch):
    monkeypatch.setattr(
        "delta_tune.cluster.shared_folder_check.to_pyarrow_uri", lambda address: f"{address}-of-another"
    )
    with pytest.raises(UserError, match=rf"--out s3://{bucket}/x cannot be used from node \S+ \(\w{{8}}\) \(.*role"):
        check_shared_folder(f"s3://{bucket}/x", None)


@pytest.fixture
def settings(image_folder, tiny_weights, bucket):
    """A study of seconds at an address."""
    fixed = {"batch_size": 8, "regularizer": "l2"}
    return {
        **{"data": str(image_folder), "model": "timm:test_resnet", "weights": str(tiny_weights), "image_size": 64},
        **{"out": f"s3://{bucket}/my results", "name": "study", "verbose": 0, "max_epochs": 2, "num_trials": 2},
        **{"set": fixed, "gpus_per_trial": 0, "max_concurrent_trials": 1},
    }


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
    assert again.trials.slice(0, 2).equals(first.trials)
    assert again.trials.num_rows == 3
    then = at(f"s3://{bucket}/my%20results/study")
    assert {name.split("/")[1] for name in then if name.startswith("ray/")} == {"run-1", "run-2"}
    assert len([name for name in then if name.startswith("checkpoints")]) == 1
