"""The squares of a split: the same pixels however they are kept and however many threads decode them."""

import io
import pickle
import threading

import numpy as np
import pytest
from PIL import Image

from delta_tune.data.images import Preprocessing, open_image, to_png, to_square
from delta_tune.data.stored_images import DecodedImages, EncodedImages, PooledImages, pack_files, set_decoding_threads


def encode(image, format):
    file = io.BytesIO()
    image.save(file, format)
    return file.getvalue()


def noise(width, height, seed):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def preprocessing(size):
    return Preprocessing(image_size=size, stored_size=size, mean=(0.5,) * 3, std=(0.2,) * 3, interpolation="bicubic")


@pytest.fixture
def both():
    """The same images decoded and encoded."""
    files = [encode(Image.fromarray(noise(40 + i, 30, seed=i)), "JPEG" if i % 2 else "PNG") for i in range(7)]
    pixels = np.stack([to_square(open_image(file), 16, "bicubic") for file in files])
    return DecodedImages(pixels), EncodedImages(pack_files(files), preprocessing(16))


def test_encoded_images_give_the_pixels_of_decoded_ones(both):
    indices = np.array([5, 0, 0, 6, 3])
    decoded, encoded = (images.batch(indices) for images in both)
    assert np.array_equal(decoded, encoded)
    assert decoded.shape == (5, 16, 16, 3)
    assert [len(images) for images in both] == [7, 7]


def test_batch_of_no_images_is_empty(both):
    for images in both:
        assert images.batch(np.array([], dtype=np.int64)).shape == (0, 16, 16, 3)


def test_batch_is_the_callers_own(both):
    decoded, encoded = both
    decoded.pixels.flags.writeable = False
    for images in (decoded, encoded):
        batch = images.batch(np.array([1, 2]))
        batch[:] = 0
        assert images.batch(np.array([1, 2])).any()


def test_images_pickle_their_content_out_of_band(both):
    for images in both:
        buffers = []
        stream = pickle.dumps(images, protocol=5, buffer_callback=buffers.append)
        assert len(stream) < 1000
        copy = pickle.loads(stream, buffers=[buffer.raw().toreadonly() for buffer in buffers])
        assert np.array_equal(copy.batch(np.arange(7)), images.batch(np.arange(7)))


@pytest.mark.parametrize("threads", [1, 3])
def test_encoded_images_are_decoded_by_as_many_threads_as_are_set_with_the_same_pixels(monkeypatch, threads):
    rng = np.random.default_rng(0)
    squares = [rng.integers(0, 256, (8, 8, 3), dtype=np.uint8) for _ in range(7)]
    split = EncodedImages(pack_files([to_png(square) for square in squares]), preprocessing(8))
    at_once, meeting = set(), threading.Barrier(threads)

    def decode(*args, real=to_square):
        if len(at_once) < threads:
            at_once.add(threading.get_ident())
            meeting.wait(60)
        return real(*args)

    monkeypatch.setattr("delta_tune.data.stored_images._threads", None)
    set_decoding_threads(threads)
    monkeypatch.setattr("delta_tune.data.images.to_square", decode)
    found = split.batch(np.array([6, 0, 3, 3, 1, 2, 4]))
    assert np.array_equal(found, np.stack([squares[i] for i in (6, 0, 3, 3, 1, 2, 4)]))
    assert len(at_once) == threads


def test_images_that_are_taken_are_the_same_and_travel_without_the_others(both):
    pooled = PooledImages(both, np.array([[0, 6], [1, 2], [0, 1], [1, 0], [0, 0]]))
    for images in (*both, pooled):
        part = images.taken(np.array([3, 0, 2]))
        assert np.array_equal(part.batch(np.arange(3)), images.batch(np.array([3, 0, 2])))
        assert sum(len(each) for each in getattr(part, "sets", [part])) == 3
        assert len(pickle.dumps(part)) < len(pickle.dumps(images))
