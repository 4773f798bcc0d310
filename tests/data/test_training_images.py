from __future__ import annotations

import pytest
import torch
from PIL import Image
from torchvision.transforms import functional as reference

from delta_tune.config import ImageSettings
from delta_tune.data.augmentation import augment, center_crop
from delta_tune.data.images import Preprocessing
from delta_tune.data.training_images import training_images, training_side

PREPROCESSING = Preprocessing(
    image_size=97, stored_size=101, mean=(0.0,) * 3, std=(1 / 255,) * 3, interpolation="bilinear"
)


def pixels():
    smooth = torch.rand(6, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    large = torch.nn.functional.interpolate(255 * smooth, size=101, mode="bilinear")
    return large.to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def images_of(**settings):
    generator = torch.Generator().manual_seed(0)
    return training_images(pixels(), ImageSettings(**{"augmentation": "none", **settings}), PREPROCESSING, generator)


@pytest.mark.parametrize(
    ("size", "relative_size", "side"),
    [
        *((97, 1.0, 97), (97, 0.7, 65), (97, 0.5, 33), (97, 0.01, 33), (224, 0.7, 160), (224, 0.72, 160)),
        *((224, 0.05, 32), (129, 0.75, 97), (64, 0.5, 32), (63, 0.1, 63), (16, 0.5, 16), (32, 0.5, 32)),
    ],
)
def test_training_side_is_the_nearest_with_the_same_remainder(size, relative_size, side):
    assert training_side(size, relative_size) == side


def test_images_are_those_of_the_augmentation_where_nothing_else_is_on():
    expected = augment(pixels(), "crop_flip", PREPROCESSING, torch.Generator().manual_seed(0))
    assert torch.equal(images_of(augmentation="crop_flip"), expected)


def test_small_images_are_pillows_bilinear_ones():
    found = images_of(relative_size=0.7)
    assert found.is_contiguous(memory_format=torch.channels_last)
    for image, whole in zip(found, center_crop(pixels(), PREPROCESSING), strict=True):
        pillow = Image.fromarray(whole.round().to(torch.uint8).permute(1, 2, 0).numpy())
        expected = reference.pil_to_tensor(pillow.resize((65, 65), Image.Resampling.BILINEAR))
        assert (image - expected).abs().max() < 1


def test_rectangles_are_erased_of_normalised_images():
    erased = images_of(random_erasing=1.0) != center_crop(pixels(), PREPROCESSING)
    assert erased.any(dim=(1, 2, 3)).all()
    assert not images_of(random_erasing=1.0)[erased].any()
