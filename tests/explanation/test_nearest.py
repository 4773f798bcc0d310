from __future__ import annotations

import io

import numpy as np
import pytest
from helpers.studies import change_settings
from PIL import Image
from pyarrow import fs

from delta_tune.config import UserError
from delta_tune.explanation import nearest, similarity, training_images
from delta_tune.explanation.embedding_file import EmbeddedImages
from delta_tune.explanation.nearest import nearest_images
from delta_tune.filesystem.uris import to_pyarrow_uri
from delta_tune.inference.model import load
from delta_tune.results.layout import EMBEDDINGS_FILE

NONE = np.empty(0, dtype=np.float32)


def cosine(one, other):
    one, other = (np.asarray(each, dtype=np.float64) for each in (one, other))
    return float(sum(one * other) / (sum(one * one) ** 0.5 * sum(other * other) ** 0.5))


def test_nearest_are_those_of_a_loop_over_all_training_images(study, model, task):
    train, test = task.dataset.train, task.dataset.test.names[:4]
    vectors, classes = dict(zip(train.names, model.embed(train.names), strict=True)), task.dataset.classes
    labels = {name: classes[label] for name, label in zip(train.names, train.labels, strict=True)}
    found = nearest_images(model, study, test, count=3)
    assert found.note == ""
    for image, rows in zip(model.embed(test), found.of_each, strict=True):
        alike = {name: cosine(image, vector) for name, vector in vectors.items()}
        assert [row.similarity for row in rows] == pytest.approx(sorted(alike.values())[:-4:-1], abs=5e-4)
        assert [row.similarity for row in rows] == pytest.approx([alike[row.name] for row in rows], abs=5e-4)
        assert [row.label for row in rows] == [labels[row.name] for row in rows]


def test_order_is_that_of_a_loop_where_images_differ():
    random = np.random.default_rng(0)
    vectors, images = random.normal(size=(50, 8)), random.normal(size=(3, 8))
    known = EmbeddedImages(
        embeddings=(vectors / np.linalg.norm(vectors, axis=1)[:, None]).astype(np.float16),
        labels=np.zeros(50, dtype=np.int64),
        names=tuple(map(str, range(50))),
        thumbnails=(b"",) * 50,
        num_all=50,
        usual=NONE,
    )
    for image, rows in zip(images, nearest.nearest(known, images, 5, ("x",)), strict=True):
        order = sorted(range(50), key=lambda n: -cosine(image, vectors[n]))
        assert [row.name for row in rows] == [str(n) for n in order[:5]]


def test_training_image_is_its_own_nearest_with_a_thumbnail_of_it(study, model, task):
    name = task.dataset.train.names[5]
    ((row, *_),) = nearest_images(model, study, name).of_each
    assert row.name == name
    assert row.similarity == pytest.approx(1, abs=1e-3)
    small, whole = np.asarray(Image.open(io.BytesIO(row.thumbnail))), np.asarray(Image.open(name))
    assert row.thumbnail.startswith(b"\xff\xd8\xff")
    np.testing.assert_allclose(small.mean((0, 1)), whole.mean((0, 1)), atol=4)


def test_equal_similarities_keep_the_order_of_the_training_images():
    units = np.array([[0, 1], [1, 0], [1, 0], [0.6, 0.8]], dtype=np.float16)
    known = EmbeddedImages(
        embeddings=units,
        labels=np.array([0, 1, 0, 1]),
        names=("a", "b", "c", "d"),
        thumbnails=(b"",) * 4,
        num_all=4,
        usual=NONE,
    )
    (rows,) = nearest.nearest(known, np.array([[5.0, 0.0]]), 9, ("x", "y"))
    assert [(row.name, row.label) for row in rows] == [("b", "y"), ("c", "x"), ("d", "y"), ("a", "x")]


def test_image_without_any_feature_is_alike_to_nothing():
    known = EmbeddedImages(
        embeddings=np.eye(2, dtype=np.float16),
        labels=np.array([0, 0]),
        names=("a", "b"),
        thumbnails=(b"",) * 2,
        num_all=2,
        usual=NONE,
    )
    np.testing.assert_array_equal(similarity.similarities(known.embeddings, np.zeros((1, 2))), [[0, 0]])


def test_label_of_an_image_with_several_has_all_of_them():
    known = EmbeddedImages(
        embeddings=np.eye(2, dtype=np.float16),
        labels=np.array([[1, 0, 1], [0, 0, 0]], dtype=np.float32),
        names=("a", "b"),
        thumbnails=(b"",) * 2,
        num_all=2,
        usual=NONE,
    )
    (rows,) = nearest.nearest(known, np.array([[1.0, 0.0]]), 2, ("cat", "dog", "sky"))
    assert [row.label for row in rows] == ["cat, sky", ""]


def test_blocks_of_training_images_are_all_looked_at(study, model, task, monkeypatch):
    whole = nearest_images(model, study, task.dataset.test.names[:2])
    monkeypatch.setattr(similarity, "ROWS", 16)
    assert nearest_images(model, study, task.dataset.test.names[:2]) == whole


def test_image_that_cannot_be_read_has_no_neighbours(study, model, task):
    good = task.dataset.test.names[0]
    found = nearest_images(model, study, [good, b"no image", good])
    assert found.of_each[0] == found.of_each[2]
    assert found.of_each[1] == ()
    assert [each is None for each in found.typicality] == [False, True, False]


def test_single_image_that_cannot_be_read_is_refused(study, model):
    with pytest.raises(UserError, match="cannot be read as an image"):
        nearest_images(model, study, b"no image")


def test_data_that_has_gone_gives_a_sentence(study, model, task, tmp_path):
    change_settings(study, data=str(tmp_path / "gone"))
    found = nearest_images(model, study, task.dataset.test.names[:2], data=tmp_path / "gone")
    assert (found.of_each, found.typicality) == (((), ()), (None, None))
    assert "gone" in found.note
    assert found.note.startswith("The nearest training images are left out: ")


def test_sample_is_told(study, model, task, monkeypatch):
    monkeypatch.setattr(training_images, "MOST_IMAGES", 9)
    found = nearest_images(model, study, task.dataset.test.names[0], count=50)
    assert found.note == "Nearest among 9 of the 36 training images, drawn class by class."
    assert sorted(row.label for row in found.of_each[0]) == ["blue"] * 3 + ["green"] * 3 + ["red"] * 3


def test_study_at_an_address_works_and_nothing_is_written_there(study, model, task, bucket):
    fs.copy_files(str(study), to_pyarrow_uri(f"s3://{bucket}/study"))
    address = f"s3://{bucket}/study"
    image = task.dataset.test.names[0]
    here = nearest_images(model, study, image)
    assert nearest_images(load(address), address, image) == here
    assert nearest_images(load(address), f"{address}/best", image) == here
    remote, root = fs.FileSystem.from_uri(to_pyarrow_uri(address))
    assert not remote.get_file_info(f"{root}/{EMBEDDINGS_FILE}").is_file


def test_typicality_is_the_share_of_training_images_that_stand_more_alone(study, model, task):
    vectors = model.embed(task.dataset.train.names)
    usual = [max(cosine(one, other) for m, other in enumerate(vectors) if m != n) for n, one in enumerate(vectors)]
    found = nearest_images(model, study, task.dataset.test.names[:5])
    for rows, share in zip(found.of_each, found.typicality, strict=True):
        few, many = (np.mean([each <= rows[0].similarity + slack for each in usual]) for slack in (-5e-4, 5e-4))
        assert few <= share <= many


def test_usual_similarities_are_of_images_to_others_in_order():
    units = np.array([[1, 0], [0, 1], [0.6, 0.8], [0, -1]], dtype=np.float16)
    np.testing.assert_allclose(similarity.usual_similarities(units), [0, 0.6, 0.8, 0.8], atol=1e-3)


def test_usual_similarities_of_many_are_of_a_part_of_them_to_all(monkeypatch):
    units = similarity.unit_vectors(np.random.default_rng(0).normal(size=(40, 6))).astype(np.float16)
    whole = similarity.usual_similarities(units)
    monkeypatch.setattr(similarity, "MOST_COMPARED", 9)
    part = similarity.usual_similarities(units)
    assert len(part) == 9
    assert set(part) <= set(whole)


def test_single_training_image_tells_nothing_of_what_is_usual():
    usual = similarity.usual_similarities(np.ones((1, 2), dtype=np.float16))
    assert similarity.typicality(usual, 0.5) is None


@pytest.mark.parametrize(("nearest_one", "share"), [(0.1, 0), (0.2, 0.25), (0.5, 0.75), (0.9, 1)])
def test_typicality_counts_equal_ones_too(nearest_one, share):
    assert similarity.typicality(np.array([0.2, 0.5, 0.5, 0.8]), nearest_one) == share
