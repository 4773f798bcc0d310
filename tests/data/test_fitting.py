"""Whole images in a square, against Pillow's ImageOps; what is kept encoded and decoded again stays the same."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from delta_tune.data.augmentation import augment, center_crop
from delta_tune.data.fitting import shrink_into_square, to_square
from delta_tune.data.images import Preprocessing, fit, open_image, stored_square, to_png
from delta_tune.data.stored_images import EncodedImages, pack_files

CROP = Preprocessing(image_size=32, stored_size=37, mean=(0.1, 0.5, 0.9), std=(0.2, 0.3, 0.4), interpolation="bicubic")
SQUASH, LETTERBOX = (dataclasses.replace(CROP, resize=resize) for resize in ("squash", "letterbox"))
SHAPES = [(60, 20), (20, 61), (33, 33), (37, 37), (32, 32), (5, 4), (90, 13)]


def photo(width, height, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def seen(square, size=32):
    """What evaluation crops of a stored square."""
    start = round((len(square) - size) / 2)
    return square[start : start + size, start : start + size]


@pytest.mark.parametrize("shape", SHAPES)
def test_letterbox_is_pillows_pad_with_the_mean_colour(shape):
    expected = ImageOps.pad(photo(*shape), (32, 32), Image.Resampling.BICUBIC, color=(26, 128, 230))
    assert np.array_equal(seen(stored_square(photo(*shape), LETTERBOX)), np.asarray(expected))


@pytest.mark.parametrize("shape", SHAPES)
def test_squash_is_pillows_resize_of_both_sides(shape):
    expected = photo(*shape).resize((32, 32), Image.Resampling.BICUBIC)
    assert np.array_equal(seen(stored_square(photo(*shape), SQUASH)), np.asarray(expected))


@pytest.mark.parametrize("shape", SHAPES)
def test_crop_is_what_it_was(shape):
    assert np.array_equal(stored_square(photo(*shape), CROP), to_square(photo(*shape), 37, "bicubic"))


def test_a_strip_keeps_a_pixel():
    assert shrink_into_square(photo(3000, 1), 32, "bilinear").shape == (1, 32, 3)
    assert shrink_into_square(photo(1, 3000), 32, "bilinear").shape == (32, 1, 3)


@pytest.mark.parametrize("preprocessing", [SQUASH, LETTERBOX])
def test_around_a_whole_image_is_the_mean_colour(preprocessing):
    square = stored_square(photo(60, 20), preprocessing)
    assert square.shape == (37, 37, 3)
    border = np.ones((37, 37), dtype=bool)
    border[2:34, 2:34] = False
    assert (square[border] == [26, 128, 230]).all()
    assert center_crop(torch.from_numpy(square[None]), preprocessing)[0, :, :5].abs().max() < (
        0.01 if preprocessing is LETTERBOX else 10
    )


@pytest.mark.parametrize("preprocessing", [CROP, SQUASH, LETTERBOX])
@pytest.mark.parametrize("shape", SHAPES)
def test_pixels_that_are_fitted_again_stay_the_same(preprocessing, shape):
    fitted = fit(photo(*shape), preprocessing)
    assert np.array_equal(fit(open_image(to_png(fitted)), preprocessing), fitted)


@pytest.mark.parametrize("preprocessing", [SQUASH, LETTERBOX])
def test_encoded_images_are_squares_as_decoded_ones(preprocessing):
    files = [to_png(np.asarray(photo(*shape))) for shape in SHAPES]
    batch = EncodedImages(pack_files(files), preprocessing).batch(np.arange(len(SHAPES)))
    assert np.array_equal(batch, np.stack([stored_square(photo(*shape), preprocessing) for shape in SHAPES]))


@pytest.mark.parametrize("array", [False, True])
@pytest.mark.parametrize("preprocessing", [CROP, SQUASH, LETTERBOX])
def test_an_array_is_fitted_as_an_image(preprocessing, array):
    picture = np.asarray(photo(50, 24)) if array else photo(50, 24)
    assert np.array_equal(fit(picture, preprocessing), fit(photo(50, 24), preprocessing))


def test_resized_crops_of_a_letterboxed_strip_always_show_some_of_it():
    strip = stored_square(Image.new("RGB", (400, 8), "red"), LETTERBOX)
    batch = torch.from_numpy(np.stack([strip] * 2000))
    found = augment(batch, "resized_crop_flip", LETTERBOX, torch.Generator().manual_seed(0))
    assert (found[:, 0].amax((1, 2)) > 0.2).all()
    assert found.shape == (2000, 3, 32, 32)


def test_resized_crops_of_a_squashed_image_have_none_of_the_border():
    square = stored_square(Image.new("RGB", (40, 20), "red"), SQUASH)
    found = augment(torch.from_numpy(square[None].repeat(200, 0)), "resized_crop_flip", SQUASH, torch.Generator())
    assert torch.allclose(found[:, 0], torch.tensor((1 - 0.1) / 0.2))


def test_random_crops_of_a_whole_image_move_it_by_the_borders_width():
    square = stored_square(Image.new("RGB", (32, 32), "red"), SQUASH)
    found = augment(torch.from_numpy(square[None].repeat(400, 0)), "crop_flip", SQUASH, torch.Generator())
    whole = (found[:, 0] > 1).sum((1, 2)).tolist()
    assert (min(whole), max(whole)) == (29 * 29, 32 * 32)
