"""Heat maps drawn over pictures."""

from __future__ import annotations

import io
from functools import cache

import numpy as np
import numpy.typing as npt
from PIL import Image
from plotly import colors

from delta_tune.explanation.heat_maps import HeatMap

COLOURS = colors.sequential.Inferno
"""Perceptually uniform: equal steps of the map are equally visible ones, its brightness rises throughout."""
WEAKEST, STRONGEST = 0.45, 0.7
"""How much of the colour shows where nothing speaks for the class, and where most does."""
JPEG_QUALITY = 85


def draw_heat_map(picture: Image.Image, heat_map: HeatMap) -> Image.Image:
    """A picture in grey with a heat map (S, S) over it: bright where most speaks for the class.

    Args:
        picture: what the network sees, of any size.
        heat_map: of that.
    """
    size = picture.size
    smooth = Image.fromarray(heat_map.astype(np.float32)).resize(size, Image.Resampling.BICUBIC)
    strength = np.clip(np.asarray(smooth), 0, 1)[:, :, None]
    share = WEAKEST + (STRONGEST - WEAKEST) * strength
    colour = palette()[np.rint(255 * strength[:, :, 0]).astype(int)]
    grey = np.asarray(picture.convert("L").convert("RGB"), dtype=np.float32)  # a yellow flower would look like evidence
    blended = (1 - share) * grey + share * colour
    return Image.fromarray(np.rint(blended).astype(np.uint8))


@cache
def palette() -> npt.NDArray[np.float32]:
    """Colours of the values 0, 1/255, … 1: (256, 3), from 0 to 255."""
    sampled = colors.sample_colorscale(COLOURS, np.linspace(0, 1, 256), colortype="tuple")
    return 255 * np.array(sampled, dtype=np.float32)


def legend_css() -> str:
    """The colours as a gradient of CSS, from nothing to most."""
    return f"linear-gradient(to right, {', '.join(COLOURS)})"


def to_jpeg(picture: Image.Image) -> bytes:
    """A picture as a file for a page."""
    stream = io.BytesIO()
    picture.convert("RGB").save(stream, "JPEG", quality=JPEG_QUALITY)
    return stream.getvalue()
