"""Pictures of feature maps: the channels with the highest and lowest attention, for a few photos."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image, ImageOps
from torch import nn

from delta_tune.config import as_utf8
from delta_tune.data.augmentation import center_crop
from delta_tune.data.fitting import Pixels
from delta_tune.data.pictures import thumbnail
from delta_tune.filesystem.atomic import atomic_write
from delta_tune.filesystem.rows import read_table_file
from delta_tune.filesystem.untrusted import Count, Number, Picture, Text, check_rows, refusing
from delta_tune.inference.ensemble import members_of
from delta_tune.models.backbones import Backbone, build_source
from delta_tune.models.feature_maps import feature_maps
from delta_tune.models.network_state import rebuild, state_arrays
from delta_tune.training.task import Task
from delta_tune.training.workplace import ThisProcess, Workplace

COLUMNS: dict[str, Any] = {
    **{"image": Text, "photo": Picture, "layer": Text},
    **{"channels": list[Count], "weights": list[Number], "picture": Picture},
}
"""Columns of the file and their values."""
PHOTOS, CHANNELS = 3, 4
TILE = 56
GAP = 4
DARK, MIDDLE, BRIGHT = "#000004", "#bb3754", "#fcffa4"


@dataclass(frozen=True, kw_only=True, slots=True)
class FeatureMapImage:
    """Maps of one layer for one photo: one column per channel, source above, fine-tuned model below.

    Each map is scaled to its own range, so brightness compares positions, not channels.
    """

    image: str
    photo: bytes
    """JPEG."""
    layer: str
    channels: tuple[int, ...]
    """Channels with the highest attention first, then those with the lowest, the lowest last."""
    weights: tuple[float, ...]
    """Weights of these channels times the number of channels."""
    picture: bytes
    """PNG."""


def save_feature_map_images(
    task: Task,
    attention: Mapping[str, np.ndarray],
    model: nn.Module,
    file: Path,
    workplace: Workplace | None = None,
) -> None:
    """Draw the maps of the first validation photos of different classes.

    Args:
        task: data and source of the study.
        attention: layer → weights (C,); if empty, nothing is drawn.
        model: the final network, on CPU; of several networks the first is drawn.
        file: Parquet file to write.
        workplace: computes the maps; None is this process.
    """
    if not attention:
        return
    layers, val = list(attention), task.dataset.val
    chosen = np.sort(np.unique(task.dataset.kind.strata(val.labels), return_index=True)[1])[:PHOTOS]
    pixels = val.images.batch(chosen)
    state = state_arrays(members_of(model)[0])
    maps = (workplace or ThisProcess()).run(_maps, task.backbone, state, pixels, layers)
    rows = []
    for position, index in enumerate(chosen.tolist()):
        photo = thumbnail(pixels[position], task.backbone.preprocessing, 2 * TILE + GAP)
        for layer in maps[0]:
            weights = attention[layer]
            order = np.argsort(-weights, kind="stable")
            many = min(CHANNELS, len(order) // 2)
            channels = np.concatenate([order[:many], order[len(order) - many :]])
            selected = [by_layer[layer][position][channels] for by_layer in maps]
            rows.append(
                {
                    "image": as_utf8(val.names[index]),
                    "photo": photo,
                    "layer": layer,
                    "channels": channels.tolist(),
                    "weights": (weights[channels] * len(weights)).tolist(),
                    "picture": stack_tiles(selected),
                }
            )
    if not rows:
        return
    file.parent.mkdir(exist_ok=True)
    with atomic_write(file) as partial:
        pq.write_table(pa.Table.from_pylist(rows), partial)


def _maps(
    backbone: Backbone, state: Mapping[str, np.ndarray], pixels: Pixels, layers: list[str], device: torch.device
) -> list[dict[str, np.ndarray]]:
    """Layer → maps (N, C, S, S) of the source, then of the final model; on the CPU, for they are few.

    A layer whose positions are no square is left out.
    """
    layouts = backbone.layouts_of(layers)
    images, found = center_crop(torch.from_numpy(pixels.copy()), backbone.preprocessing), []
    for network in (build_source(backbone), rebuild(backbone, state, torch.device("cpu"))):
        with torch.inference_mode(), feature_maps(network, layers, stop=True) as reader:
            outputs = reader.run(images)
            squares = {layer: layout.squares(outputs[layer]) for layer, layout in layouts.items()}
            found.append({layer: values.float().numpy() for layer, values in squares.items() if values is not None})
    return found


def read_feature_map_images(file: Path) -> list[FeatureMapImage]:
    """Read what `save_feature_map_images` wrote; empty if there is no file.

    Raises:
        UserError: the file is damaged.
    """
    if not file.exists():
        return []
    with refusing(file, "remove it: a report leaves out what it lacks"):
        rows, _ = read_table_file(file)
        check_rows(rows, COLUMNS)
        if any(len(row["channels"]) != len(row["weights"]) for row in rows):
            raise ValueError("channels and weights differ in number")
    return [
        FeatureMapImage(
            image=row["image"],
            photo=row["photo"],
            layer=row["layer"],
            channels=tuple(row["channels"]),
            weights=tuple(row["weights"]),
            picture=row["picture"],
        )
        for row in rows
    ]


def stack_tiles(rows: list[np.ndarray]) -> bytes:
    """A PNG of rows of maps (n, H, W), each map a square of `TILE` pixels."""
    many = len(rows[0])
    step = TILE + GAP
    picture = Image.new("RGBA", (many * step - GAP, len(rows) * step - GAP), (0, 0, 0, 0))
    for down, maps in enumerate(rows):
        for across, values in enumerate(maps):
            picture.paste(map_tile(values), (across * step, down * step))
    stream = io.BytesIO()
    picture.quantize(64, method=Image.Quantize.FASTOCTREE).save(stream, "PNG", optimize=True)
    return stream.getvalue()


def map_tile(values: np.ndarray) -> Image.Image:
    """A map (H, W) as an image: lowest value dark, highest bright; a constant map is dark."""
    low, high = float(values.min()), float(values.max())
    grey: Pixels = (255 * (values - low) / max(high - low, 1e-12)).astype(np.uint8)
    coloured = ImageOps.colorize(Image.fromarray(grey), DARK, BRIGHT, mid=MIDDLE)
    return coloured.resize((TILE, TILE), Image.Resampling.NEAREST)
