"""What is found in folders, Parquet files, torchvision and the demo, before anything is decoded."""

import builtins
import io
import json
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torchvision
from PIL import Image

from delta_tune.config import UserError
from delta_tune.data.sources import torchvision as torchvision_source
from delta_tune.data.sources.find import find_source


def png(value):
    file = io.BytesIO()
    Image.new("RGB", (6, 5), (value, value, value)).save(file, "PNG")
    return file.getvalue()


def write(root, *paths):
    """Files with their own path as content: nothing here looks into them."""
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(path.encode())


def contents(source):
    return {
        split: [(label, examples.read(i).decode()) for i, label in enumerate(examples.labels)]
        for split, examples in source.splits.items()
    }


def test_folder_without_splits_is_train(tmp_path):
    write(tmp_path, "cat/b.jpg", "cat/a.PNG", "dog/c.jpeg")
    source = find_source(tmp_path, seed=0)
    assert contents(source) == {"train": [("cat", "cat/a.PNG"), ("cat", "cat/b.jpg"), ("dog", "dog/c.jpeg")]}
    assert source.splits["train"].names[0] == str(tmp_path / "cat" / "a.PNG")
    assert source.name == tmp_path.name


@pytest.mark.parametrize("val", ["val", "valid", "validation", "Val"])
def test_folder_with_splits(tmp_path, val):
    write(tmp_path, "train/cat/1.jpg", "train/dog/2.jpg", f"{val}/cat/3.jpg", "test/dog/4.jpg")
    assert contents(find_source(str(tmp_path), seed=0)) == {
        "train": [("cat", "train/cat/1.jpg"), ("dog", "train/dog/2.jpg")],
        "val": [("cat", f"{val}/cat/3.jpg")],
        "test": [("dog", "test/dog/4.jpg")],
    }


def test_folder_named_train_that_holds_images_is_a_class(tmp_path):
    write(tmp_path, "bus/1.jpg", "train/2.jpg")
    assert contents(find_source(tmp_path, seed=0)) == {"train": [("bus", "bus/1.jpg"), ("train", "train/2.jpg")]}


def test_folder_ignores_hidden_entries_and_tells_of_others(tmp_path):
    write(
        tmp_path,
        "train/a/1.jpg",
        "train/b/2.jpg",
        "train/b/notes.txt",
        "train/b/.x.jpg",
        "train/.git/3.jpg",
        "old/4.jpg",
    )
    source = find_source(tmp_path, seed=0)
    assert contents(source) == {"train": [("a", "train/a/1.jpg"), ("b", "train/b/2.jpg")]}
    assert source.notes == (
        "Folders beside the splits were not read: 'old' (1 image).",
        "1 file in train is no image by its name ('.txt') and was not read.",
        "Hidden images, hidden folders and folders of the system were not read in train: 2 ('train/.git', "
        "'train/b/.x.jpg').",
    )


def test_folder_refuses_an_empty_class(tmp_path):
    write(tmp_path, "cat/1.jpg", "dog/notes.txt")
    with pytest.raises(UserError, match=r"class folder .*dog' holds no images"):
        find_source(tmp_path, seed=0)


def test_folder_lets_val_lack_a_class(tmp_path):
    write(tmp_path, "train/a/1.jpg", "train/b/2.jpg", "val/a/3.jpg")
    (tmp_path / "val" / "b").mkdir()
    assert contents(find_source(tmp_path, seed=0))["val"] == [("a", "val/a/3.jpg")]


def test_folder_refuses_two_names_of_one_split(tmp_path):
    write(tmp_path, "train/a/1.jpg", "val/a/2.jpg", "valid/a/3.jpg")
    with pytest.raises(UserError, match="one split by their names"):
        find_source(tmp_path, seed=0)


def test_folder_refuses_splits_without_train(tmp_path):
    write(tmp_path, "val/a/1.jpg", "test/a/1.jpg")
    with pytest.raises(UserError, match="holds test, val but no train"):
        find_source(tmp_path, seed=0)


def test_folder_refuses_images_without_class_folders(tmp_path):
    write(tmp_path, "1.jpg", "2.jpg")
    with pytest.raises(UserError, match="holds no class folders"):
        find_source(tmp_path, seed=0)


def test_find_source_refuses_a_missing_folder_with_the_nearest(tmp_path):
    write(tmp_path, "flowers/a/1.jpg")
    with pytest.raises(UserError, match=r"There is no .*flower' \(did you mean flowers\?\); data is an image folder"):
        find_source(tmp_path / "flower", seed=0)


def test_find_source_refuses_another_kind_of_file(tmp_path):
    write(tmp_path, "a.zip")
    with pytest.raises(UserError, match=r"none that ends in \.parquet, \.csv.*; data is an image folder"):
        find_source(tmp_path / "a.zip", seed=0)


def write_parquet(path, images, labels, *, kind="struct", names=None, row_group_size=2, label_type=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    column = pa.array([{"bytes": i, "path": None} for i in images]) if kind == "struct" else pa.array(images, kind)
    table = pa.table({"image": column, "label": pa.array(labels, label_type)})
    if names:
        features = {"label": {"names": names, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path, row_group_size=row_group_size)


@pytest.mark.parametrize("kind", ["struct", pa.binary(), pa.large_binary()])
def test_parquet_file_gives_bytes_and_labels(tmp_path, kind):
    images = [b"%d" % i for i in range(7)]
    write_parquet(tmp_path / "birds.parquet", images, list("aabbaba"), kind=kind)
    source = find_source(tmp_path / "birds.parquet", seed=0)
    train = source.splits["train"]
    assert (source.name, list(train.labels)) == ("birds", list("aabbaba"))
    order = [6, 0, 3, 1, 5, 2, 4]
    assert [train.read(i) for i in order] == [images[i] for i in order]
    assert train.names[5] == f"{tmp_path / 'birds.parquet'}:5"


def test_parquet_integer_labels_take_the_names_of_hugging_face(tmp_path):
    write_parquet(tmp_path / "a.parquet", [b"0", b"1", b"2"], [1, 0, 1], names=["cat", "dog"])
    assert find_source(tmp_path / "a.parquet", seed=0).splits["train"].labels == ["dog", "cat", "dog"]


def test_parquet_integer_labels_without_names_are_numbers(tmp_path):
    write_parquet(tmp_path / "a.parquet", [b"0", b"1"], [10, 9])
    assert find_source(tmp_path / "a.parquet", seed=0).splits["train"].labels == ["10", "9"]


def test_parquet_reads_dictionary_labels(tmp_path):
    write_parquet(tmp_path / "a.parquet", [b"0", b"1"], ["x", "y"], label_type=pa.dictionary(pa.int8(), pa.string()))
    assert find_source(tmp_path / "a.parquet", seed=0).splits["train"].labels == ["x", "y"]


@pytest.mark.parametrize(
    "paths",
    [
        ("train-00000-of-00002.parquet", "train-00001-of-00002.parquet", "validation-00000.parquet", "test.parquet"),
        ("train/0.parquet", "train/1.parquet", "valid/0.parquet", "test/0.parquet"),
        ("data/train-0.parquet", "data/train-1.parquet", "data/val-0.parquet", "data/test-0.parquet"),
    ],
)
def test_parquet_folder_finds_splits_by_name(tmp_path, paths):
    for number, path in enumerate(paths):
        write_parquet(tmp_path / path, [b"%d" % (10 * number + i) for i in range(3)], list("abc"))
    found = contents(find_source(tmp_path, seed=0))
    assert {split: [int(content) for _, content in examples] for split, examples in found.items()} == {
        "train": [0, 1, 2, 10, 11, 12],
        "val": [20, 21, 22],
        "test": [30, 31, 32],
    }


def test_parquet_folder_without_split_names_is_train(tmp_path):
    for name in ("part-0.parquet", "part-1.parquet"):
        write_parquet(tmp_path / name, [b"0", b"1"], ["a", "b"])
    source = find_source(tmp_path, seed=0)
    assert {split: len(examples.labels) for split, examples in source.splits.items()} == {"train": 4}


def test_parquet_image_that_is_null_is_empty(tmp_path):
    write_parquet(tmp_path / "a.parquet", [b"0", None], ["a", "b"])
    assert find_source(tmp_path / "a.parquet", seed=0).splits["train"].read(1) == b""


def test_parquet_refuses_missing_columns(tmp_path):
    pq.write_table(pa.table({"images": [b""], "class": ["a"]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"no column 'image' \(did you mean images\?\): its columns are images, class"):
        find_source(tmp_path / "a.parquet", seed=0)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"image": [1], "label": ["a"]}, "column image of .* is int64"),
        ({"image": [{"file": "a.jpg"}], "label": ["a"]}, "column image of .* is struct"),
        ({"image": [b""], "label": [0.5]}, "column label of .* is double"),
        ({"image": [b""], "label": pa.array([None], pa.string())}, "column label of .* has 1 empty values"),
    ],
)
def test_parquet_refuses_other_types(tmp_path, columns, message):
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=message):
        find_source(tmp_path / "a.parquet", seed=0)


def test_parquet_refuses_a_file_that_is_none(tmp_path):
    write(tmp_path, "a.parquet")
    with pytest.raises(UserError, match=r"a\.parquet' cannot be read as Parquet"):
        find_source(tmp_path, seed=0)


class FakeData(torchvision.datasets.FakeData):
    classes = ("zebra", "ant", "bee")

    def __init__(self):
        super().__init__(size=8, image_size=(3, 6, 5), num_classes=3)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(torchvision_source, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(torchvision.datasets, "FakeData", FakeData)


def test_torchvision_gives_images_and_names_of_classes():
    source = find_source("torchvision:FakeData", seed=0)
    train, reference = source.splits["train"], FakeData()
    assert list(train.labels) == [FakeData.classes[reference[i][1]] for i in range(8)]
    assert np.array_equal(np.asarray(train.read(5)), np.asarray(reference[5][0]))
    assert source.name == "fakedata"


def test_torchvision_asks_for_each_split_and_for_a_download(monkeypatch, tmp_path):
    class Flowers102:
        def __init__(self, root, split="train", transform=None, download=False):
            assert (root, download) == (str(tmp_path / "cache"), True)
            self._labels = {"train": [0, 1, 1], "val": [1], "test": [0]}[split]

        def __len__(self):
            return len(self._labels)

    monkeypatch.setattr(torchvision.datasets, "Flowers102", Flowers102)
    source = find_source("torchvision:Flowers102", seed=0)
    assert {split: examples.labels for split, examples in source.splits.items()} == {
        "train": ["0", "1", "1"],
        "val": ["1"],
        "test": ["0"],
    }


@pytest.mark.parametrize("name", [*torchvision_source.BY_SPLIT, *torchvision_source.BY_FLAG, *torchvision_source.WHOLE])
def test_torchvision_sets_are_there_with_their_splits(name):
    kind = getattr(torchvision.datasets, name)
    if name in torchvision_source.BY_FLAG:
        assert "train" in kind.__init__.__annotations__
    elif name in torchvision_source.BY_SPLIT:
        assert "split" in kind.__init__.__annotations__


def test_torchvision_refuses_an_unknown_set_with_the_nearest():
    with pytest.raises(UserError, match=r"'torchvision:CIFAR'.*\(did you mean CIFAR100? or CIFAR100?"):
        find_source("torchvision:CIFAR", seed=0)


def test_torchvision_tells_of_a_failed_download(monkeypatch):
    def fail(root, train, download):
        raise RuntimeError("no network")

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", fail)
    with pytest.raises(UserError, match=r"cannot provide CIFAR10 \(no network\)"):
        find_source("torchvision:CIFAR10", seed=0)


def test_demo_splits_the_digits():
    pytest.importorskip("sklearn")
    source = find_source("demo", seed=0)
    assert {split: len(examples.labels) for split, examples in source.splits.items()} == {
        "train": 997,
        "val": 300,
        "test": 500,
    }
    names = [name for examples in source.splits.values() for name in examples.names]
    assert len(set(names)) == 1797
    assert all(28 <= count <= 32 for count in Counter(source.splits["val"].labels).values())


def test_demo_digits_have_a_black_border():
    pytest.importorskip("sklearn")
    image = np.asarray(find_source("demo", seed=0).splits["train"].read(3))
    assert image.shape == (10, 10)
    assert image.max() == 255
    assert not np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]]).any()


def test_demo_splits_depend_on_the_seed():
    pytest.importorskip("sklearn")
    names = [find_source("demo", seed=seed).splits["test"].names for seed in (0, 0, 1)]
    assert names[0] == names[1] != names[2]


def test_demo_without_scikit_learn_tells_how_to_get_it(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("sklearn"):
            raise ModuleNotFoundError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=r'pip install "delta-tune\[demo\]"'):
        find_source("demo", seed=0)
