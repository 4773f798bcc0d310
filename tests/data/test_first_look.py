"""How images are resized if nothing is said, and what the plan says of it."""

import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from delta_tune.config import StudyConfig, UserError
from delta_tune.data.arrays import to_8_bit
from delta_tune.data.first_look import FirstLook, look_at, settle_resize, value_notes
from delta_tune.data.images import Preprocessing, stored_square
from delta_tune.data.loading import load_dataset
from delta_tune.data.sources.base import Examples
from delta_tune.results.study_record import StudyRecord

SMALL = Preprocessing(image_size=12, stored_size=16, mean=(0.5,) * 3, std=(0.2,) * 3, interpolation="bilinear")
HALF, MOST = FirstLook((0.4, 0.5, 1.0)), FirstLook((0.3, 0.6, 1.0))


@pytest.fixture
def folder(tmp_path):
    """Strips of 40 × 10 pixels."""
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for index in range(6):
            Image.fromarray(rng.integers(0, 256, (10, 40, 3), dtype=np.uint8)).save(tmp_path / name / f"{index}.png")
    return tmp_path


@pytest.mark.parametrize(
    ("asked", "look", "settled", "said"),
    [
        ("auto", MOST, "crop", ""),
        ("crop", MOST, "crop", ""),
        (
            "auto",
            HALF,
            "letterbox",
            "Images are resized whole, with a border of the mean colour (letterbox): the centre crop would keep 50% of "
            "the median image (3 of train were looked at), less than 60%; --resize crop takes it nevertheless.",
        ),
        (
            "crop",
            HALF,
            "crop",
            "Images are cropped, as asked, which keeps 50% of the median image (3 of train were looked at); --resize "
            "auto would choose letterbox.",
        ),
        (
            "letterbox",
            HALF,
            "letterbox",
            "Images are resized whole, with a border of the mean colour (letterbox), as asked; the centre crop would "
            "keep 50% of the median image (3 of train were looked at).",
        ),
        (
            "letterbox",
            MOST,
            "letterbox",
            "Images are resized whole, with a border of the mean colour (letterbox), as asked; --resize auto would "
            "choose crop, which would keep 60% of the median image (3 of train were looked at).",
        ),
        (
            "squash",
            HALF,
            "squash",
            "Images are resized whole, both sides to the size of the input (squash), as asked; --resize auto would "
            "choose letterbox, which keeps their proportions.",
        ),
    ],
)
def test_settle_resize_asks_what_the_median_image_loses(asked, look, settled, said):
    assert settle_resize(asked, look) == (settled, said)


def test_look_at_takes_images_from_first_to_last_and_leaves_out_what_cannot_be_read():
    asked = []

    def read(index):
        asked.append(index)
        return b"no image" if index % 2 else Image.new("L", (10, 4))

    examples = Examples(labels=["a"] * 2000, names=["a"] * 2000, read=read)
    look = look_at(examples, np.arange(0, 2000, 2))
    assert set(look.kept) == {0.4}
    assert (len(look.kept), min(asked), max(asked)) == (256, 0, 1998)
    assert look_at(Examples(labels="a", names="a", read=lambda index: b""), np.array([0])).usual_kept == 1


@pytest.mark.parametrize(
    ("highest", "white", "said"),
    [
        (
            (300.0, 4013.0),
            None,
            "no value above 4013 of 65535 (2 of train were looked at), so they are",
        ),
        ((300.0, 4013.0), None, "; --white 4095 reads 4095 as white."),
        ((9000.0,), None, ""),
        ((4013.0,), 4095, ""),
        (
            (1.5,),
            1.0,
            "values up to 1.5 (1 of train were looked at); those above 1, which is --white, are",
        ),
        ((), None, ""),
        ((), 4095, "No image has more than 8 bits, for which --white is (1 of train were looked at)."),
    ],
)
def test_value_notes_tell_of_dark_and_of_too_bright_images(highest, white, said):
    notes = value_notes(FirstLook((1.0,), 0, highest), dataclasses.replace(SMALL, white=white))
    assert len(notes) == bool(said)
    assert said in "".join(notes)


def test_look_at_finds_grey_images_and_the_largest_value():
    images = [Image.fromarray(np.array([[0, value]], np.uint16)) for value in (7, 900, 8, 9, 800)]
    look = look_at(Examples(labels="a" * 5, names="a" * 5, read=images.__getitem__), np.arange(5))
    assert (look.num_grey, look.highest) == (5, (7, 800)), "one in four is decoded"
    assert "are grey (5 of train were looked at)" in value_notes(look, SMALL)[0]
    grey = dataclasses.replace(SMALL, channels=1, mean=(0.5,), std=(0.5,))
    assert [note for note in value_notes(look, grey) if "grey" in note] == []


def test_a_folder_of_arrays_is_read_with_its_channels(tmp_path):
    rng, values = np.random.default_rng(0), {}
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for index in range(6):
            values[f"{name}/{index}"] = rng.integers(0, 4096, (20, 20, 5), dtype=np.uint16)
            np.save(tmp_path / name / f"{index}.npy", values[f"{name}/{index}"])
    half = (0.5,) * 5
    five = dataclasses.replace(SMALL, channels=5, mean=half, std=half)
    expected = dataclasses.replace(five, white=4095.0)
    for memory_limit in (None, 0):
        dataset = load_dataset(tmp_path, preprocessing=five, white=4095.0, memory_limit=memory_limit)
        assert dataset.preprocessing == expected
        found = dataset.val.images.batch(np.arange(len(dataset.val)))
        keys = [f"{Path(name).parent.name}/{Path(name).stem}" for name in dataset.val.names]
        assert np.array_equal(found, [stored_square(to_8_bit(values[key], 4095), expected) for key in keys])
    with pytest.raises(UserError, match="20 × 20 × 5 numbers, not of 3 channels: set --channels"):
        load_dataset(tmp_path, preprocessing=SMALL)


def test_arrays_beside_images_are_no_images(folder):
    before = load_dataset(folder, preprocessing=SMALL)
    np.save(folder / "a" / "features.npy", np.zeros(9))
    assert load_dataset(folder, preprocessing=SMALL).fingerprint == before.fingerprint


def test_load_dataset_letterboxes_strips_and_says_so(folder):
    dataset = load_dataset(folder, preprocessing=SMALL)
    assert dataset.preprocessing.resize == "letterbox"
    assert sum("(letterbox): the centre crop would keep 25% of" in note for note in dataset.notes) == 1
    for memory_limit in (None, 0):
        split = load_dataset(folder, preprocessing=SMALL, memory_limit=memory_limit).val
        expected = [stored_square(Image.open(name), dataset.preprocessing) for name in split.names]
        assert np.array_equal(split.images.batch(np.arange(len(split))), np.stack(expected))


def test_load_dataset_of_another_resize_has_another_fingerprint(folder):
    found = {
        resize: load_dataset(folder, preprocessing=SMALL, resize=resize).fingerprint
        for resize in ("crop", "squash", "letterbox")
    }
    assert len(set(found.values())) == 3


def test_the_fingerprint_of_cropped_images_is_that_of_earlier_versions():
    told = SMALL.for_fingerprint()
    assert list(told) == ["image_size", "stored_size", "mean", "std", "interpolation"]
    assert dataclasses.replace(SMALL, resize="squash").for_fingerprint() == told | {"resize": "squash"}


@pytest.mark.parametrize("name", ["flowers17", "clothing", "trashnet96", "ants_bees"])
def test_the_development_sets_stay_cropped(name):
    root = os.environ.get("DELTA_TUNE_TEST_DATA")
    if root is None:
        pytest.skip("DELTA_TUNE_TEST_DATA is not set")
    files = sorted(file for file in (Path(root) / "data" / name).rglob("*") if file.suffix in (".jpg", ".png"))
    assert files
    examples = Examples(labels=files, names=files, read=lambda index: files[index].read_bytes())
    assert settle_resize("auto", look_at(examples, np.arange(len(files)))) == ("crop", "")


def test_a_study_of_an_earlier_version_was_cropped():
    assert StudyConfig().resize == "auto"
    assert StudyRecord({"settings": {"data": "photos"}}).settings["resize"] == "crop"
    assert StudyRecord({"settings": {"resize": "squash"}}).settings["resize"] == "squash"
