from __future__ import annotations

import numpy as np
import pytest
import safetensors.numpy

from delta_tune.explanation.embedding_file import EmbeddedImages, read_embedded, write_embedded

KEY = "k" * 64
JPEG = b"\xff\xd8\xff"


def images(labels=None):
    return EmbeddedImages(
        embeddings=np.random.default_rng(0).normal(size=(3, 4)).astype(np.float16),
        labels=np.array([0, 2, 1]) if labels is None else labels,
        names=("a.jpg", "", "ü\n.jpg"),
        thumbnails=(JPEG, JPEG + b"x" * 9, JPEG + b"\0"),
        num_all=5,
        usual=np.array([-0.5, 0.25], dtype=np.float32),
    )


def one_image(name):
    return EmbeddedImages(
        embeddings=np.ones((1, 2), np.float16),
        labels=np.zeros(1, int),
        names=(name,),
        thumbnails=(JPEG,),
        num_all=1,
        usual=np.empty(0, np.float32),
    )


@pytest.fixture
def file(tmp_path):
    write_embedded(images(), KEY, tmp_path / "embeddings.safetensors")
    return tmp_path / "embeddings.safetensors"


@pytest.mark.parametrize("labels", [np.array([0, 2, 1]), np.array([[0, 1, 0], [1, 1, 0], [0, 0, 0]], dtype=np.float32)])
def test_images_are_read_as_they_were_written(tmp_path, labels):
    write_embedded(images(labels), KEY, tmp_path / "f")
    found = read_embedded(tmp_path / "f", KEY, 4, 3)
    np.testing.assert_array_equal(found.embeddings, images().embeddings)
    np.testing.assert_array_equal(found.labels, labels)
    assert (found.embeddings.dtype, found.labels.dtype) == (np.float16, labels.dtype)
    np.testing.assert_array_equal(found.usual, images().usual)
    assert (found.names, found.thumbnails, found.num_all) == (images().names, images().thumbnails, 5)


def test_name_that_is_not_utf8_is_kept_as_text(tmp_path):
    strange = one_image("\udcff")
    write_embedded(strange, KEY, tmp_path / "f")
    (name,) = read_embedded(tmp_path / "f", KEY, 2, 1).names
    assert name.encode()


def test_file_of_another_key_is_no_answer(file):
    assert read_embedded(file, "other", 4, 3) is None


def test_no_file_is_no_answer(tmp_path):
    assert read_embedded(tmp_path / "none", KEY, 4, 3) is None


def change(tensors, **other):
    return {**tensors, **{name: np.asarray(value) for name, value in other.items()}}


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda t: change(t, embeddings=t["embeddings"].astype(np.float32)), "embeddings: .* another type"),
        (lambda t: change(t, embeddings=t["embeddings"][:, :3].copy()), "embeddings: its shape"),
        (lambda t: change(t, embeddings=t["embeddings"][:0]), "is missing|shape|num_all"),
        (lambda t: change(t, embeddings=np.full((3, 4), np.inf, np.float16)), "not finite"),
        (lambda t: change(t, labels=[0, 1, 3]), "no label of the model"),
        (lambda t: change(t, labels=[0, 1, -1]), "no label of the model"),
        (lambda t: change(t, labels=[0, 1]), "labels: its shape"),
        (lambda t: change(t, labels=[0.0, 1.0, 2.0]), "labels: .* another type"),
        (lambda t: change(t, labels=np.full((3, 3), 0.5, np.float32)), "no label of the model"),
        (lambda t: change(t, labels=np.zeros((3, 2), np.float32)), "labels: its shape"),
        (lambda t: change(t, labels=np.array(1)), "labels"),
        (lambda t: change(t, num_all=[2]), "num_all: 2 for 3 images"),
        (lambda t: change(t, usual=np.array([0.5, 0.25], np.float32)), "usual"),
        (lambda t: change(t, usual=np.array([0.5, np.nan], np.float32)), "usual"),
        (lambda t: change(t, usual=np.array([0.5, 2], np.float32)), "usual"),
        (lambda t: change(t, usual=np.zeros(4, np.float32)), "usual"),
        (lambda t: change(t, names_end=[5, 4, 12]), "names_end"),
        (lambda t: change(t, names_end=[5, 5, 99]), "names_end"),
        (lambda t: change(t, names_end=[-5, 5, len(t["names"])]), "names_end"),
        (lambda t: change(t, names=np.full(len(t["names"]), 255, np.uint8)), "utf-8"),
        (lambda t: change(t, thumbnails=np.zeros_like(t["thumbnails"])), "neither a JPEG nor a PNG"),
        (lambda t: {name: value for name, value in t.items() if name != "labels"}, "labels: it is missing"),
    ],
)
def test_file_that_was_changed_is_refused(file, damage, said):
    tensors = safetensors.numpy.load(file.read_bytes())
    file.write_bytes(safetensors.numpy.save(damage(tensors)))
    with pytest.raises(ValueError, match=said):
        read_embedded(file, KEY, 4, 3)


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff" * 100, b"\x08\0\0\0\0\0\0\0[[[[[[[["])
def test_file_that_is_no_safetensors_file_is_refused(file, content):
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r".+"):
        read_embedded(file, KEY, 4, 3)


def test_numbers_of_a_type_that_numpy_lacks_are_refused(file):
    header = b'{"key":{"dtype":"BF16","shape":[1],"data_offsets":[0,2]}}'
    file.write_bytes(len(header).to_bytes(8, "little") + header + b"\0\0")
    with pytest.raises(ValueError, match="BF16"):
        read_embedded(file, KEY, 4, 3)


def test_name_longer_than_any_path_is_refused(tmp_path):
    long = one_image("x" * 5000)
    write_embedded(long, KEY, tmp_path / "f")
    with pytest.raises(ValueError, match="names_end"):
        read_embedded(tmp_path / "f", KEY, 2, 1)
