from __future__ import annotations

import numpy as np
import pytest

from delta_tune.config import UserError
from delta_tune.data.cutting import cut_for_study
from delta_tune.data.images import Preprocessing
from delta_tune.data.loading import load_dataset
from delta_tune.data.training_sample import TrainingSample

SMALL = Preprocessing(image_size=12, stored_size=16, mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bilinear")


@pytest.fixture
def sample(image_folder):
    return TrainingSample(cut_for_study(str(image_folder)), "auto", None, 0)


def test_images_are_those_that_a_study_trains_on(sample, image_folder):
    whole = load_dataset(image_folder, preprocessing=SMALL)
    positions = sample.positions(12, 1)
    found = sample.read(positions, sample.settled(SMALL)).train
    assert list(found.names) == [whole.train.names[position] for position in positions]
    assert np.array_equal(found.labels, whole.train.labels[positions])
    assert np.array_equal(found.images.batch(np.arange(12)), whole.train.images.batch(positions))


def test_sample_has_each_class(sample):
    assert np.bincount(sample.labels[sample.positions(12, 1)]).tolist() == [4, 4, 4]
    assert np.bincount(sample.labels[sample.positions(1, 2)]).tolist() == [2, 2, 2]


def test_smaller_sample_is_part_of_a_larger_one(sample):
    assert set(sample.positions(6, 1)) < set(sample.positions(20, 1)) < set(range(36))
    assert len(sample.positions(1000, 1)) == 36


def test_same_squares_are_read_once(sample):
    positions = sample.positions(6, 1)
    first, second = (sample.read(positions, sample.settled(SMALL)).train for _ in range(2))
    assert first is second
    assert sample.read(sample.positions(12, 1), sample.settled(SMALL)).train is not first


def test_unreadable_images_are_left_out(tmp_path, image_folder):
    for path in image_folder.rglob("*.png"):
        copy = tmp_path / path.relative_to(image_folder)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(b"no image" if path.name == "3.png" else path.read_bytes())
    sample = TrainingSample(cut_for_study(str(tmp_path)), "auto", None, 0)
    found = sample.read(np.arange(36), sample.settled(SMALL)).train
    assert len(found) == 33
    assert not [name for name in found.names if name.endswith("/3.png")]
    with pytest.raises(UserError, match="No image of train can be read"):
        sample.read(np.flatnonzero(["3.png" in name for name in cut_names(sample)]), sample.settled(SMALL))


def cut_names(sample):
    examples = sample.cut.examples("train")
    return [examples.names[index] for index in sample.cut.chosen["train"].tolist()]
