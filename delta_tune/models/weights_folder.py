"""A folder with weights, as the Hugging Face Hub's cache has them, and what it tells of the preprocessing."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from delta_tune.config import UserError

_FILES = (
    *("model.safetensors", "open_clip_model.safetensors", "pytorch_model.bin", "open_clip_pytorch_model.bin"),
    *("model.pth", "model.pt", "pytorch_model.pth"),
)
_INDICES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_JSON_BYTES = 10 * 2**20
_INTERPOLATIONS = {2: "bilinear", 3: "bicubic"}
"""Pillow's numbers."""


@dataclass(frozen=True, kw_only=True)
class TrainingImages:
    """How the images were prepared with which a folder's weights were trained; None where it does not say."""

    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    size: int | None = None
    crop_pct: float | None = None
    interpolation: str | None = None


def weights_in(folder: Path) -> tuple[Path, ...]:
    """The files of one network's weights in a folder: a snapshot of the Hub, its repository in the cache, or a copy.

    Raises:
        UserError: there are none, or several networks'.
    """
    folder = snapshot(folder)
    for name in _FILES:
        if (folder / name).is_file():
            return (folder / name,)
    for name in _INDICES:
        if (folder / name).is_file():
            return _shards(folder, name)
    own = sorted(path for path in folder.iterdir() if path.suffix.lower() in (".safetensors", ".pth", ".pt", ".bin"))
    if len(own) == 1:
        return (own[0],)
    found = f"{len(own)} such files ({', '.join(path.name for path in own[:3])})" if own else "no weights"
    raise UserError(
        f"The folder {folder} holds {found}; give --weights one .safetensors or .pth file, or a folder of the Hugging "
        "Face Hub with model.safetensors."
    )


def snapshot(folder: Path) -> Path:
    """The snapshot of a repository's folder in the Hub's cache that `main` means, or its only one; else the folder.

    Raises:
        UserError: it has several snapshots and no `main`, or none that is complete.
    """
    snapshots = folder / "snapshots"
    if not snapshots.is_dir():
        return folder
    main = folder / "refs" / "main"
    if main.is_file():
        named = snapshots / main.read_text(encoding="utf-8", errors="replace").strip()[:100]
        if named.parent == snapshots and named.is_dir():
            return named
    found = sorted(path for path in snapshots.iterdir() if path.is_dir())
    if len(found) != 1:
        raise UserError(
            f"The folder {folder} of the Hugging Face Hub's cache has {len(found)} snapshots and none that main means; "
            "give --weights the folder of one, snapshots/…, or download it again."
        )
    return found[0]


def training_images(folder: Path) -> TrainingImages:
    """What a folder's `config.json` (timm's) or `preprocessor_config.json` (transformers') tells of the images."""
    folder = snapshot(folder)
    of_timm = _read(folder / "config.json").get("pretrained_cfg")
    if isinstance(of_timm, dict):
        size = of_timm.get("input_size")
        return TrainingImages(
            mean=_three(of_timm.get("mean")),
            std=_three(of_timm.get("std"), positive=True),
            size=_whole(size[-1]) if isinstance(size, list) and size else None,
            crop_pct=_fraction(of_timm.get("crop_pct")),
            interpolation=_word(of_timm.get("interpolation")),
        )
    told = _read(folder / "preprocessor_config.json")
    crop, size = _side(told.get("crop_size")), _side(told.get("size"))
    return TrainingImages(
        mean=_three(told.get("image_mean")),
        std=_three(told.get("image_std"), positive=True),
        size=crop or size,
        crop_pct=_fraction(crop / size) if crop and size else (1.0 if size else None),
        interpolation=_word(_INTERPOLATIONS.get(told.get("resample", 0))),
    )


def named_architecture(folder: Path) -> str:
    """The network that the folder's `config.json` names, empty if it names none."""
    config = _read(snapshot(folder) / "config.json")
    if isinstance(name := config.get("architecture"), str):
        return f"timm:{name}"[:100]
    several = config.get("architectures")
    return str(several[0])[:100] if isinstance(several, list) and several else ""


def _shards(folder: Path, index: str) -> tuple[Path, ...]:
    places = _read(folder / index).get("weight_map")
    names = sorted(set(places.values())) if isinstance(places, dict) and places else []
    if not names or any(not isinstance(name, str) or Path(name).name != name for name in names):
        raise UserError(f"{folder / index} does not list files beside it; download the weights again.")
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise UserError(f"{folder / missing[0]} is missing, which {index} lists; download the weights again.")
    return tuple(folder / name for name in names)


def _read(path: Path) -> Mapping[str, Any]:
    """A JSON object, which a stranger may have written; an empty one if there is none."""
    try:
        if path.stat().st_size > _JSON_BYTES:
            return {}
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _three(values: object, positive: bool = False) -> tuple[float, ...] | None:
    if not isinstance(values, list) or len(values) != 3 or not all(_is_number(value) for value in values):
        return None
    numbers = tuple(float(value) for value in values)
    return None if positive and min(numbers) <= 0 else numbers


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and abs(value) < 1e3


def _fraction(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and _is_number(value) and 0.1 <= value <= 1 else None


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 4096 else None


def _side(value: object) -> int | None:
    if isinstance(value, dict):
        value = value.get("height", value.get("shortest_edge"))
    return _whole(value)


def _word(value: object) -> str | None:
    return value if isinstance(value, str) else None
