"""The plan's sentence on pictures that are in two splits as different files."""

from __future__ import annotations

import pytest
from helpers.photos import photo
from PIL import Image, ImageOps

from delta_tune.data.images import Preprocessing
from delta_tune.data.loading import load_dataset


@pytest.fixture
def folder(tmp_path):
    for first, split, count in ((0, "train", 12), (50, "val", 3)):
        for number, name in enumerate(("cat", "dog")):
            (tmp_path / split / name).mkdir(parents=True)
            for image in range(count):
                photo(first + 20 * number + image).save(tmp_path / split / name / f"{image}.jpg")
    return tmp_path


def notes(folder, channels=3, **options):
    form = Preprocessing(
        image_size=64,
        stored_size=72,
        mean=(0.5,) * channels,
        std=(0.5,) * channels,
        interpolation="bilinear",
        channels=channels,
    )
    return [note for note in load_dataset(folder, preprocessing=form, **options).notes if "in two splits" in note]


@pytest.mark.parametrize(("channels", "resize"), [(3, "crop"), (3, "squash"), (3, "letterbox"), (1, "crop")])
def test_near_duplicates_across_splits_are_counted(folder, channels, resize):
    ImageOps.mirror(Image.open(folder / "train/cat/3.jpg")).save(folder / "val/cat/x.png")
    Image.open(folder / "train/cat/4.jpg").resize((60, 45)).save(folder / "val/cat/y.png")
    (note,) = notes(folder, channels, resize=resize)
    assert "2 of train also in val; python -m delta_tune inspect" in note


def test_data_without_near_duplicates_has_no_such_note(folder):
    assert notes(folder) == []


def test_identical_files_are_left_to_their_own_note(folder):
    (folder / "val/cat/x.jpg").write_bytes((folder / "train/cat/3.jpg").read_bytes())
    assert notes(folder) == []


def test_images_that_are_kept_as_files_are_left_to_inspect(folder):
    ImageOps.mirror(Image.open(folder / "train/cat/3.jpg")).save(folder / "val/cat/x.png")
    assert notes(folder, memory_limit=0) == []
