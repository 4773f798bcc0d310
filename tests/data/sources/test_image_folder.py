"""Folders of photos as people have them: what is read as what, what is refused, and what is said of the rest."""

import os
import re
import socket
import tempfile
from collections import Counter
from pathlib import Path

import pytest
from helpers.fuzz import cases
from hypothesis import given
from hypothesis import strategies as st

from delta_tune.config import UserError
from delta_tune.data.sources.find import find_source
from delta_tune.data.split_names import splits_in


@pytest.fixture
def photos(tmp_path):
    """An empty folder with a name that says nothing."""
    folder = tmp_path / "photos"
    folder.mkdir()
    return folder


def write(root, *paths):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(path.encode())


def counts(source):
    return {split: dict(Counter(examples.labels)) for split, examples in source.splits.items()}


def notes(folder):
    return find_source(folder, seed=0).notes


# ------------------------------------------------------------------------------------------------- names of splits


@pytest.mark.parametrize(
    ("train", "other", "split"),
    [
        ("Training", "Testing", "test"),
        ("TRAIN", "TEST", "test"),
        ("seg_train", "seg_test", "test"),
        ("train", "dev", "val"),
        ("train", "eval", "val"),
        ("training_set", "validation_set", "val"),
        ("asl_alphabet_train", "asl-alphabet-test", "test"),
    ],
)
def test_splits_may_have_other_names_and_the_plan_tells_which(photos, train, other, split):
    write(photos, f"{train}/a/1.jpg", f"{train}/b/2.jpg", f"{other}/a/3.jpg", f"{other}/b/4.jpg")
    source = find_source(photos, seed=0)
    assert counts(source) == {"train": {"a": 1, "b": 1}, split: {"a": 1, "b": 1}}
    (note,) = source.notes
    assert f"{train!r} is train" in note
    assert f"{other!r} is {split}" in note


def test_split_may_lie_in_a_folder_of_its_own_name(photos):
    write(photos, *(f"seg_{split}/seg_{split}/{name}/1.jpg" for split in ("train", "test") for name in "ab"))
    write(photos, "seg_pred/seg_pred/1.jpg")
    source = find_source(photos, seed=0)
    assert counts(source) == {"train": {"a": 1, "b": 1}, "test": {"a": 1, "b": 1}}
    assert "Folders beside the splits were not read: 'seg_pred' (1 image)." in source.notes


def test_test_split_without_class_folders_is_not_read_and_counted(photos):
    write(photos, "train/a/1.jpg", "train/b/2.jpg", "test/3.jpg", "test/4.jpg")
    source = find_source(photos, seed=0)
    assert counts(source) == {"train": {"a": 1, "b": 1}}
    assert source.notes == ("Folders beside the splits were not read: 'test' (2 images).",)


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (("train/1.jpg", "test/2.jpg"), "named for splits, but hold images without class folders"),
        (("trainA/1.jpg", "testA/2.jpg"), "named for splits, but hold images without class folders"),
        (
            ("train/train/1.jpg", "train/val/2.jpg"),
            "'train' and 'val' in .*train' are named for splits, but hold images",
        ),
        (("cat/train/1.jpg", "dog/train/2.jpg"), "cat/train' is named for the split train, but lies in the class"),
        (("train/cat/1.jpg", "train/dog/test/2.jpg"), "dog/test' is named for the split test, but lies in the split t"),
        (("train/cat/1.jpg", "train/val/cat/2.jpg"), "train/val' is named for the split val, but lies in the split t"),
        (("train/steam/1.jpg", "bus/2.jpg", "car/3.jpg"), "'train' may be a split, or a class like 'bus', 'car'"),
        (("train tracks/a/1.jpg", "bus/2.jpg"), "'train tracks' may be a split, or a class like 'bus'"),
        (("train/a/1.jpg", "train/2.jpg", "bus/3.jpg"), "'train' may be a split, or a class like 'bus'"),
        (("train_test/a/1.jpg", "val/a/2.jpg"), "'train_test' names test and train"),
        (("dev/a/1.jpg", "eval/a/2.jpg", "train/a/3.jpg"), "one split by their names"),
        (("brain/Training/a/1.jpg", "brain/Testing/a/2.jpg"), r"holds only the folder 'brain'.*give .*photos/brain'"),
        (("train/images/a/1.jpg", "train/images/b/2.jpg"), r"holds only the folder 'images'.*give .*train/images'"),
    ],
)
def test_folders_that_may_be_splits_or_classes_are_refused(photos, paths, message):
    write(photos, *paths)
    with pytest.raises(UserError, match=message):
        find_source(photos, seed=0)


@pytest.mark.parametrize("names", [("train", "bus"), ("train station", "test tube", "bus"), ("covid_test", "other")])
def test_folders_of_images_are_classes_whatever_word_their_names_have(photos, names):
    write(photos, *(f"{name}/1.jpg" for name in names))
    assert counts(find_source(photos, seed=0)) == {"train": dict.fromkeys(names, 1)}


# -------------------------------------------------------------------------------- deeper, loose, hidden, other files


def test_deeper_folders_have_the_class_of_the_first(photos):
    write(photos, "cat/1.jpg", "cat/2021/may/2.jpg", "cat/2021/3.jpg", "dog/4.jpg")
    source = find_source(photos, seed=0)
    assert counts(source) == {"train": {"cat": 3, "dog": 1}}
    assert source.notes == (
        "2 images in deeper folders of train ('cat/2021', 'cat/2021/may') got the class of the class folder above.",
    )


def test_deeper_folders_are_read_in_the_order_of_torchvision(photos):
    from torchvision.datasets import ImageFolder

    write(photos, *(f"{path}.jpg" for path in ("b/1", "b/a/2", "b/a/c/1", "b/a/b/9", "b/0", "a/z/1", "a/y")))
    reference = ImageFolder(photos, loader=str)
    train = find_source(photos, seed=0).splits["train"]
    assert list(zip(train.names, train.labels, strict=True)) == [
        (path, reference.classes[label]) for path, label in reference.samples
    ]


def test_images_outside_the_class_folders_are_counted(photos):
    write(photos, "train/a/1.jpg", "train/b/2.jpg", "train/3.jpg", "4.JPG", "5.png", "readme.txt")
    assert notes(photos) == (
        "2 images of the data outside the class folders ('4.JPG', '5.png') were not read.",
        "1 image of train outside the class folders ('train/3.jpg') was not read.",
    )


def test_folders_and_files_of_systems_are_no_classes_and_no_images(photos):
    write(photos, "a/1.jpg", "b/2.jpg", "a/._1.jpg", "__MACOSX/a/._1.jpg", "@eaDir/3.jpg", "Thumbs.db", ".DS_Store")
    write(photos, "a/.ipynb_checkpoints/1.jpg", "b/@eaDir/2.jpg/SYNOPHOTO_THUMB_M.jpg", "lost+found/x.jpg")
    source = find_source(photos, seed=0)
    assert counts(source) == {"train": {"a": 1, "b": 1}}
    (note,) = source.notes
    assert note.endswith("were not read in train: 6 ('@eaDir', '__MACOSX', 'lost+found' and 3 more).")


def test_class_of_other_files_is_refused_with_their_suffixes(photos):
    write(photos, "cat/1.jpg", "dog/1.HEIC", "dog/2.heic")
    with pytest.raises(
        UserError, match=r"dog' holds no images \(its files end in '\.heic'; images end in \.avif .*jpg"
    ):
        find_source(photos, seed=0)


def test_stray_parquet_beside_class_folders_is_named(photos, write_parquet):
    write(photos, "cat/1.jpg", "dog/2.jpg", "damaged.parquet")
    write_parquet(photos / "index.parquet", "file", "score")
    source = find_source(photos, seed=0)
    assert counts(source) == {"train": {"cat": 1, "dog": 1}}
    assert source.notes == (
        "Parquet files without the columns image and label were not read: 'damaged.parquet', 'index.parquet'.",
    )


def test_parquet_with_images_beside_class_folders_is_refused(photos, write_parquet):
    write(photos, "cat/1.jpg", "dog/2.jpg")
    write_parquet(photos / "set.parquet", "image", "label")
    with pytest.raises(UserError, match=r"both images in folders \('cat/1.jpg', 'dog/2.jpg'\) and Parquet .*set\.par"):
        find_source(photos, seed=0)


def test_pictures_beside_parquet_are_counted(photos, write_parquet):
    write(photos, "assets/banner.png")
    write_parquet(photos / "train-0.parquet", "image", "label")
    source = find_source(photos, seed=0)
    assert counts(source) == {"train": {"x": 1}}
    assert "Images beside the Parquet files were not read: 1 ('assets/banner.png')." in source.notes


@pytest.fixture
def write_parquet():
    import pyarrow as pa
    import pyarrow.parquet as pq

    def write(path, *columns):
        pq.write_table(pa.table({name: [b"x"] if name == "image" else ["x"] for name in columns}), path)

    return write


# ------------------------------------------------------------------------------------------- links, pipes and locks


def reasons(source):
    """Why examples cannot be read, by name of their file."""
    found = {}
    for examples in source.splits.values():
        for index, name in enumerate(examples.names):
            try:
                examples.read(index)
            except OSError as error:
                found[Path(name).name] = error.strerror
    return found


def test_links_and_pipes_with_an_images_name_are_examples_that_cannot_be_read(photos):
    write(photos, "cat/1.jpg", "dog/2.jpg")
    (photos / "cat/gone.jpg").symlink_to("/annex/objects/gone.jpg")
    (photos / "cat/loop.jpg").symlink_to("loop.jpg")
    (photos / "cat/null.jpg").symlink_to("/dev/null")
    os.mkfifo(photos / "cat/pipe.jpg")
    source = find_source(photos, seed=0)
    assert counts(source) == {"train": {"cat": 5, "dog": 1}}
    assert reasons(source) == {
        "gone.jpg": "a link that leads nowhere",
        "loop.jpg": os.strerror(40),
        "null.jpg": "a pipe, socket or device, not a file",
        "pipe.jpg": "a pipe, socket or device, not a file",
    }


def test_socket_among_the_images_cannot_be_read(photos, monkeypatch):
    write(photos, "cat/1.jpg", "dog/2.jpg")
    monkeypatch.chdir(photos / "cat")  # the path of a socket has at most 107 bytes
    with socket.socket(socket.AF_UNIX) as opened:
        opened.bind("socket.jpg")
        assert list(reasons(find_source(photos, seed=0))) == ["socket.jpg"]


@pytest.mark.parametrize("target", ["c", "/nowhere"])
def test_class_folder_that_is_a_link_to_nowhere_is_refused(photos, target):
    write(photos, "a/1.jpg", "b/2.jpg")
    (photos / "c").symlink_to(target)
    with pytest.raises(UserError, match=r"photos/c' is a link that leads nowhere"):
        find_source(photos, seed=0)


def test_class_folder_that_links_to_the_root_is_refused(photos):
    write(photos, "a/1.jpg", "b/2.jpg")
    (photos / "again").symlink_to(".")
    with pytest.raises(UserError, match=r"again' is a link to a folder that holds it; remove the link"):
        find_source(photos, seed=0)


def test_links_that_lead_back_are_not_followed_and_named(photos):
    write(photos, "a/1.jpg", "a/deep/2.jpg", "b/3.jpg")
    (photos / "a/up").symlink_to("..")
    (photos / "a/deep/self").symlink_to("../deep")
    (photos / "a/twin").symlink_to("deep")
    (photos / "b/other").symlink_to("../a/deep")
    (photos / "b/holiday").symlink_to("/nowhere")
    source = find_source(photos, seed=0)
    assert counts(source) == {"train": {"a": 2, "b": 2}}
    assert source.notes[1:] == (
        "Links that lead nowhere were not read in train: 1 ('b/holiday').",
        "Links to folders that are read already were not followed in train: 4 ('a/deep/self', 'a/twin', 'a/up' and 1 "
        "more).",
    )


def lock(monkeypatch, folder):
    """Let listing a folder fail, also for root."""
    listing = os.scandir

    def scandir(path):
        if os.path.samefile(path, folder):
            raise PermissionError(13, "Permission denied", path)
        return listing(path)

    monkeypatch.setattr(os, "scandir", scandir)


@pytest.mark.parametrize("path", ["train/b", "train", "train/a/deep", "."])
def test_locked_folder_is_refused(photos, monkeypatch, path):
    write(photos, "train/a/deep/1.jpg", "train/b/2.jpg")
    lock(monkeypatch, photos / path)
    with pytest.raises(UserError, match=f"{photos / path}' cannot be listed .Permission denied.; get the right"):
        find_source(photos, seed=0)


def test_locked_folder_of_the_system_does_not_matter(photos, monkeypatch):
    write(photos, "a/1.jpg", "b/2.jpg", "lost+found/3.jpg", ".Trash-0/4.jpg")
    for name in ("lost+found", ".Trash-0"):
        lock(monkeypatch, photos / name)
    assert counts(find_source(photos, seed=0)) == {"train": {"a": 1, "b": 1}}


@pytest.mark.parametrize("target", ["data", "/nowhere", "/dev/null"])
def test_data_that_is_a_link_to_no_folder_is_refused(tmp_path, target):
    (tmp_path / "data").symlink_to(target)
    with pytest.raises(UserError, match=r"data' is a link that leads nowhere, or a pipe, socket or device"):
        find_source(tmp_path / "data", seed=0)


# ------------------------------------------------------------------------------------------------------- any folder

FOLDERS = st.sampled_from(
    ["a", "b", "train", "Testing", "seg_val", "dev", "test tube", ".x", "lost+found", "caf\udce9"]
)
FILES = st.sampled_from(["1.jpg", "2.JPG", "3.png", ".4.jpg", "._5.png", "6.heic", "train.jpg", "\udce9.png", "7"])
TREES = st.lists(st.tuples(st.lists(FOLDERS, max_size=4), FILES), min_size=1, max_size=12)


@given(TREES)
@cases(100)
def test_any_folder_is_read_as_its_names_say_or_refused(tree):
    """No image is in another split than its folders say, and all that are not read are counted."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "photos"
        root.mkdir()
        for folders, file in tree:
            root.joinpath(*folders).mkdir(parents=True, exist_ok=True)
            root.joinpath(*folders, file).write_bytes(b"x")
        try:
            source = find_source(root, seed=0)
        except UserError:
            return
        visible = {
            path
            for path in root.rglob("*.*")
            if path.suffix.lower() in (".jpg", ".png")
            and not any(part.startswith(".") or part == "lost+found" for part in path.relative_to(root).parts)
        }
        read = {Path(name) for examples in source.splits.values() for name in examples.names}
        not_read = [note for note in source.notes if "not read" in note and "Hidden" not in note]
        counted = sum(int(count) for note in not_read for count in re.findall(r"(\d+) images?\b", note))
        assert read <= visible
        assert len(visible - read) == counted or " more" in "".join(not_read)
        for split, examples in source.splits.items():
            for name, label in zip(examples.names, examples.labels, strict=True):
                folders = Path(name).relative_to(root).parts[:-1]
                others = [folders[:i] + folders[i + 1 :] for i, part in enumerate(folders) if part == label]
                assert any({s for part in parts for s in splits_in(part)} <= {split} for parts in others)


# -------------------------------------------------------------------------------------------- parts of one split


def test_folders_of_one_split_that_differ_in_a_number_are_read_together(photos):
    write(photos, "train_1/a/1.jpg", "train_2/a/2.jpg", "train_2/b/3.jpg", "test/a/4.jpg")
    source = find_source(photos, seed=0)
    assert counts(source) == {"train": {"a": 2, "b": 1}, "test": {"a": 1}}
    assert "'train_1', 'train_2' are train" in " ".join(source.notes)
    train = source.splits["train"]
    assert [train.read(row) for row in range(3)] == [b"train_1/a/1.jpg", b"train_2/a/2.jpg", b"train_2/b/3.jpg"]


def test_folders_of_one_split_that_differ_in_words_are_refused(photos):
    write(photos, "train/a/1.jpg", "train_masks/a/2.jpg")
    with pytest.raises(UserError, match="one split by their names"):
        find_source(photos, seed=0)
