"""Heat maps over pictures."""

import numpy as np
import pytest
from PIL import Image

from delta_tune.report.heat_map_drawing import WEAKEST, draw_heat_map, palette


def lightness(colours):
    """CIE L* of sRGB colours (N, 3) from 0 to 255, by its definition."""
    share = np.asarray(colours) / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    luminance = linear @ [0.2126, 0.7152, 0.0722]
    return np.where(luminance > 216 / 24389, 116 * np.cbrt(luminance) - 16, luminance * 24389 / 27)


def test_palette_grows_lighter_in_equal_steps():
    found = lightness(palette())
    steps = np.diff(found[::16])
    assert found[0] < 2
    assert found[-1] > 95
    assert steps.min() > 0.5 * steps.mean()
    assert steps.max() < 1.5 * steps.mean()


def test_strongest_place_is_the_lightest_and_the_palettes_colour():
    heat_map = np.zeros((8, 8), dtype=np.float32)
    heat_map[1:4, 5:8] = 1
    drawn = np.asarray(draw_heat_map(Image.new("RGB", (64, 64), (90, 60, 30)), heat_map), dtype=float)
    row, column = np.unravel_index(lightness(drawn.reshape(-1, 3)).argmax(), (64, 64))
    assert 8 <= row < 32
    assert 40 <= column < 64
    assert drawn[60, 4] == pytest.approx((1 - WEAKEST) * 64 + WEAKEST * palette()[0], abs=1.5)  # 64: of the grey


def test_colours_of_the_picture_are_none_of_the_map():
    drawn = np.asarray(draw_heat_map(Image.new("RGB", (16, 16), (255, 200, 0)), np.zeros((4, 4), dtype=np.float32)))
    assert np.ptp(drawn.astype(int), axis=2).max() <= 2


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_pictures_in_grey_are_drawn_too(mode):
    assert draw_heat_map(Image.new(mode, (20, 20)), np.ones((4, 4), dtype=np.float32)).size == (20, 20)
