"""Folders that are mirrored to a real S3 server."""

from __future__ import annotations

from pathlib import PurePosixPath

import pytest
from helpers.objects import at

from delta_tune.cluster.shared_folder_check import check_shared_folder
from delta_tune.config import UserError
from delta_tune.results.mirror import Mirror, local_copy


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


def test_every_node_is_asked_for_an_address(ray_cluster, bucket):
    check_shared_folder(f"s3://{bucket}/some results", None)
    assert at(f"s3://{bucket}") == {}


def test_node_that_cannot_read_an_address_is_named(ray_cluster, bucket, monkeypatch):
    monkeypatch.setattr(
        "delta_tune.cluster.shared_folder_check.to_pyarrow_uri", lambda address: f"{address}-of-another"
    )
    with pytest.raises(UserError, match=rf"--out s3://{bucket}/x cannot be used from node \S+ \(\w{{8}}\) \(.*role"):
        check_shared_folder(f"s3://{bucket}/x", None)


@pytest.mark.parametrize("key", ["../outside", "below/../../outside", "below/../../../outside"])
def test_key_that_leads_outside_writes_nothing_at_all(bucket, tmp_path, monkeypatch, key):
    one = Mirror(tmp_path / "deep" / "here", f"s3://{bucket}/a/b/copy")
    monkeypatch.setattr(one, "_files", lambda folder: [PurePosixPath("study.json"), PurePosixPath(key)])
    with pytest.raises(UserError, match="an object whose key leads out of the study's folder"):
        one.pull()
    assert list(tmp_path.rglob("*")) == []
    with pytest.raises(UserError, match="leads out"):
        one.fetch(PurePosixPath(key))
