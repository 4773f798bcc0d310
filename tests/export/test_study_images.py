from __future__ import annotations

import shutil

import numpy as np
import pytest
from helpers.studies import study_json
from PIL import Image

from delta_tune.config import UserError
from delta_tune.export import study_images
from delta_tune.export.calibration_folder import read_calibration
from delta_tune.export.study_images import metric_of, read_study_images
from delta_tune.inference.model import load
from delta_tune.results.remembered_studies import remember_study
from delta_tune.results.study_record import StudyRecord

STUDY_ID = "1" * 32


@pytest.fixture(scope="module")
def model(best):
    return load(best)


@pytest.fixture
def study(best, image_folder, tmp_path):
    """A study's folder that this user began on this machine."""
    shutil.copytree(best, tmp_path / "study" / "best")
    folder = tmp_path / "study"
    study_json(folder, id=STUDY_ID, images={"train": 36, "val": 18, "test": 15})
    _point_at(folder, image_folder)
    return folder


@pytest.mark.parametrize("place", [".", "best"])
def test_the_studys_own_images_are_read_again(study, place, model, task):
    val, test = read_study_images(model, study / place)
    for found, split in ((val, task.dataset.val), (test, task.dataset.test)):
        assert found.labels.tolist() == split.labels.tolist()
        np.testing.assert_array_equal(found.pixels, split.images.batch(np.arange(len(split))))
    assert not val.trained_on


def test_images_that_the_model_has_learned_from_are_marked(study, model):
    record = StudyRecord.read(study)
    record.set_model(0, "trial 0 retrained on 54 images")
    record.write(study)
    val, test = read_study_images(model, study)
    assert (val.trained_on, test.trained_on) == (True, False)


def test_only_a_stratified_part_of_many_images_is_read(study, model, monkeypatch):
    monkeypatch.setattr(study_images, "MOST_IMAGES", 6)
    val, _ = read_study_images(model, study)
    assert np.bincount(val.labels).tolist() == [2, 2, 2]


def test_data_of_a_study_that_a_stranger_began_is_not_read(study, model):
    record = StudyRecord.read(study)
    record.study_id = "2" * 32
    record.write(study)
    with pytest.raises(UserError, match=r"not begun by you on this machine.*give --calibration FOLDER"):
        read_study_images(model, study)


def test_data_that_has_changed_is_refused(study, model, image_folder, tmp_path):
    copied = shutil.copytree(image_folder, tmp_path / "copy")
    (copied / "val" / "red" / "0.png").unlink()
    _point_at(study, copied)
    with pytest.raises(UserError, match=r"no longer the data of the study \(images: 18 val, 15 test then, 17 val"):
        read_study_images(model, study)


def test_data_that_is_gone_is_said_in_one_sentence(study, model, tmp_path):
    _point_at(study, tmp_path / "gone")
    with pytest.raises(UserError, match=r"There is no '.*gone'.*give --calibration FOLDER"):
        read_study_images(model, study)


def test_folder_without_a_study_is_refused(best, model, tmp_path):
    shutil.copytree(best, tmp_path / "alone")
    with pytest.raises(UserError, match=r"no study\.json .*give --calibration FOLDER"):
        read_study_images(model, tmp_path / "alone")
    assert metric_of(tmp_path / "alone") == "val_accuracy"


def _point_at(study, data):
    record = StudyRecord.read(study)
    record.content["settings"]["data"] = str(data)
    record.write(study)
    remember_study(STUDY_ID, str(study), record.settings, "")


def test_calibration_folder_of_classes_has_labels(model, image_folder):
    (found,) = read_calibration(model, image_folder / "val")
    assert found.split == "calibration"
    assert np.bincount(found.labels).tolist() == [6, 6, 6]


def test_calibration_folder_of_a_whole_data_set_is_its_validation_and_test_images(model, image_folder):
    found = read_calibration(model, image_folder)
    assert [(each.split, len(each.labels)) for each in found] == [("calibration", 18), ("test", 15)]


def test_calibration_data_without_validation_images_is_calibrated_by_train_and_not_by_test(
    model, image_folder, tmp_path
):
    for name in ("train", "test"):
        shutil.copytree(image_folder / name, tmp_path / name)
    found = read_calibration(model, tmp_path)
    assert [(each.split, len(each.labels)) for each in found] == [("calibration", 36), ("test", 15)]


def test_calibration_folder_of_images_has_no_labels_and_leaves_damaged_ones_out(model, image_folder, tmp_path):
    for name in ("0", "1"):
        shutil.copy(image_folder / "val" / "red" / f"{name}.png", tmp_path / f"{name}.png")
    (tmp_path / "2.png").write_bytes(b"no image")
    (found,) = read_calibration(model, tmp_path)
    assert found.labels is None
    assert len(found.pixels) == 2


def test_calibration_folder_of_other_classes_is_refused(model, tmp_path):
    for name in ("red", "yellow"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (70, 70)).save(tmp_path / name / "0.png")
    with pytest.raises(UserError, match=r"has the class 'yellow', which the model does not know"):
        read_calibration(model, tmp_path)


def test_calibration_folder_without_images_is_refused(model, tmp_path):
    with pytest.raises(UserError, match="data is an image folder"):
        read_calibration(model, tmp_path)
