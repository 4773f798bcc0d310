from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pytest
import torch
from helpers.studies import change_settings

from delta_tune.config import UserError
from delta_tune.data.resampling import merge_val_into_train
from delta_tune.explanation import training_images as module
from delta_tune.explanation.training_images import embed_images, training_images
from delta_tune.inference.model import Model, load
from delta_tune.results.layout import EMBEDDINGS_FILE, STUDY_FILE


@pytest.fixture
def reads(monkeypatch):
    """How often the data is read."""
    count, load_dataset = [], module.load_dataset

    def counted(*args, **options):
        count.append(args)
        return load_dataset(*args, **options)

    monkeypatch.setattr(module, "load_dataset", counted)
    return count


def same(one, other):
    return (
        np.array_equal(one.embeddings, other.embeddings)
        and np.array_equal(one.labels, other.labels)
        and np.array_equal(one.usual, other.usual)
        and (one.names, one.thumbnails, one.num_all) == (other.names, other.thumbnails, other.num_all)
    )


def test_data_is_read_once(study, model, reads, task):
    first, second = training_images(model, study), training_images(model, study / "best")
    assert same(first, second)
    assert len(reads) == 1
    assert first.names == tuple(task.dataset.train.names)


def test_other_weights_see_the_images_anew(study, model, reads):
    first = training_images(model, study)
    with torch.no_grad():
        model.network.fc.bias.add_(1)  # of the head, so that embeddings alone would not tell
    training_images(model, study)
    assert len(reads) == 2
    with torch.no_grad():
        next(model.network.parameters()).mul_(-1)
    assert not same(first, training_images(model, study))
    assert len(reads) == 3


def test_mirror_images_of_the_same_weights_use_what_is_kept(study, model, reads):
    training_images(model, study)
    training_images(load(study, flip=True), study)
    assert len(reads) == 1


def test_model_that_was_trained_on_validation_too_has_its_images(study, model, task):
    content = json.loads((study / STUDY_FILE).read_text())
    content["model"] = "trial 0 retrained 3 times on 135 of 150 images, weights averaged"
    (study / STUDY_FILE).write_text(json.dumps(content))
    assert training_images(model, study).names == tuple(merge_val_into_train(task.dataset).train.names)


def test_folder_that_cannot_be_written_to_works_without_a_file(study, model, reads, monkeypatch):
    def refuse(*args):
        raise PermissionError("read-only")

    monkeypatch.setattr(module, "write_embedded", refuse)
    assert same(training_images(model, study), training_images(model, study))
    assert len(reads) == 2
    assert not (study / EMBEDDINGS_FILE).exists()


def test_damaged_file_is_written_again(study, model, reads):
    first = training_images(model, study)
    content = bytearray((study / EMBEDDINGS_FILE).read_bytes())
    (study / EMBEDDINGS_FILE).write_bytes(content[:-100])
    assert same(training_images(model, study), first)
    assert same(training_images(model, study), first)
    assert len(reads) == 2


def test_file_that_is_a_link_is_replaced_and_not_written_through(study, model, tmp_path):
    (tmp_path / "mine").write_text("precious")
    os.symlink(tmp_path / "mine", study / EMBEDDINGS_FILE)
    training_images(model, study)
    assert (tmp_path / "mine").read_text() == "precious"
    assert not (study / EMBEDDINGS_FILE).is_symlink()


def test_many_images_are_a_stratified_sample(model, task, monkeypatch):
    monkeypatch.setattr(module, "MOST_IMAGES", 12)
    found = embed_images(model, task.dataset.train)
    assert found.num_all == 36
    assert np.bincount(found.labels).tolist() == [4, 4, 4]
    whole = dict(zip(task.dataset.train.names, task.dataset.train.labels.tolist(), strict=True))
    assert [whole[name] for name in found.names] == found.labels.tolist()


def test_sample_has_no_more_images_than_allowed(model, task, monkeypatch):
    width = model.embed(task.dataset.train.names[0]).shape[1]
    monkeypatch.setattr(module, "MOST_BYTES", 2 * 2 * width + 1)
    assert len(embed_images(model, task.dataset.train)) == 2


def test_data_that_changed_is_refused(study, model, image_folder, tmp_path):
    other = tmp_path / "photos"
    shutil.copytree(image_folder, other)
    training_images(model, study, data=other)  # the same images elsewhere
    (study / EMBEDDINGS_FILE).unlink()
    next((other / "train" / "red").iterdir()).unlink()
    with pytest.raises(UserError, match=r"photos is not what .* was trained on: .*; restore it"):
        training_images(model, study, data=other)


def test_data_that_only_a_strangers_folder_names_is_not_read(study, model, reads, image_folder):
    change_settings(study, data="s3://stranger/data", label_map="/etc/passwd")
    with pytest.raises(
        UserError, match=r"not begun by you .* the data s3://stranger/data, label map /etc/passwd that its study\.json"
    ):
        training_images(model, study)
    assert reads == []


def test_data_of_a_stranger_is_read_if_the_user_names_it(study, model, image_folder, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "another user"))
    with pytest.raises(UserError, match="name it with --data"):
        training_images(model, study)
    assert len(training_images(model, study, data=image_folder)) == 36


def test_folder_without_a_study_is_refused(best, model, tmp_path):
    shutil.copytree(best, tmp_path / "alone")
    with pytest.raises(UserError, match=r"There is no study\.json in .*alone"):
        training_images(model, tmp_path / "alone")


def test_damaged_study_is_refused(study, model):
    (study / STUDY_FILE).write_text("{")
    with pytest.raises(UserError, match=r"study\.json is damaged"):
        training_images(model, study)


def test_model_of_other_classes_is_refused(study, model):
    other = Model(model.network, model.config | {"classes": ["a", "b", "c"]})
    with pytest.raises(UserError, match="is not what"):
        training_images(other, study)
