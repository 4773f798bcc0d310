"""The graph's pixels are those that Pillow makes, by its own arithmetic, for images of all shapes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from delta_tune.data.augmentation import center_crop
from delta_tune.data.images import Preprocessing, stored_square
from delta_tune.export import preparation
from delta_tune.export.preparation import Preparation
from delta_tune.export.resampling import blocks_of

SHAPES = [
    *[(48, 64), (64, 48), (300, 401), (401, 300), (640, 480), (997, 1009), (1280, 720), (600, 150)],
    *[(1, 1), (2, 3), (1, 700), (700, 1), (7, 3000), (3000, 7), (1, 20_000), (20_000, 1), (9, 9), (1, 2)],
]
SIZES = [(64, 73), (50, 50), (224, 256), (33, 48)]


def settings(resize="crop", interpolation="bilinear", size=64, stored=73, channels=3):
    mean, std = np.linspace(0.3, 0.6, channels), np.linspace(0.2, 0.3, channels)
    return Preprocessing(
        image_size=size,
        stored_size=stored,
        mean=tuple(mean.tolist()),
        std=tuple(std.tolist()),
        interpolation=interpolation,
        resize=resize,
        channels=channels,
    )


def drawn(shape, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (*shape, channels), dtype=np.uint8)


def reference(pixels, preprocessing):
    """What `predict` gives to the network: by Pillow."""
    image = Image.fromarray(pixels) if pixels.shape[2] == 3 else pixels
    return center_crop(torch.from_numpy(stored_square(image, preprocessing)[None]), preprocessing)


def levels(found, expected, preprocessing):
    """Differences in levels of 255."""
    return ((found - expected).abs() * 255 * torch.tensor(preprocessing.std)[:, None, None]).numpy()


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("resize", ["crop", "squash", "letterbox"])
@pytest.mark.parametrize(("size", "stored"), SIZES)
def test_pixels_are_pillows(resize, interpolation, size, stored):
    preprocessing = settings(resize, interpolation, size, stored)
    prepare = Preparation(preprocessing)
    for shape in [*SHAPES, (stored, stored), (size, size), (stored, size), (size + 1, stored)]:
        pixels = drawn(shape)
        apart = levels(prepare(torch.from_numpy(pixels)[None]), reference(pixels, preprocessing), preprocessing)
        assert apart.max() < 1.01, shape
        assert (apart > 0.5).mean() < 1e-4, shape


@pytest.mark.parametrize("channels", [1, 5])
@pytest.mark.parametrize("resize", ["crop", "squash", "letterbox"])
def test_other_channels_are_resized_alike(resize, channels):
    preprocessing = settings(resize, "bicubic", channels=channels)
    for shape in [(120, 90), (90, 200), (30, 40), (73, 73)]:
        pixels = drawn(shape, channels)
        found = Preparation(preprocessing)(torch.from_numpy(pixels)[None])
        apart = levels(found, reference(pixels, preprocessing), preprocessing)
        assert apart.max() < 1.01
        assert (apart > 0.5).mean() < 1e-3


@pytest.mark.parametrize("resize", ["crop", "squash", "letterbox"])
def test_ramps_and_edges_are_pillows_where_sums_end_in_a_half(resize):
    preprocessing = settings(resize, size=64, stored=64)
    ramp = np.add.outer(np.arange(80), np.arange(128)) % 256
    pixels = np.stack([ramp, 255 - ramp, (ramp // 8 % 2) * 255], axis=2).astype(np.uint8)
    for image in (pixels, np.ascontiguousarray(pixels.transpose(1, 0, 2)), pixels[:, :80]):
        found = Preparation(preprocessing)(torch.from_numpy(image)[None])
        np.testing.assert_allclose(levels(found, reference(image, preprocessing), preprocessing), 0, atol=1e-3)


def test_images_of_a_batch_are_those_alone():
    preprocessing = settings()
    prepare = Preparation(preprocessing)
    for shape in [(100, 70), (70, 100), (200, 60)]:
        batch = torch.from_numpy(np.stack([drawn(shape, seed=seed) for seed in range(3)]))
        alone = torch.cat([prepare(image[None]) for image in batch])
        torch.testing.assert_close(prepare(batch), alone, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("resize", "side"), [("crop", 73), ("squash", 64), ("letterbox", 64)])
def test_what_is_fitted_already_passes_unchanged(resize, side):
    preprocessing = settings(resize)
    pixels = torch.from_numpy(drawn((side, side)))[None]
    start = round((side - 64) / 2)
    middle = pixels[:, start : start + 64, start : start + 64].permute(0, 3, 1, 2) / 255
    mean, std = (torch.tensor(each)[:, None, None] for each in (preprocessing.mean, preprocessing.std))
    torch.testing.assert_close(Preparation(preprocessing)(pixels), (middle - mean) / std)


def test_letterbox_has_the_mean_colour_beside_the_image():
    preprocessing = settings("letterbox")
    found = Preparation(preprocessing)(torch.zeros(1, 32, 64, 3, dtype=torch.uint8))
    assert (levels(found, torch.zeros(3, 1, 1), preprocessing)[0, :, [0, 15, 48, 63]] < 0.51).all()  # rounded colours
    assert (found[0, :, 16:48] < -1).all()


@pytest.mark.parametrize("interpolation", [Image.Resampling.BILINEAR, Image.Resampling.BICUBIC])
def test_height_comes_first_only_with_pillow_13(interpolation, monkeypatch):
    preprocessing = settings("squash", interpolation.name.lower(), 64, 64)
    pixels = drawn((500, 70))
    image = Image.fromarray(pixels)
    sides = {True: (70, 64), False: (64, 500)}  # after the first of two passes
    for height_first, between in sides.items():
        monkeypatch.setattr(preparation, "ROWS_MAY_BE_FIRST", height_first)
        two_steps = np.array(image.resize(between, interpolation).resize((64, 64), interpolation))
        expected = center_crop(torch.from_numpy(two_steps[None]), preprocessing)
        found = Preparation(preprocessing)(torch.from_numpy(pixels)[None])
        assert (levels(found, expected, preprocessing) > 0.5).mean() < 1e-4


@pytest.mark.parametrize("size", [1, 31, 32, 33, 64, 97, 224, 299, 518])
def test_blocks_cover_all_outputs(size):
    count, outputs = blocks_of(size)
    assert (count - 1) * outputs < size <= count * outputs


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.parametrize("resize", ["crop", "squash", "letterbox"])
def test_torchscript_gives_the_same_pixels(resize):
    prepare = Preparation(settings(resize, "bicubic"))
    scripted = torch.jit.script(prepare)
    for shape in [(30, 40), (200, 60), (60, 200), (1, 9)]:
        images = torch.from_numpy(drawn(shape))[None].expand(2, -1, -1, -1)
        torch.testing.assert_close(scripted(images), prepare(images), rtol=0, atol=1e-6)
