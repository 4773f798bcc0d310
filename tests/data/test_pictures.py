from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from delta_tune.data import pictures
from delta_tune.data.augmentation import center_crop
from delta_tune.data.images import Preprocessing


def test_thumbnail_is_what_the_network_sees():
    preprocessing = Preprocessing(
        image_size=32, stored_size=40, mean=(0, 0, 0), std=(1, 1, 1), interpolation="bilinear"
    )
    pixels = np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8)
    seen = (center_crop(torch.from_numpy(pixels)[None], preprocessing)[0].permute(1, 2, 0) * 255).round().byte().numpy()
    np.testing.assert_array_equal(np.asarray(pictures.crop_stored_square(pixels, preprocessing)), seen)
    small = Image.open(io.BytesIO(pictures.thumbnail(pixels, preprocessing, 48)))
    assert (small.format, small.size) == ("JPEG", (48, 48))


@pytest.mark.parametrize(("channels", "shown"), [(1, [0]), (2, [0]), (4, [0, 1, 2]), (7, [0, 1, 2])])
def test_thumbnail_of_other_channels_shows_three_or_one(channels, shown):
    preprocessing = Preprocessing(
        image_size=8,
        stored_size=8,
        mean=(0,) * channels,
        std=(1,) * channels,
        interpolation="bilinear",
        channels=channels,
    )
    pixels = np.random.default_rng(0).integers(0, 255, (8, 8, channels), dtype=np.uint8)
    found = pictures.crop_stored_square(pixels, preprocessing)
    np.testing.assert_array_equal(np.asarray(found).reshape(8, 8, -1), pixels[:, :, shown])
    assert Image.open(io.BytesIO(pictures.thumbnail(pixels, preprocessing))).format == "JPEG"
