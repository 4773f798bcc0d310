"""The batch at once against one image at a time."""

import numpy as np
import pytest
import torch
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms import functional as reference

from delta_tune.data.augmentation import augment, center_crop, crop_boxes, resized_crops
from delta_tune.data.images import Preprocessing

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
KINDS = ["none", "flip", "crop_flip", "resized_crop_flip", "trivial"]


def preprocessing(image_size=13, stored_size=17):
    return Preprocessing(image_size=image_size, stored_size=stored_size, mean=MEAN, std=STD, interpolation="bilinear")


def batch(count=24, size=17):
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8))


def normalised(image):
    """One image (S, S, 3) the usual way."""
    return reference.normalize(image.permute(2, 0, 1).double() / 255, MEAN, STD).float()


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("image_size", "stored_size"), [(13, 17), (12, 17), (13, 16), (13, 15), (17, 17)])
def test_centre_is_torchvisions_centre_crop(image_size, stored_size):
    images = batch(size=stored_size)
    result = center_crop(images, preprocessing(image_size, stored_size))
    for image, given in zip(images, result, strict=True):
        expected = normalised(reference.center_crop(image.permute(2, 0, 1), image_size).permute(1, 2, 0))
        torch.testing.assert_close(given, expected, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_augment_returns_float32_channels_last(kind):
    result = augment(batch(), kind, preprocessing(), generator())
    assert (result.shape, result.dtype) == ((24, 3, 13, 13), torch.float32)
    assert result.is_contiguous(memory_format=torch.channels_last)


def test_centre_returns_float32_channels_last():
    result = center_crop(batch(), preprocessing())
    assert (result.shape, result.dtype) == ((24, 3, 13, 13), torch.float32)
    assert result.is_contiguous(memory_format=torch.channels_last)


def test_none_is_the_centre():
    assert torch.equal(augment(batch(), "none", preprocessing(), generator()), center_crop(batch(), preprocessing()))


def test_flip_mirrors_some_centres():
    plain = center_crop(batch(), preprocessing())
    result = augment(batch(), "flip", preprocessing(), generator())
    mirrored = [torch.equal(given, image.flip(2)) for given, image in zip(result, plain, strict=True)]
    same = [torch.equal(given, image) for given, image in zip(result, plain, strict=True)]
    assert all(a != b for a, b in zip(mirrored, same, strict=True))
    assert 0 < sum(mirrored) < 24


def crops_of(image, size):
    """Every crop of one image, plain and mirrored, by (top, left, mirrored)."""
    stored = image.shape[0]
    found = {}
    for top in range(stored - size + 1):
        for left in range(stored - size + 1):
            crop = image[top : top + size, left : left + size]
            found[top, left, False] = normalised(crop)
            found[top, left, True] = normalised(crop.flip(1))
    return found


def test_crop_flip_is_a_crop_of_each_image():
    result = augment(batch(), "crop_flip", preprocessing(), generator())
    places = set()
    for image, given in zip(batch(), result, strict=True):
        matches = [k for k, crop in crops_of(image, 13).items() if torch.allclose(crop, given, atol=1e-5)]
        assert len(matches) == 1
        places |= set(matches)
    assert len(places) > 12


def test_crop_flip_reaches_every_place_equally_often():
    stored, size, count = 6, 4, 18_000
    position = torch.arange(36, dtype=torch.uint8).view(1, stored, stored, 1).expand(count, -1, -1, 3)
    raw = Preprocessing(
        image_size=size, stored_size=stored, mean=(0,) * 3, std=(1 / 255,) * 3, interpolation="bilinear"
    )
    result = augment(position, "crop_flip", raw, generator()).round().long()
    first, last = result[:, 0, 0, 0], result[:, 0, 0, -1]
    counts = torch.bincount(torch.minimum(first, last) * 2 + (first > last), minlength=72)
    counts = counts[counts > 0]
    assert len(counts) == 3 * 3 * 2
    assert counts.min() > 850  # 1000 expected, standard deviation 31
    assert counts.max() < 1150


def test_crop_flip_of_unpadded_images_only_mirrors():
    images = batch(size=13)
    result = augment(images, "crop_flip", preprocessing(13, 13), generator())
    for image, given in zip(images, result, strict=True):
        assert any(torch.allclose(given, normalised(crop), atol=1e-5) for crop in (image, image.flip(1)))


def test_resized_crop_is_torchvisions_resized_crop():
    images = batch(16, 21)
    boxes = torch.tensor([[i % 5, i % 3, 9 + i % 4 * 4, 21 - i] for i in range(16)])
    boxes[:, 2] = torch.minimum(boxes[:, 2], 21 - boxes[:, 0])
    boxes[:, 3] = torch.minimum(boxes[:, 3], 21 - boxes[:, 1])
    flipped = torch.arange(16) % 2 == 0
    result = resized_crops(images, boxes, flipped, preprocessing(13, 21))
    for image, box, mirrored, given in zip(images, boxes.tolist(), flipped.tolist(), result, strict=True):
        expected = reference.resized_crop(image.permute(2, 0, 1).double(), *box, [13, 13], antialias=False)
        expected = reference.normalize(expected / 255, MEAN, STD).float()
        torch.testing.assert_close(given, expected.flip(2) if mirrored else expected, atol=1e-4, rtol=1e-4)


def test_resized_crop_boxes_follow_torchvisions_law():
    count, stored = 4000, 147
    boxes = crop_boxes(torch.rand(count, 22, generator=generator()), stored)
    torch.manual_seed(0)
    image = torch.empty(3, stored, stored)
    law = torch.tensor([RandomResizedCrop.get_params(image, [0.2, 1.0], [3 / 4, 4 / 3]) for _ in range(count)])
    assert boxes.min() >= 0
    assert (boxes[:, :2] + boxes[:, 2:]).max() <= stored
    for column in range(4):
        quantiles = torch.linspace(0.05, 0.95, 10)
        given, expected = (b[:, column].float().quantile(quantiles) for b in (boxes, law))
        assert (given - expected).abs().max() < 5  # pixels, of 147
    area = boxes[:, 2] * boxes[:, 3] / stored**2
    assert 0.19 < area.min() < 0.22
    assert area.max() > 0.95


def test_resized_crop_box_that_never_fits_is_the_whole_image():
    draws = torch.full((1, 22), 0.9999)  # the largest area at the most extreme ratio
    assert crop_boxes(draws, 147).tolist() == [[0, 0, 147, 147]]


@pytest.mark.parametrize("kind", KINDS)
def test_augment_repeats_with_the_seed(kind):
    first, second, other = (augment(batch(), kind, preprocessing(), generator(s)) for s in (1, 1, 2))
    assert torch.equal(first, second)
    assert torch.equal(first, other) == (kind == "none")


def test_augment_advances_the_generator_alike_for_every_kind():
    states = []
    for kind in KINDS:
        shared = generator()
        augment(batch(), kind, preprocessing(), shared)
        states.append(shared.get_state())
    assert all(torch.equal(states[0], state) for state in states[1:])


@pytest.mark.parametrize("kind", KINDS)
def test_augment_of_an_image_does_not_depend_on_those_after_it(kind):
    alone = augment(batch()[:5], kind, preprocessing(), generator())
    torch.testing.assert_close(augment(batch(), kind, preprocessing(), generator())[:5], alone)


def test_augment_leaves_the_images_alone():
    for kind in KINDS:
        images = batch()
        augment(images, kind, preprocessing(), generator())
        assert torch.equal(images, batch())


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
def test_augment_agrees_on_cpu_and_gpu(kind):
    on_cpu = augment(batch(), kind, preprocessing(), generator())
    on_gpu = augment(batch().cuda(), kind, preprocessing(), generator())
    differs = (on_gpu.cpu() - on_cpu).abs() > 1e-4
    assert differs.float().mean() <= (1e-3 if kind == "trivial" else 0), "but for roundings to whole numbers"
