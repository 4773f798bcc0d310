"""From a source to splits in memory."""

import dataclasses
import io
import pickle
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torchvision
from PIL import Image
from pyarrow import csv as pa_csv

from delta_tune.config import UserError
from delta_tune.data import loading
from delta_tune.data.cutting import cut_for_study
from delta_tune.data.dataset import Dataset
from delta_tune.data.images import Preprocessing, open_image, to_square
from delta_tune.data.loading import load_dataset, load_datasets
from delta_tune.data.sources import torchvision as torchvision_source
from delta_tune.data.stored_images import DecodedImages, EncodedImages

SMALL = Preprocessing(
    image_size=12, stored_size=16, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), interpolation="bilinear"
)
LARGE = dataclasses.replace(SMALL, stored_size=64)
ENCODED = {"preprocessing": LARGE, "memory_limit": 100_000}
"""The files of a fixture fit into this memory, its decoded images do not."""


def photo(number, width=24, height=20):
    """A file of its own for each number."""
    pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def write(root, files):
    for path, content in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)
    return root


@pytest.fixture
def folder(tmp_path):
    """Classes of 12, 10 and 8 images."""
    files = {}
    for first, (name, count) in zip((0, 100, 200), (("a10", 12), ("a9", 10), ("b", 8)), strict=True):
        files |= {f"{name}/{i:02}.png": photo(first + i) for i in range(count)}
    return write(tmp_path / "set", files)


@pytest.fixture
def splits(tmp_path):
    """Two classes, three splits."""
    files = {}
    for first, (split, count) in zip((0, 100, 200), (("train", 5), ("val", 3), ("test", 2)), strict=True):
        for label, name in enumerate(("cat", "dog")):
            files |= {f"{split}/{name}/{i}.png": photo(first + 50 * label + i) for i in range(count)}
    return write(tmp_path / "set", files)


def load(data, **options):
    return load_dataset(data, **({"preprocessing": SMALL} | options))


def names_of(dataset):
    return {s: set(dataset.for_name(s).names) for s in ("train", "val", "test") if s != "test" or dataset.test}


def test_load_dataset_decodes_the_images_of_its_names(folder):
    dataset = load(folder)
    assert dataset.classes == ("a9", "a10", "b")
    assert isinstance(dataset.train.images, DecodedImages)
    for split in (dataset.train, dataset.val):
        pixels = split.images.batch(np.arange(len(split)))
        for image, label, name in zip(pixels, split.labels, split.names, strict=True):
            assert np.array_equal(image, to_square(open_image(name), 16, "bilinear"))
            assert dataset.classes[label] == Path(name).parent.name
        assert split.labels.dtype == np.int64


def test_load_dataset_cuts_val_and_test_from_train(folder):
    dataset = load(folder, val_fraction=0.2, test_fraction=0.3)
    names = names_of(dataset)
    assert sum(map(len, names.values())) == len(set.union(*names.values())) == 30
    assert {split: len(found) for split, found in names.items()} == {"train": 15, "val": 6, "test": 9}


def test_load_dataset_without_test_has_none(folder):
    dataset = load(folder)
    assert dataset.test is None
    with pytest.raises(UserError, match=r"no split 'test'.*--test-fraction"):
        dataset.for_name("test")


def test_load_dataset_keeps_given_splits(splits):
    dataset = load(splits)
    assert {split: len(names) for split, names in names_of(dataset).items()} == {"train": 10, "val": 6, "test": 4}
    assert dataset.name == "set"


def test_load_dataset_tells_that_test_fraction_is_not_used(splits):
    assert any("test_fraction 0.2 is not used" in note for note in load(splits, test_fraction=0.2).notes)


def test_load_dataset_leaves_val_and_test_alone_when_train_is_subsampled(folder):
    whole = names_of(load(folder, test_fraction=0.2))
    part = names_of(load(folder, test_fraction=0.2, train_fraction=0.5))
    assert (part["val"], part["test"]) == (whole["val"], whole["test"])
    assert part["train"] < whole["train"]
    assert len(part["train"]) == pytest.approx(len(whole["train"]) / 2, abs=1)


def test_load_dataset_takes_train_per_class_nested(folder):
    three, five = (load(folder, train_per_class=count) for count in (3, 5))
    assert np.bincount(three.train.labels).tolist() == [3, 3, 3]
    assert names_of(three)["train"] < names_of(five)["train"]


def test_load_dataset_takes_all_where_a_class_has_fewer(folder):
    dataset = load(folder, train_per_class=7)
    sizes = np.bincount(dataset.train.labels).tolist()
    assert sizes[:2] == [7, 7]
    assert any(f"fewer than 7 training images use all they have: b {sizes[2]}." in n for n in dataset.notes)


def test_load_dataset_tells_which_class_val_lacks(splits):
    for image in (splits / "val" / "cat").iterdir():
        image.unlink()
    notes = load(splits).notes
    assert any(note.startswith("val has no image of the class 'cat'") for note in notes)


def test_load_dataset_repeats_with_the_seed(folder):
    one, same, other = (load(folder, seed=seed) for seed in (0, 0, 1))
    assert one.fingerprint == same.fingerprint != other.fingerprint
    assert one.val.names == same.val.names != other.val.names


@pytest.mark.parametrize(
    "options",
    [
        {"val_fraction": 0},
        {"val_fraction": 1},
        {"test_fraction": -0.1},
        {"test_fraction": 1},
        {"train_fraction": 0},
        {"train_fraction": 1.1},
        {"train_per_class": 0},
        {"train_fraction": 0.5, "train_per_class": 5},
        {"seed": -1},
    ],
)
def test_load_dataset_refuses_arguments_out_of_range(folder, options):
    with pytest.raises(UserError, match="|".join(options)):
        load(folder, **options)


def test_load_dataset_reads_parquet_as_it_reads_the_folder(folder, tmp_path):
    paths = sorted(folder.glob("*/*.png"))
    table = pa.table({"image": [{"bytes": p.read_bytes()} for p in paths], "label": [p.parent.name for p in paths]})
    pq.write_table(table, tmp_path / "set.parquet", row_group_size=7)
    assert load(tmp_path / "set.parquet").fingerprint == load(folder).fingerprint


def test_load_dataset_reads_torchvision(monkeypatch, tmp_path):
    class FakeData(torchvision.datasets.FakeData):
        def __init__(self):
            super().__init__(size=40, image_size=(3, 20, 16), num_classes=2)

    monkeypatch.setattr(torchvision.datasets, "FakeData", FakeData)
    monkeypatch.setattr(torchvision_source, "CACHE", tmp_path)
    dataset = load("torchvision:FakeData")
    index = int(dataset.val.names[0].split(":")[-1])
    assert np.array_equal(dataset.val.images.batch(np.array([0]))[0], to_square(FakeData()[index][0], 16, "bilinear"))
    assert dataset.fingerprint == load("torchvision:FakeData", memory_limit=0, scratch=str(tmp_path)).fingerprint


def test_load_dataset_takes_ten_digits_a_class_for_the_demo():
    pytest.importorskip("sklearn")
    dataset = load("demo")
    assert (dataset.name, dataset.classes) == ("demo", tuple("0123456789"))
    assert np.bincount(dataset.train.labels).tolist() == [10] * 10
    assert (len(dataset.val), len(dataset.for_name("test"))) == (300, 500)
    assert len(load("demo", train_fraction=1.0).train) == 997


# -------------------------------------------------------------------------------------------------- damaged images


@pytest.fixture
def damaged(folder):
    broken = {"a9/02.png": photo(102)[:300], "b/03.png": b"", "b/04.png": b"text"}
    return write(folder, broken)


def test_load_dataset_refuses_damaged_images_by_path(damaged):
    with pytest.raises(
        UserError, match=r"3 images cannot be read: .*; repair or remove them, or pass --skip-damaged"
    ) as error:
        load(damaged)
    assert all(f"{damaged / path} (" in str(error.value) for path in ("a9/02.png", "b/03.png", "b/04.png"))


def test_load_dataset_names_three_damaged_images_and_counts_the_rest(damaged):
    write(damaged, {f"a10/{i:02}.png": b"text" for i in range(4)})
    with pytest.raises(UserError, match=r"7 images cannot be read: .* and 4 more; repair") as error:
        load(damaged)
    assert str(error.value).count(".png") == 3


def test_load_dataset_skips_damaged_images(damaged):
    dataset = load(damaged, skip_damaged=True)
    names = set.union(*names_of(dataset).values())
    assert len(names) == 27
    assert not {str(damaged / path) for path in ("a9/02.png", "b/03.png", "b/04.png")} & names
    assert any(note.startswith("3 images could not be read and were left out: ") for note in dataset.notes)
    for split in (dataset.train, dataset.val):
        for image, name in zip(split.images.batch(np.arange(len(split))), split.names, strict=True):
            assert np.array_equal(image, to_square(open_image(name), 16, "bilinear"))


def test_load_dataset_refuses_damaged_images_that_stay_encoded(damaged):
    with pytest.raises(UserError, match="3 images cannot be read"):
        load(damaged, **ENCODED)


def test_load_dataset_names_a_class_without_a_readable_training_image(splits):
    write(splits, {f"train/dog/{i}.png": b"" for i in range(5)})
    with pytest.raises(UserError, match="class 'dog' is too small"):
        load(splits, skip_damaged=True)


def test_load_dataset_refuses_a_split_without_a_readable_image(splits):
    write(splits, {f"val/{name}/{i}.png": b"" for i in range(3) for name in ("cat", "dog")})
    with pytest.raises(UserError, match="No image of val can be read"):
        load(splits, skip_damaged=True)


def test_load_dataset_takes_a_decompression_bomb_for_damaged(folder, monkeypatch):
    write(folder, {"b/00.png": photo(0, 60, 50)})
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(UserError, match=r"1 image cannot be read: .*00\.png .*million pixels"):
        load(folder)


# ------------------------------------------------------------------------------------------------------ duplicates


@pytest.fixture
def duplicates(splits):
    """Two images of train also stand in val, one also in test; one of val in test."""
    return write(
        splits,
        {
            "train/cat/0.png": photo(100),
            "train/dog/1.png": photo(150),
            "train/cat/2.png": photo(200),
            "val/cat/2.png": photo(251),
        },
    )


def test_load_dataset_counts_duplicates_across_splits(duplicates):
    dataset = load(duplicates)
    assert len(dataset.train) == 10
    assert [note for note in dataset.notes if "identical files" in note] == [
        "2 images of train also in val (identical files); --drop-duplicates removes them from train.",
        "1 image of train also in test (identical files); --drop-duplicates removes them from train.",
        "1 image of val also in test (identical files).",
    ]


def test_load_dataset_drops_duplicates_from_train(duplicates):
    dataset = load(duplicates, drop_duplicates=True)
    gone = {str(duplicates / path) for path in ("train/cat/0.png", "train/dog/1.png", "train/cat/2.png")}
    assert names_of(dataset)["train"] == names_of(load(duplicates))["train"] - gone
    assert (len(dataset.val), len(dataset.for_name("test"))) == (6, 4)
    assert "3 images of train are also in val or test and were removed from train." in dataset.notes
    assert [note for note in dataset.notes if "identical files" in note] == [
        "1 image of val also in test (identical files)."
    ]


def test_load_dataset_names_a_class_that_duplicates_leave_empty(splits):
    write(splits, {f"train/dog/{i}.png": photo(150) for i in range(5)})
    with pytest.raises(UserError, match="class 'dog' is too small"):
        load(splits, drop_duplicates=True)


# --------------------------------------------------------------------------------- the same picture, the same name


def test_load_dataset_names_a_picture_that_has_two_labels(folder):
    write(folder, {"b/07.png": photo(0), "a9/09.png": photo(0), "a9/08.png": photo(107)})
    (note,) = (note for note in load(folder).notes if "byte for byte" in note)
    assert note.startswith("1 image in more than one class, byte for byte: ")
    assert note.endswith("; leave each in one class.")
    assert {label for label in ("'a9'", "'a10'", "'b'") if label in note} >= {"'a10'"}


def test_load_dataset_says_nothing_of_a_picture_twice_in_one_class(folder):
    write(folder, {"b/07.png": photo(200)})
    assert not [note for note in load(folder).notes if "byte for byte" in note]


def test_load_dataset_reads_two_unicode_forms_as_one_class(tmp_path):
    files = {}
    for number, path in enumerate(("train/caf\u00e9", "train/cafe\u0301", "train/tea", "val/cafe\u0301", "val/tea")):
        files |= {f"{path}/{i}.png": photo(10 * number + i) for i in range(3)}
    dataset = load(write(tmp_path / "set", files))
    assert dataset.classes == ("caf\u00e9", "tea")
    assert (np.bincount(dataset.train.labels).tolist(), np.bincount(dataset.val.labels).tolist()) == ([6, 3], [3, 3])
    assert any("Unicode forms" in note and "'caf\u00e9'" in note for note in dataset.notes)


def test_load_dataset_names_classes_that_differ_in_case_only(folder):
    write(folder, {f"B/{i}.png": photo(300 + i) for i in range(3)})
    dataset = load(folder)
    assert dataset.classes == ("a9", "a10", "B", "b")
    assert any("'B' and 'b'" in note for note in dataset.notes)


def test_load_dataset_counts_dangling_links_as_images_that_cannot_be_read(folder):
    for number in range(3):
        (folder / "b" / f"gone{number}.png").symlink_to(f"/annex/{number}.png")
    with pytest.raises(UserError, match=r"3 images cannot be read: .*gone0\.png \(a link that leads nowhere\)"):
        load(folder)
    assert any(note.startswith("3 images could not be read") for note in load(folder, skip_damaged=True).notes)


# ---------------------------------------------------------------------------------------------------------- memory


def test_load_dataset_encoded_gives_the_same_data_as_decoded(folder):
    write(folder, {"b/00.png": photo(999, 200, 150)})  # a large photo: its square is kept
    decoded, encoded = load(folder, preprocessing=LARGE), load(folder, **ENCODED)
    assert isinstance(encoded.train.images, EncodedImages)
    assert encoded.fingerprint == decoded.fingerprint
    for split in ("train", "val"):
        one, other = decoded.for_name(split), encoded.for_name(split)
        indices = np.random.default_rng(0).permutation(len(one))
        assert np.array_equal(one.images.batch(indices), other.images.batch(indices))
        assert (one.names, one.labels.tolist()) == (other.names, other.labels.tolist())


def test_load_dataset_keeps_encoded_what_is_smaller(tmp_path):
    """A small file as it is, a large one as its square."""
    files = {f"{name}/{i}.png": photo(i + 10 * ord(name), 8, 8) for name in "ab" for i in range(5)}
    dataset = load(write(tmp_path, files | {"b/9.png": photo(9, 300, 300)}), memory_limit=8000)
    sizes = {
        Path(name).name: len(file.as_py())
        for split in (dataset.train, dataset.val)
        for name, file in zip(split.names, split.images.encoded, strict=True)
    }
    assert sizes["9.png"] < 16 * 16 * 3 + 200
    assert sizes["1.png"] == (tmp_path / "a" / "1.png").stat().st_size


def test_load_dataset_tells_where_images_are_kept_and_why(folder):
    size = 30 * 64 * 64 * 3
    note = load(folder, preprocessing=LARGE, memory_limit=size).notes[-1]
    assert note.startswith("The images are kept decoded (360 KiB of at most 360 KiB")
    note = load(folder, preprocessing=LARGE, memory_limit=size - 1).notes[-1]
    assert note.startswith("The images are kept encoded (")
    assert "decoded, they would take 360 KiB, more than the limit of 360 KiB" in note


def test_dataset_pickles_its_images_out_of_band(folder):
    for options in ({}, ENCODED):
        dataset = load(folder, **options)
        buffers = []
        stream = pickle.dumps(dataset, protocol=5, buffer_callback=buffers.append)
        copy = pickle.loads(stream, buffers=[buffer.raw().toreadonly() for buffer in buffers])
        assert isinstance(copy, Dataset)
        assert copy.fingerprint == dataset.fingerprint
        batch = copy.train.images.batch(np.arange(4))
        assert np.array_equal(batch, dataset.train.images.batch(np.arange(4)))
        assert len(stream) < 6000


# ----------------------------------------------------------------------------------------------------- fingerprint


def test_fingerprint_does_not_depend_on_the_place(folder, tmp_path):
    folder_again = folder.rename(tmp_path / "elsewhere")
    fingerprint = load(folder_again).fingerprint
    folder_again.rename(folder)
    assert load(folder).fingerprint == fingerprint


def test_fingerprint_follows_content_classes_and_preprocessing(splits):
    first = load(splits).fingerprint
    other = Preprocessing(image_size=11, stored_size=16, mean=SMALL.mean, std=SMALL.std, interpolation="bilinear")
    fingerprints = {first, load(splits, preprocessing=other).fingerprint}
    write(splits, {"test/dog/0.png": photo(777)})
    fingerprints.add(load(splits).fingerprint)
    for split in ("train", "val", "test"):
        (splits / split / "dog").rename(splits / split / "wolf")
    fingerprints.add(load(splits).fingerprint)
    assert len(fingerprints) == 4


def test_load_dataset_advances_its_bar_by_each_image_and_prints_nothing(folder, capfd):
    done = []

    @contextmanager
    def bar(text, total):
        done.append((text, total))
        yield done.append

    dataset = load(folder, progress=bar)
    total = len(dataset.train) + len(dataset.val)
    assert done == [("Reading images", total), *[1] * total]
    assert capfd.readouterr() == ("", "")


def test_load_dataset_reads_a_set_of_photos(real_data):
    dataset = load(real_data / "data" / "ants_bees")
    assert (dataset.classes, len(dataset.train), len(dataset.val)) == (("ants", "bees"), 244, 153)


# ------------------------------------------------------------------------------------------- tables, groups, label maps


def table_of(folder, tmp_path, **columns):
    """A table of the folder's images beside it."""
    images = sorted(folder.rglob("*.png"))
    names = [str(image.relative_to(tmp_path)) for image in images]
    table = {"image": names, "label": [image.parent.name for image in images]}
    pa_csv.write_csv(pa.table(table | {name: make(images) for name, make in columns.items()}), tmp_path / "t.csv")
    return tmp_path / "t.csv"


def test_load_dataset_reads_a_table_as_it_reads_the_folder(folder, tmp_path):
    table, source = load(table_of(folder, tmp_path)), load(folder)
    assert (table.classes, table.fingerprint) == (source.classes, source.fingerprint)
    assert table.train.groups is None


def test_load_dataset_keeps_groups_whole_and_tells_how_many(folder, tmp_path):
    table = table_of(folder, tmp_path, group=lambda images: [int(image.stem) // 3 for image in images])
    dataset = load(table, val_fraction=0.3)
    assert not set(dataset.train.groups.tolist()) & set(dataset.val.groups.tolist())
    assert "30 images in 4 groups: no split that is cut divides one." in dataset.notes
    assert dataset.fingerprint != load(folder, val_fraction=0.3).fingerprint


def test_load_dataset_tells_of_groups_that_the_data_has_in_two_splits(folder, tmp_path):
    splits = {
        "group": lambda images: [image.stem for image in images],
        "split": lambda images: [
            "val" if int(image.stem) > 7 and image.parent.name == "a9" else "train" for image in images
        ],
    }
    notes = load(table_of(folder, tmp_path, **splits)).notes
    assert "2 groups of train also in val, as the data has it: scores on val may be too high." in notes


def test_load_dataset_tells_of_a_class_in_one_group(folder, tmp_path):
    def group(images):
        return ["x" if image.parent.name == "b" else image.stem for image in images]

    notes = load(table_of(folder, tmp_path, group=group)).notes
    assert "In one group only, which stays in train: 'b'." in notes


def test_load_dataset_applies_a_label_map(folder, tmp_path):
    (tmp_path / "m.csv").write_text("from,to\na9,a\na10,a\n")
    dataset = load(folder, label_map=tmp_path / "m.csv")
    assert dataset.classes == ("a", "b")
    assert any("The label map renames 2 classes (2 as 'a'); there are 2 now." in note for note in dataset.notes)


def test_load_dataset_counts_missing_images_of_a_table(folder, tmp_path):
    table = table_of(folder, tmp_path)
    (folder / "b" / "03.png").unlink()
    with pytest.raises(UserError, match=r"1 image cannot be read: .*03\.png"):
        load(table)
    assert sum(map(len, names_of(load(table, skip_damaged=True)).values())) == 29


def test_backbones_that_store_the_same_squares_share_them(splits):
    other = dataclasses.replace(SMALL, image_size=10, mean=(0.1, 0.2, 0.3))
    first, second = load_datasets(splits, preprocessings=[SMALL, other])
    for split in ("train", "val", "test"):
        assert first.for_name(split).images is second.for_name(split).images
    assert (first.preprocessing, second.preprocessing) == (SMALL, other)


@pytest.mark.parametrize(
    "other",
    [
        dataclasses.replace(SMALL, stored_size=20),
        dataclasses.replace(SMALL, interpolation="bicubic"),
        dataclasses.replace(SMALL, image_size=10),
    ],
)
def test_each_backbone_gets_what_it_would_get_alone(folder, other):
    options = {"seed": 3, "val_fraction": 0.3, "train_per_class": 4}
    for found, wanted in zip(
        load_datasets(folder, preprocessings=[SMALL, other], **options),
        (load(folder, preprocessing=each, **options) for each in (SMALL, other)),
        strict=True,
    ):
        assert found.fingerprint == wanted.fingerprint
        assert found.preprocessing == wanted.preprocessing
        for split in ("train", "val"):
            ours, theirs = found.for_name(split), wanted.for_name(split)
            assert list(ours.names) == list(theirs.names)
            assert np.array_equal(ours.images.batch(np.arange(len(ours))), theirs.images.batch(np.arange(len(theirs))))


def test_backbones_with_a_border_share_squares_only_where_it_is_alike(splits):
    other = dataclasses.replace(SMALL, mean=(0.1, 0.2, 0.3))
    first, second = load_datasets(splits, preprocessings=[SMALL, other], resize="letterbox")
    assert first.train.images is not second.train.images
    first, second = load_datasets(splits, preprocessings=[SMALL, SMALL], resize="letterbox")
    assert first.train.images is second.train.images


def test_examples_that_were_cut_before_are_not_listed_again(folder, monkeypatch):
    cut = cut_for_study(folder, seed=1)
    monkeypatch.setattr(loading, "cut_for_study", lambda *_, **__: pytest.fail("they are known"))
    (found,) = load_datasets(folder, preprocessings=[SMALL], cut=cut, seed=1)
    assert len(found.train) == len(cut.chosen["train"])


def test_memory_is_that_of_all_backbones_squares(splits):
    """The squares of one fit into the limit, those of two do not."""
    limit = 20 * 16**2 * 3 + 1
    other = dataclasses.replace(SMALL, stored_size=17)
    assert isinstance(load(splits, memory_limit=limit).train.images, DecodedImages)
    together = load_datasets(splits, preprocessings=[SMALL, other], memory_limit=limit)
    assert not any(isinstance(each.train.images, DecodedImages) for each in together)
