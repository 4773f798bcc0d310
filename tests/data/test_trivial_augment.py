"""The batch at once against torchvision's functions, one image at a time."""

import math

import pytest
import torch
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as reference

from delta_tune.data.trivial_augment import OPERATIONS, apply_operations, draw_operations, trivial_augment

BINS = 31
SIGNED = OPERATIONS[1:10]


def images(count=BINS, size=33, seed=0):
    """Smooth colours, noise and grey in turns, uint8 (count, size, size, 3)."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 5, 5, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=size, mode="bicubic").clamp(0, 1)
    smooth[1::3] = torch.rand(smooth[1::3].shape, generator=generator)
    smooth[2::3] = smooth[2::3, :1]
    return (255 * smooth).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def all_magnitudes(name, sign):
    """Draws of one operation with each of its magnitudes."""
    operation = torch.full((BINS,), (OPERATIONS.index(name) + 0.5) / len(OPERATIONS))
    return torch.stack([operation, (torch.arange(BINS) + 0.5) / BINS, torch.full((BINS,), 0.5 + sign / 4)], dim=1)


def by_torchvision(image, name, step, sign):
    """One image (3, S, S) changed as `v2.TrivialAugmentWide` does at a magnitude."""

    def ramp(largest):
        return sign * float(torch.linspace(0, largest, BINS)[step])

    factor, slope, pixels = 1 + ramp(0.99), math.degrees(math.atan(ramp(0.99))), int(ramp(32))
    straight = {"angle": 0.0, "translate": [0, 0], "scale": 1.0, "shear": [0.0, 0.0]}
    changes = {
        "identity": lambda: image,
        "shear_x": lambda: reference.affine(image, **straight | {"shear": [slope, 0.0], "center": [0, 0]}),
        "shear_y": lambda: reference.affine(image, **straight | {"shear": [0.0, slope], "center": [0, 0]}),
        "translate_x": lambda: reference.affine(image, **straight | {"translate": [pixels, 0]}),
        "translate_y": lambda: reference.affine(image, **straight | {"translate": [0, pixels]}),
        "rotate": lambda: reference.rotate(image, ramp(135)),
        "brightness": lambda: reference.adjust_brightness(image, factor),
        "color": lambda: reference.adjust_saturation(image, factor),
        "contrast": lambda: reference.adjust_contrast(image, factor),
        "sharpness": lambda: reference.adjust_sharpness(image, factor),
        "posterize": lambda: reference.posterize(image, round(8 - step / 5)),
        "solarize": lambda: reference.solarize(image, 255 * float(torch.linspace(1, 0, BINS)[step])),
        "autocontrast": lambda: reference.autocontrast(image),
        "equalize": lambda: reference.equalize(image),
    }
    return changes[name]()


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("name", OPERATIONS)
def test_operation_is_torchvisions_at_each_magnitude(name, sign):
    found = trivial_augment(images(), all_magnitudes(name, sign)).permute(0, 3, 1, 2)
    expected = torch.stack(
        [
            by_torchvision(image, name, step, sign if name in SIGNED else 1)
            for step, image in enumerate(images().permute(0, 3, 1, 2))
        ]
    )
    differs = (found.int() - expected.int()).abs()
    if name in OPERATIONS[1:6]:  # but for pixels half-way between two
        assert (differs > 0).float().mean() < 1e-3
    elif name in OPERATIONS[6:10]:  # but for roundings
        assert differs.max() <= 1
        assert (differs > 0).float().mean() < 1e-3
    else:
        assert not differs.any()


def test_operations_and_magnitudes_are_torchvisions():
    """Against its own table, where it still has one."""
    space = getattr(v2.TrivialAugmentWide, "_AUGMENTATION_SPACE", None)
    if space is None:
        pytest.skip("torchvision has no such table any more")
    assert [name.lower() for name in space] == [name.replace("_", "") for name in OPERATIONS]
    for ours, (magnitudes_of, signed) in zip(OPERATIONS, space.values(), strict=True):
        theirs = magnitudes_of(BINS, 33, 33)
        scale = 255 if ours == "solarize" else 1
        plus, minus = (draw_operations(all_magnitudes(ours, sign))[1] for sign in (1, -1))
        expected = torch.zeros(BINS) if theirs is None else scale * theirs
        torch.testing.assert_close(plus.float(), expected.float())
        torch.testing.assert_close(minus.float(), (-1 if signed else 1) * expected.float())


def test_operations_are_drawn_equally_often():
    operations, magnitudes = draw_operations(torch.rand(31 * 14 * 40, 3, generator=torch.Generator().manual_seed(0)))
    counts = torch.bincount(operations, minlength=len(OPERATIONS))
    assert counts.min() > 1100  # 1240 expected, standard deviation 34
    assert counts.max() < 1380
    rotations = magnitudes[operations == OPERATIONS.index("rotate")]
    values, often = rotations.round(decimals=3).unique(return_counts=True)
    assert len(values) == 2 * BINS - 1
    assert often.min() > 4  # 20 expected, standard deviation 4.5, and of 0 twice as many
    assert (rotations > 0).double().mean() == pytest.approx(30 / 62, abs=0.05)


def test_each_image_has_its_own_operation():
    operations = torch.tensor([7, 13, 2, 0, 9, 5, 11, 10, 12, 3, 8, 1, 6, 4])
    magnitudes = torch.tensor([0.5, 0, 0.3, 0, 0.9, 30.0, 99, 3, 0, 5, -0.5, -0.4, 0.2, -6]).double()
    together = apply_operations(images(14), operations, magnitudes)
    for i in range(14):
        alone = apply_operations(images(14)[i : i + 1], operations[i : i + 1], magnitudes[i : i + 1])
        assert torch.equal(together[i], alone[0])


def test_channel_of_one_value_is_left_by_autocontrast():
    flat = torch.full((1, 8, 8, 3), 7, dtype=torch.uint8)
    operation = torch.tensor([OPERATIONS.index("autocontrast")])
    assert torch.equal(apply_operations(flat, operation, torch.zeros(1).double()), flat)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("name", OPERATIONS)
def test_operation_on_one_channel_is_torchvisions(name, sign):
    grey = images()[..., :1].contiguous()
    found = trivial_augment(grey, all_magnitudes(name, sign)).permute(0, 3, 1, 2)
    expected = torch.stack(
        [
            by_torchvision(image, name, step, sign if name in SIGNED else 1)
            for step, image in enumerate(grey.permute(0, 3, 1, 2))
        ]
    )
    differs = (found.int() - expected.int()).abs()
    if name in OPERATIONS[1:6]:  # but for pixels half-way between two
        assert (differs > 0).float().mean() < 0.01
    else:
        assert differs.max() <= 1
        assert (differs > 0).float().mean() < 0.01


@pytest.mark.parametrize("name", [name for name in OPERATIONS if name != "contrast"])
def test_operation_on_six_channels_is_that_on_each(name):
    several = torch.cat([images(seed=seed) for seed in (0, 1)], dim=3)
    draws = all_magnitudes(name, 1)
    alone = [trivial_augment(several[..., [channel]].contiguous(), draws) for channel in range(6)]
    assert torch.equal(trivial_augment(several, draws), torch.cat(alone, dim=3))
