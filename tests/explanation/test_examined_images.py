"""Images that are opened once."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from delta_tune.config import UserError
from delta_tune.data.images import Preprocessing, stored_square
from delta_tune.data.pictures import crop_stored_square
from delta_tune.explanation.examined_images import examine, seen_picture
from delta_tune.inference.model import load


@pytest.fixture(scope="module")
def model(best):
    return load(best)


@pytest.fixture
def photos(task, tmp_path):
    """Three images, the second of which cannot be read."""
    (tmp_path / "damaged.png").write_bytes(b"x")
    return [task.dataset.test.names[0], str(tmp_path / "damaged.png"), task.dataset.test.names[1]]


def test_predictions_are_those_of_the_model(model, photos):
    assert examine(model, photos, min_confidence=1.0).predictions == model.predict(photos, min_confidence=1.0)


def test_embeddings_are_those_of_the_model(model, photos):
    first, damaged, second = examine(model, photos, num_embedded=3).embeddings
    assert damaged is None
    np.testing.assert_array_equal([first, second], model.embed([photos[0], photos[2]]))


def test_squares_are_what_the_model_keeps(model, photos):
    first, damaged, second = examine(model, photos, num_shown=3).shown
    assert damaged is None
    np.testing.assert_array_equal([first.square, second.square], list(model.squares([photos[0], photos[2]])))


@pytest.mark.parametrize("count", [0, 1, 2])
def test_of_the_first_images_alone_more_is_kept(model, photos, count):
    found = examine(model, photos, num_embedded=count, num_shown=count)
    assert (len(found.predictions), len(found.embeddings), len(found.shown)) == (3, count, count)


def test_confidence_outside_its_range_is_refused_before_an_image_is_opened(model):
    with pytest.raises(UserError, match="min_confidence must be"):
        examine(model, ["missing.png"], min_confidence=2.0)


@pytest.mark.parametrize("resize", ["crop", "squash", "letterbox"])
def test_picture_is_what_the_network_sees(resize):
    sizes = Preprocessing(
        image_size=64, stored_size=72, mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bilinear", resize=resize
    )
    rng = np.random.default_rng(0)
    photo = Image.fromarray(rng.integers(0, 256, (9, 14, 3), dtype=np.uint8)).resize(
        (280, 180), Image.Resampling.BICUBIC
    )
    seen = crop_stored_square(stored_square(photo, sizes), sizes)
    shown = seen_picture(photo, sizes, 256).resize((64, 64), Image.Resampling.BOX)
    difference = np.abs(np.asarray(seen, dtype=float) - np.asarray(shown, dtype=float))
    assert difference.mean() < 6
    assert seen_picture(photo, sizes, 64).tobytes() == seen.tobytes()
