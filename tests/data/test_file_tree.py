"""One folder here and on a real S3 server: the same lists, the same bytes, the same sources."""

from __future__ import annotations

import os
from dataclasses import fields

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import fs

from delta_tune.config import UserError
from delta_tune.data.file_tree import FileTree
from delta_tune.data.images import Preprocessing
from delta_tune.data.loading import load_dataset
from delta_tune.data.sources.find import find_source


@pytest.fixture(params=["local", "s3"])
def publish(request):
    """A function that makes what a folder holds a place to read from, as users name it."""
    if request.param == "local":
        return str
    bucket = request.getfixturevalue("bucket")

    def upload(folder):
        remote, _ = fs.FileSystem.from_uri(f"s3://{bucket}")
        for file in (path for path in folder.rglob("*") if path.is_file()):
            with remote.open_output_stream(f"{bucket}/{folder.name}/{file.relative_to(folder)}") as opened:
                opened.write(file.read_bytes())
        return f"s3://{bucket}/{folder.name}"

    return upload


@pytest.fixture
def folder(tmp_path):
    """With what names of files may be."""
    own = tmp_path / "my photos%41"
    for path in ("b/2.png", "b/1 %41+é.png", "a-b/3.png", "a/.x.png", ".git/4.png", "5.txt"):
        (own / path).parent.mkdir(parents=True, exist_ok=True)
        (own / path).write_bytes(path.encode())
    return own


def test_tree_lists_folders_and_files_without_hidden_ones(folder, publish):
    place = publish(folder)
    tree = FileTree(place)
    assert tree.name == "my photos%41"
    assert [tree.shown(path) for path in tree.folders(tree.root)] == [f"{place}/{n}" for n in ("a", "a-b", "b")]
    assert [tree.shown(path) for path in tree.files(tree.root)] == [f"{place}/5.txt"]
    assert [tree.read(path).decode() for path in tree.files(f"{tree.root}/b")] == ["b/1 %41+é.png", "b/2.png"]
    assert tree.files(f"{tree.root}/none") == tree.folders(f"{tree.root}/none") == []
    assert (tree.is_folder(tree.root), tree.is_file(tree.root)) == (True, False)
    assert (tree.is_folder(f"{tree.root}/5.txt"), tree.is_file(f"{tree.root}/5.txt")) == (False, True)
    assert not tree.is_folder(f"{tree.root}/none")
    assert not tree.is_file(f"{tree.root}/none")


def test_tree_may_be_named_with_a_slash_at_its_end(folder, publish):
    assert FileTree(f"{publish(folder)}/").name == "my photos%41"


def test_local_tree_follows_links_and_lists_names_outside_utf8(tmp_path):
    (tmp_path / "a").mkdir()
    odd = os.fsdecode(b"caf\xe9.png")
    (tmp_path / "a" / odd).write_bytes(b"odd")
    (tmp_path / "a/link.png").symlink_to(tmp_path / "a" / odd)
    (tmp_path / "a/broken.png").symlink_to(tmp_path / "nowhere")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    tree = FileTree(tmp_path)
    assert tree.folders(tree.root) == [f"{tmp_path}/a", f"{tmp_path}/b"]
    assert tree.files(f"{tmp_path}/b") == [f"{tmp_path}/b/{odd}", f"{tmp_path}/b/link.png"]
    assert [tree.read(path) for path in tree.files(f"{tmp_path}/a")] == [b"odd", b"odd"]


def test_tree_walks_folders_before_their_subfolders(folder, publish):
    (folder / "a-b/c/d").mkdir(parents=True)
    (folder / "a-b/c/d/1.png").write_bytes(b"x")
    tree = FileTree(publish(folder))
    found, repeated = tree.walk(tree.root)
    assert [path.removeprefix(tree.root) for path in found] == ["", "/a", "/a-b", "/a-b/c", "/a-b/c/d", "/b"]
    assert repeated == []


def test_tree_names_hidden_entries_folders_of_the_system_and_links_to_nowhere(tmp_path):
    for name in (".git", "@eaDir", "__MACOSX", "lost+found", "$RECYCLE.BIN", "cat"):
        (tmp_path / name).mkdir()
    for name in (".x.png", "Thumbs.db"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "gone").symlink_to("/nowhere")
    (tmp_path / "loop").symlink_to("loop")
    os.mkfifo(tmp_path / "pipe")
    tree = FileTree(tmp_path)
    found = tree.entries(tree.root)
    names = {field.name: [os.path.basename(path) for path in getattr(found, field.name)] for field in fields(found)}
    assert names == {
        "folders": ["cat"],
        "files": ["Thumbs.db"],
        "others": ["gone", "loop", "pipe"],
        "hidden_files": [".x.png"],
        "hidden_folders": ["$RECYCLE.BIN", ".git", "@eaDir", "__MACOSX", "lost+found"],
    }


def test_tree_does_not_wait_for_a_pipe(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(OSError, match="a pipe, socket or device, not a file"):
        FileTree(tmp_path).read(f"{tmp_path}/pipe.png")


def test_image_folder_gives_the_same_data_set_anywhere(image_folder, publish):
    sizes = Preprocessing(image_size=32, stored_size=36, mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bilinear")
    here = load_dataset(image_folder, preprocessing=sizes)
    found = load_dataset(publish(image_folder), preprocessing=sizes)
    assert (found.fingerprint, found.classes) == (here.fingerprint, here.classes)


def test_parquet_shards_give_the_same_examples_anywhere(tmp_path, publish):
    shards = tmp_path / "shards"
    shards.mkdir()
    for number in range(2):
        images = [b"%d" % (10 * number + i) for i in range(5)]
        table = pa.table({"image": images, "label": list("abcab")})
        pq.write_table(table, shards / f"train-0000{number}-of-00002.parquet", row_group_size=2)
    place = publish(shards)
    source = find_source(place, seed=0)
    train = source.splits["train"]
    assert (source.name, train.labels) == ("shards", list("abcababcab"))
    assert [train.read(i) for i in (9, 0, 5)] == [b"14", b"0", b"10"]
    assert train.names[6] == f"{place}/train-00001-of-00002.parquet:1"
    one = find_source(f"{place}/train-00000-of-00002.parquet", seed=0)
    assert (one.name, len(one.splits["train"].labels)) == ("train-00000-of-00002", 5)


def test_place_that_is_not_there_is_refused_with_the_nearest(folder, publish):
    place = publish(folder)
    with pytest.raises(
        UserError, match=r"There is no .*my fotos%41' \(did you mean my photos%41\?\); data is an image"
    ):
        find_source(place.replace("photos", "fotos"), seed=0)


def test_bucket_that_is_not_there_is_refused(s3_server):
    with pytest.raises(UserError, match="There is no 's3://nowhere-at-all/x'; data is an image folder"):
        find_source("s3://nowhere-at-all/x", seed=0)


def test_object_that_does_not_come_is_no_damaged_image(bucket):
    with pytest.raises(UserError, match=f"s3://{bucket}/gone.png cannot be read .*try again"):
        FileTree(f"s3://{bucket}").read(f"{bucket}/gone.png")


def test_address_with_a_password_is_refused_and_not_repeated(s3_server):
    with pytest.raises(UserError, match=r"--data s3://…:…@bucket/x holds a password.*set AWS_ACCESS_KEY_ID") as refused:
        FileTree("s3://me:hush@bucket/x")
    assert "hush" not in str(refused.value)


def test_address_of_google_without_an_answer_is_refused_soon(monkeypatch):
    monkeypatch.setattr("delta_tune.filesystem.uris.GCS_PATIENCE_S", 1)
    monkeypatch.setenv("CLOUD_STORAGE_EMULATOR_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match="data gs://bucket/x cannot be opened"):
        FileTree("gs://bucket/x")
